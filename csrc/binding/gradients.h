// From Python parameters to a TensorList: one walk that reads `.grad`, checks and packs.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "../tensor_list.h"

namespace fastclip {

// Thrown as Python's _C.UnsupportedError: the reference backend may still run the call.
struct Unsupported {
  std::vector<std::string> reasons;
};

// The owned gradients of one call and their packed form. The references keep every gradient alive
// while the GIL is released.
struct Gradients {
  std::vector<at::Tensor> tensors;       // one per entry, in the order given
  std::vector<TensorEntry> entries;      // parallel to `tensors`
  std::vector<at::Tensor> duplicates;    // other tensors over the memory of an entry
  std::vector<int32_t> entry_of_source;  // per parameter; -1 where `.grad` is None
  bool has_float64 = false;
  TensorList list{};
};

inline bool to_dtype(at::ScalarType type, DType* dtype) {
  switch (type) {
    case at::kFloat:
      *dtype = DType::kFloat32;
      return true;
    case at::kDouble:
      *dtype = DType::kFloat64;
      return true;
    case at::kBFloat16:
      *dtype = DType::kBFloat16;
      return true;
    case at::kHalf:
      *dtype = DType::kFloat16;
      return true;
    default:
      return false;
  }
}

// The dispatch keys of an ordinary CPU tensor. Any other key (Python, Conjugate, Negative,
// ZeroTensor, functorch, sparse, meta, inference, ...) asks for handling that reading raw memory
// would skip.
inline c10::DispatchKeySet plain_cpu_keys() {
  static const c10::DispatchKeySet keys = [] {
    const c10::InferenceMode off(false);
    return at::detail::empty_cpu({0}, at::kFloat).key_set();
  }();
  return keys;
}

// As Python writes it: "complex64", where C++ says ComplexFloat.
inline std::string dtype_name(at::ScalarType type) {
  const auto name = py::str(py::cast(type)).cast<std::string>();
  return name.substr(name.find('.') + 1);
}

inline std::string why_unsupported(const at::Tensor& grad) {
  DType dtype;
  if (!grad.device().is_cpu()) return "device " + grad.device().str() + " (supported: cpu)";
  if (!to_dtype(grad.scalar_type(), &dtype)) {
    return "dtype " + dtype_name(grad.scalar_type()) +
           " (supported: float32, float64, bfloat16, float16)";
  }
  if (grad.is_inference()) return "an inference tensor";
  if (grad.key_set() != plain_cpu_keys()) {
    return "a tensor with dispatch keys " + c10::toString(grad.key_set()) +
           " (supported: plain strided tensors)";
  }
  if (!grad.is_non_overlapping_and_dense())
    return "a tensor with gaps or with overlapping elements";
  if (grad._fw_grad(0).defined()) return "a tensor that carries a forward-mode tangent";
  return "data that is not aligned to its element size";
}

// `.grad`, or nullptr. TensorImpl::grad() gives the same by way of two calls, which a walk over
// many small gradients would feel.
inline const at::Tensor* grad_of(const c10::TensorImpl* impl) {
  const auto* const meta = static_cast<const torch::autograd::AutogradMeta*>(impl->autograd_meta());
  return meta != nullptr && meta->grad_.defined() ? &meta->grad_ : nullptr;
}

inline c10::TensorImpl* plain_impl(PyObject* object) {
  const bool is_plain = object != nullptr && THPVariable_CheckTypeExact(Py_TYPE(object));
  return is_plain ? THPVariable_Unpack(object).unsafeGetTensorImpl() : nullptr;
}

// Asks the memory for what a walk over parameters will read a few steps later. From a parameter to
// its gradient's data the walk follows five pointers, and a list whose objects lie scattered would
// wait for each of them.
class LookAhead {
 public:
  // `object_at(i)` is the parameter that the walk comes to at step i, nullptr after the last.
  template <typename ObjectAt>
  void step(size_t i, ObjectAt object_at) {
    prefetch<1>(object_at(i + 5 * kStep));
    reached(i + 4 * kStep) = plain_impl(object_at(i + 4 * kStep));
    prefetch<1>(reached(i + 4 * kStep));
    if (const void*& at = reached(i + 3 * kStep); at != nullptr) {
      at = static_cast<const AutogradMeta*>(static_cast<const TensorImpl*>(at)->autograd_meta());
      if (at != nullptr) prefetch<1>(&static_cast<const AutogradMeta*>(at)->grad_);
    }
    if (const void*& at = reached(i + 2 * kStep); at != nullptr) {
      const at::Tensor& grad = static_cast<const AutogradMeta*>(at)->grad_;
      at = grad.defined() ? grad.unsafeGetTensorImpl() : nullptr;
      prefetch<4>(at);
    }
    if (const void* const at = reached(i + kStep); at != nullptr) {
      const c10::Storage& storage = static_cast<const TensorImpl*>(at)->unsafe_storage();
      prefetch<2>(storage.unsafeGetStorageImpl());
    }
  }

