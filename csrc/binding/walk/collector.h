// One walk over Python parameters: it reads each `.grad`, checks it and makes an entry of it.
#pragma once

#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "../accelerator.h"
#include "../gradients.h"
#include "dtensor.h"
#include "duplicates.h"
#include "look_ahead.h"
#include "purpose.h"
#include "reasons.h"

namespace fastclip {

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

// Returns the name as Python writes it: "complex64", where C++ says ComplexFloat.
inline std::string dtype_name(at::ScalarType type) {
  const auto name = py::str(py::cast(type)).cast<std::string>();
  return name.substr(name.find('.') + 1);
}

inline Reason why_unsupported(const at::Tensor& grad, Kernels kernels) {
  DType dtype;
  if (is_dtensor(grad)) return {ReasonKind::kTensors, kDTensorReason};
  if (!is_supported_device(grad, kernels)) return why_not_on_device(grad, kernels);
  const auto reason = [](std::string text) { return Reason{ReasonKind::kTensors, text}; };
  if (!to_dtype(grad.scalar_type(), &dtype)) {
    return reason("dtype " + dtype_name(grad.scalar_type()) +
                  " (supported: float32, float64, bfloat16, float16)");
  }
  if (grad.is_inference()) return reason("an inference tensor");
  if (grad.key_set() != plain_cpu_keys() && !accelerator::is_plain(grad.unsafeGetTensorImpl())) {
    return reason("a tensor with dispatch keys " + c10::toString(grad.key_set()) +
                  " (supported: plain strided tensors)");
  }
  if (!grad.is_non_overlapping_and_dense()) {
    return reason("a tensor with gaps or with overlapping elements");
  }
  if (grad._fw_grad(0).defined()) return reason("a tensor that carries a forward-mode tangent");
  return reason("data that is not aligned to its element size");
}

class Collector {
 public:
  // `read`, unless null, receives the gradient of each source.
  Collector(size_t expected, Use use, Kernels kernels, std::vector<at::Tensor>* read)
      : writes_(use.writes), takes_norm_(use.takes_norm), kernels_(kernels), read_(read) {
    gradients_.tensors.reserve(expected);
    gradients_.entries.reserve(expected);
    gradients_.entry_of_source.reserve(expected);
    if (c10::impl::dispatch_mode_enabled()) {
      throw Unsupported(ReasonKind::kTensors,
                        "a TorchDispatchMode is active, which must see every operation");
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

  // Lets Python's `.grad` warn that the parameter is no leaf. Where warnings are errors, that error
  // must be raised before anything is written; a warning from C++ would raise it only at the end of
  // the call.
  void read_through_python(const at::Tensor& parameter) {
    prepare_for_python();
    const auto object = py::reinterpret_steal<py::object>(THPVariable_Wrap(parameter));
    if (!py::reinterpret_steal<py::object>(PyObject_GetAttrString(object.ptr(), "grad"))) {
      throw py::error_already_set();
    }
  }

  // Anything with a `.grad` is a parameter.
  void add_parameter(PyObject* object) {
    if (THPVariable_CheckTypeExact(Py_TYPE(object)))
      return add_parameter(THPVariable_Unpack(object));
    prepare_for_python();
    const auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttrString(object, "grad"));
    if (!grad) throw py::error_already_set();
    if (!grad.is_none()) return add_tensor(grad.ptr());
    if (takes_norm_ && may_have_gradient_elsewhere(object)) {
      add_reason({ReasonKind::kTensors, kDTensorReason});
    }
    skip();
  }

  void add_tensor(PyObject* object) {
    if (!THPVariable_Check(object)) {
      throw Unsupported(ReasonKind::kTensors,
                        "gradient " + std::to_string(position()) + " is no tensor");
    }
    add(THPVariable_Unpack(object));
  }

  // Records a source without a gradient.
  void skip() {
    gradients_.entry_of_source.push_back(-1);
    if (read_ != nullptr) read_->emplace_back();
  }

  // Ends the walk. In a list that may be written, equal gradients become one entry, and gradients
  // that overlap only in part are refused: the reference backend takes those one after another.
  Gradients finish() {
    if (python_ran_) pack_again();
    throw_reasons();
    if (writes_) drop_duplicates();
    for (const TensorEntry& entry : gradients_.entries) {
      gradients_.has_float64 |= entry.dtype == DType::kFloat64;
    }
    if (gradients_.is_on_gpu || kernels_ != Kernels::kNative) gradients_.own();
    return std::move(gradients_);
  }

 private:
  void throw_reasons() {
    if (!reasons_.empty()) throw Unsupported(std::move(reasons_));
  }

  void prepare_for_python() {
    python_ran_ = true;
    ahead_.forget();
    gradients_.own();
  }

  size_t position() const { return gradients_.entry_of_source.size(); }

  // Raises torch's own error for a gradient that no backend may write to.
  void check_writable(const at::Tensor& grad) const {
    if (!writes_) return;
    if (grad.layout() == at::kStrided && !grad.is_nested()) at::assert_no_internal_overlap(grad);
    if (grad.is_inference() && !c10::InferenceMode::is_enabled()) {
      grad.unsafeGetTensorImpl()->bump_version();
    }
  }

  bool is_on_gpu(const c10::TensorImpl* impl) const {
    return accelerator::is_plain(impl) && reach_gpu(kernels_);
  }

  bool is_on_cpu(const c10::TensorImpl* impl) const {
    return impl->key_set() == plain_cpu_keys() && reach_cpu(kernels_);
  }

  // Fills `entry` from a plain gradient; returns false for any other.
  bool pack(const at::Tensor& grad, TensorEntry* entry) const {
    c10::TensorImpl* const impl = grad.unsafeGetTensorImpl();
    const c10::Storage& storage = impl->unsafe_storage();
    if (!storage || (!is_on_cpu(impl) && !is_on_gpu(impl)) ||
        !to_dtype(grad.scalar_type(), &entry->dtype) || !impl->is_non_overlapping_and_dense() ||
        has_tangent(grad)) {
      return false;
    }
    // Copy-on-write storage becomes this tensor's own here, before pointers are compared.
    const void* const base = writes_ ? storage.mutable_data() : storage.data();
    entry->data = static_cast<char*>(const_cast<void*>(base));
    entry->count = impl->numel();
    if (entry->count > 0) entry->data += impl->storage_offset() * element_size(entry->dtype);
    return reinterpret_cast<uintptr_t>(entry->data) % element_size(entry->dtype) == 0;
  }

  void add(const at::Tensor& grad) {
    TensorEntry entry{};
    if (!pack(grad, &entry)) {
      refuse(grad);
      return skip();
    }
    const auto index = static_cast<int32_t>(gradients_.entries.size());
    if (writes_ && may_share_memory(grad)) sharing_.push_back(index);
    gradients_.entry_of_source.push_back(index);
    gradients_.is_on_gpu |= is_on_gpu(grad.unsafeGetTensorImpl());
    gradients_.add(grad, entry);
    if (read_ != nullptr) read_->push_back(grad);
  }

  // Takes its own reference to the tensor: asking a wrapper anything may run its Python code, which
  // may replace the gradient.
  void refuse(const at::Tensor grad) {
    prepare_for_python();
    check_writable(grad);
    add_reason(why_unsupported(grad, kernels_));
  }

  void add_reason(const Reason& reason) {
    if (std::find(reasons_.begin(), reasons_.end(), reason) == reasons_.end()) {
      reasons_.push_back(reason);
    }
  }

  // Python code that ran in the walk may have resized a gradient, moved it to another device or
  // viewed one that was read before.
  void pack_again() {
    gradients_.is_on_gpu = false;
    for (size_t i = 0; i < gradients_.entries.size(); ++i) {
      TensorEntry entry{};
      if (pack(gradients_.owners[i], &entry)) {
        gradients_.entries[i] = entry;
        gradients_.is_on_gpu |= is_on_gpu(gradients_.tensors[i]);
      } else {
        refuse(gradients_.owners[i]);
      }
    }
    all_may_share_ = true;
  }

  static bool has_tangent(const at::Tensor& grad) {
    return grad.unsafeGetTensorImpl()->autograd_meta() != nullptr && grad._fw_grad(0).defined();
  }

  // Returns whether another tensor uses the same storage. Memory that torch's allocator did not
  // make (DLPack) may also belong to a gradient with another storage, which does not show it: then
  // all gradients of the list must be compared.
  bool may_share_memory(const at::Tensor& grad) {
    static const c10::DeleterFnPtr default_deleter = c10::GetAllocator(at::kCPU)->raw_deleter();
    const c10::Storage& storage = grad.unsafeGetTensorImpl()->unsafe_storage();
    if (storage.data_ptr().get_deleter() != default_deleter &&
        (storage.device_type() == at::kCPU || !is_cuda_allocation(storage))) {
      all_may_share_ = true;
    }
    return storage.use_count() > 1;
  }

  static bool is_cuda_allocation(const c10::Storage& storage) {
    const c10::Allocator* const allocator = c10::GetAllocator(at::kCUDA);
    return storage.data_ptr().get_deleter() == allocator->raw_deleter();
  }

  void drop_duplicates() {
    Duplicates duplicates(&gradients_);
    if (all_may_share_ ? duplicates.find_among_all() : duplicates.find(sharing_)) {
      add_reason({ReasonKind::kTensors, "gradients that overlap in part"});
    }
    throw_reasons();
    duplicates.remove();
  }

  LookAhead ahead_;
  Gradients gradients_;
  std::vector<int32_t> sharing_;  // entries whose memory may be shared, ascending
  std::vector<Reason> reasons_;
  bool writes_;
  bool takes_norm_;
  Kernels kernels_;
  std::vector<at::Tensor>* read_;
  bool python_ran_ = false;
  bool all_may_share_ = false;
};

}  // namespace fastclip