  // Python code has run, which may have replaced any tensor.
  void forget() { reached_.fill(nullptr); }

 private:
  using AutogradMeta = torch::autograd::AutogradMeta;
  using TensorImpl = c10::TensorImpl;
  static constexpr size_t kStep = 6;
  static constexpr size_t kSlots = 32;  // at least 4 * kStep; a power of two

  const void*& reached(size_t i) { return reached_[i % kSlots]; }

  // A null pointer is allowed: a prefetch of an invalid address does nothing.
  template <int kLines>
  static void prefetch(const void* object) {
    for (int line = 0; line < kLines; ++line) {
      __builtin_prefetch(static_cast<const char*>(object) + line * 64);
    }
  }

  // How far each parameter has been followed: its TensorImpl, then its AutogradMeta, then its
  // gradient's TensorImpl. Borrowed: the walk holds the GIL, and nothing goes while no Python runs.
  std::array<const void*, kSlots> reached_{};
};

class Collector {
 public:
  // `writes`: the call may write, so that copy-on-write storage must be made the tensor's own
  // first.
  Collector(size_t expected, bool writes) : writes_(writes) {
    gradients_.tensors.reserve(expected);
    gradients_.entries.reserve(expected);
    gradients_.entry_of_source.reserve(expected);
    if (c10::impl::dispatch_mode_enabled()) {
      throw Unsupported{{"a TorchDispatchMode is active, which must see every operation"}};
    }
  }

  template <typename ObjectAt>
  void look_ahead(size_t i, ObjectAt object_at) {
    ahead_.step(i, object_at);
  }

  void add_parameter(const at::Tensor& parameter) {
    if (const at::Tensor* const grad = grad_of(parameter.unsafeGetTensorImpl())) {
      add(*grad);
    } else {
      if (!parameter.is_leaf() && !parameter.retains_grad()) read_through_python(parameter);
      skip();
    }
  }

  // Python's `.grad` warns that the parameter is no leaf. Where warnings are errors it must raise
  // now, before anything is written: a warning from C++ would become one at the end of the call.
  void read_through_python(const at::Tensor& parameter) {
    ahead_.forget();
    const auto object = py::reinterpret_steal<py::object>(THPVariable_Wrap(parameter));
    if (!py::reinterpret_steal<py::object>(PyObject_GetAttrString(object.ptr(), "grad"))) {
      throw py::error_already_set();
    }
  }

  // Anything with a `.grad` is a parameter.
  void add_parameter(PyObject* object) {
    if (THPVariable_CheckTypeExact(Py_TYPE(object)))
      return add_parameter(THPVariable_Unpack(object));
    ahead_.forget();
    const auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttrString(object, "grad"));
    if (!grad) throw py::error_already_set();
    if (grad.is_none()) return skip();
    add_tensor(grad.ptr());
  }

  void add_tensor(PyObject* object) {
    if (!THPVariable_Check(object)) {
      throw Unsupported{{"gradient " + std::to_string(position()) + " is no tensor"}};
    }
    add(THPVariable_Unpack(object));
  }

  // Ends a walk over parameters: equal gradients become one entry (see drop_duplicates), and
  // gradients that overlap only in part are left to the reference backend, which takes them one
  // after another.
  Gradients finish_parameters() {
    drop_duplicates();
    return finish_tensors();
  }

  Gradients finish_tensors() {
    if (!reasons_.empty()) throw Unsupported{std::move(reasons_)};
    int64_t total_count = 0;
    for (const TensorEntry& entry : gradients_.entries) total_count += entry.count;
    TensorList& list = gradients_.list;
    list.chunk_size = choose_chunk_size(total_count);
    for (TensorEntry& entry : gradients_.entries) {
      entry.first_chunk = list.chunks;
      list.chunks += chunks_of(entry.count, list.chunk_size);
      gradients_.has_float64 |= entry.dtype == DType::kFloat64;
    }
    list.entries = gradients_.entries.data();
    list.size = static_cast<int64_t>(gradients_.entries.size());
    return std::move(gradients_);
  }

 private:
  struct Span {
    const char* begin;
    const char* end;
    int32_t entry;
  };

  size_t position() const { return gradients_.entry_of_source.size(); }
  void skip() { gradients_.entry_of_source.push_back(-1); }

  // torch's own errors for gradients that no backend may write to.
  void check_writable(const at::Tensor& grad) const {
    if (!writes_) return;
    if (grad.layout() == at::kStrided && !grad.is_nested()) at::assert_no_internal_overlap(grad);
    if (grad.is_inference() && !c10::InferenceMode::is_enabled()) {
      grad.unsafeGetTensorImpl()->bump_version();
    }
  }

  void add(const at::Tensor& grad) {
    c10::TensorImpl* const impl = grad.unsafeGetTensorImpl();
    const c10::Storage& storage = impl->unsafe_storage();
    TensorEntry entry{};
    const bool is_plain = impl->key_set() == plain_cpu_keys() && storage &&
                          to_dtype(grad.scalar_type(), &entry.dtype) &&
                          impl->is_non_overlapping_and_dense() && !has_tangent(grad);
    if (is_plain) {
      // Copy-on-write storage becomes this tensor's own here, before pointers are compared.
      const void* const base = writes_ ? storage.mutable_data() : storage.data();
      entry.data = static_cast<char*>(const_cast<void*>(base));
      entry.count = impl->numel();
      if (entry.count > 0) entry.data += impl->storage_offset() * element_size(entry.dtype);
    }
    if (!is_plain || reinterpret_cast<uintptr_t>(entry.data) % element_size(entry.dtype) != 0) {
      check_writable(grad);
      const std::string reason = why_unsupported(grad);
      if (std::find(reasons_.begin(), reasons_.end(), reason) == reasons_.end()) {
        reasons_.push_back(reason);
      }
      return skip();
    }
    const auto index = static_cast<int32_t>(gradients_.entries.size());
    if (writes_ && may_share_memory(grad)) sharing_.push_back(index);
    gradients_.entry_of_source.push_back(index);
    gradients_.entries.push_back(entry);
    gradients_.tensors.push_back(grad);
  }

  static bool has_tangent(const at::Tensor& grad) {
    return grad.unsafeGetTensorImpl()->autograd_meta() != nullptr && grad._fw_grad(0).defined();
  }

  // Another tensor may use the same memory: the storage is shared, or something else than torch's
  // CPU allocator made it.
  static bool may_share_memory(const at::Tensor& grad) {
    static const c10::DeleterFnPtr default_deleter = c10::GetAllocator(at::kCPU)->raw_deleter();
    const c10::Storage& storage = grad.unsafeGetTensorImpl()->unsafe_storage();
    return storage.use_count() > 1 || storage.data_ptr().get_deleter() != default_deleter;
  }

  bool are_equal(int32_t a, int32_t b) const {
    const TensorEntry& x = gradients_.entries[a];
    const TensorEntry& y = gradients_.entries[b];
    return x.data == y.data && x.count == y.count && x.dtype == y.dtype &&
           gradients_.tensors[a].strides() == gradients_.tensors[b].strides();
  }

  // Makes equal gradients one entry and refuses those that overlap in part.
  void drop_duplicates() {
    std::vector<int32_t> first_equal;  // per entry, -1 for none; made when a duplicate is found
    find_repeated_tensors(&first_equal);
    find_overlaps(&first_equal);
    if (reasons_.empty() && !first_equal.empty()) remove_entries(first_equal);
  }

  void mark_equal(int32_t first, int32_t entry, std::vector<int32_t>* first_equal) const {
    if (first_equal->empty()) first_equal->assign(gradients_.entries.size(), -1);
    (*first_equal)[entry] = first;
  }

  // Memory that is not shared belongs to one tensor, which the list may hold twice: something
  // besides one parameter and this list then refers to it, as any Python variable does. The hash
  // table costs a third of a sort.
  void find_repeated_tensors(std::vector<int32_t>* first_equal) const {
    const auto size = static_cast<int32_t>(gradients_.entries.size());
    std::vector<int32_t> table;  // entries by the address of their tensor; -1 where free
    size_t mask = 0;
    for (int32_t i = 0; i < size; ++i) {
      if (gradients_.tensors[i].use_count() <= 2) continue;
      if (table.empty()) {
        for (mask = 1; mask < 2 * static_cast<size_t>(size); mask *= 2) continue;
        table.assign(mask, -1);
        --mask;
      }
      const c10::TensorImpl* const impl = gradients_.tensors[i].unsafeGetTensorImpl();
      const uint64_t mixed = reinterpret_cast<uintptr_t>(impl) * uint64_t{0x9E3779B97F4A7C15};
      size_t slot = (mixed >> 32) & mask;
      while (table[slot] >= 0 && gradients_.tensors[table[slot]].unsafeGetTensorImpl() != impl) {
        slot = (slot + 1) & mask;
      }
      if (table[slot] >= 0) {
        mark_equal(table[slot], i, first_equal);
      } else {
        table[slot] = i;
      }
    }
  }

  // Finds, among the gradients whose memory may be shared, equal ones and those that overlap in
  // part.
  void find_overlaps(std::vector<int32_t>* first_equal) {
    std::vector<Span> spans;
    for (const int32_t i : sharing_) {
      const TensorEntry& entry = gradients_.entries[i];
      if (entry.count > 0) {
        spans.push_back({entry.data, entry.data + entry.count * element_size(entry.dtype), i});
      }
    }
    if (spans.size() < 2) return;
    const auto before = [](const Span& a, const Span& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.entry < b.entry;
    };
    if (!std::is_sorted(spans.begin(), spans.end(), before)) {
      std::sort(spans.begin(), spans.end(), before);
    }
    const Span* reach = &spans[0];  // the span that ends last so far
    for (size_t i = 1; i < spans.size(); ++i) {
      if (spans[i].begin < reach->end) {
        if (!are_equal(reach->entry, spans[i].entry)) {
          reasons_.push_back("gradients that overlap in part");
          return;
        }
        mark_equal(reach->entry, spans[i].entry, first_equal);
      }
      if (spans[i].end > reach->end) reach = &spans[i];
    }
  }

  void remove_entries(const std::vector<int32_t>& first_equal) {
    std::vector<int32_t> kept(first_equal.size());
    int32_t size = 0;
    for (size_t i = 0; i < first_equal.size(); ++i) {
      if (const int32_t first = first_equal[i]; first >= 0) {
        if (!gradients_.tensors[i].is_same(gradients_.tensors[kept[first]])) {
          gradients_.duplicates.push_back(gradients_.tensors[i]);
        }
        continue;
      }
      kept[i] = size;
      gradients_.entries[size] = gradients_.entries[i];
      gradients_.tensors[size] = gradients_.tensors[i];
      ++size;
    }
    gradients_.entries.resize(size);
    gradients_.tensors.resize(size);
    for (int32_t& entry : gradients_.entry_of_source) {
      if (entry >= 0) entry = kept[first_equal[entry] >= 0 ? first_equal[entry] : entry];
    }
  }

  LookAhead ahead_;
  Gradients gradients_;
  std::vector<int32_t> sharing_;  // entries whose memory may be shared, ascending
  std::vector<std::string> reasons_;
  bool writes_;
};

}  // namespace fastclip
