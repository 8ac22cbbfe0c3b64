// The parameters of a GradClipper, and one clip for the function and the class.
#pragma once

#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "gpu.h"

namespace fastclip {

using MaxNorm = std::variant<double, at::Tensor>;

inline void check_norm_type(double norm_type) {
  if (Norm::supports(norm_type)) return;
  throw Unsupported{{"norm_type " + std::to_string(norm_type) + " (supported: above 0, and inf)"}};
}

inline bool is_gpu_tensor(const at::Tensor& tensor) {
  return cuda_launchers() != nullptr && accelerator::is_plain(tensor.unsafeGetTensorImpl());
}

// A tensor is taken on a GPU, for gradients of which at least one is on a GPU.
inline Limit limit_of(const MaxNorm& max_norm, const Gradients& gradients) {
  if (const double* const value = std::get_if<double>(&max_norm)) return {*value, {}};
  if (gradients.entries.empty()) return {};  // nothing to limit
  const at::Tensor& tensor = std::get<at::Tensor>(max_norm);
  DType dtype;
  if (!gradients.is_on_gpu || !is_gpu_tensor(tensor) || tensor.dim() != 0 ||
      !to_dtype(tensor.scalar_type(), &dtype)) {
    throw Unsupported{{"max_norm is on device " + tensor.device().str() +
                       " (supported: cpu, and for gradients on cuda a plain 0-dim "
                       "floating-point tensor there)"}};
  }
  return {0, apart_from(gradients, tensor)};
}

// What a clip leaves for the norms of parameters, also where it ends in NonFinite.
struct Clipped {
  NormOptions options;
  std::vector<int32_t> entry_of_source;
  std::optional<Reduction> on_cpu;  // one of these two is filled
  std::optional<GpuNorm> on_gpu;
};

// Returns the norm before clipping; nothing where there are no gradients.
inline std::optional<at::Tensor> clip(const Operation& operation, Gradients& gradients,
                                      const MaxNorm& max_norm, Clipped* clipped) {
  const Limit limit = limit_of(max_norm, gradients);
  const NormOptions& options = clipped->options;
  const KeepDenormals keep_denormals;
  if (gradients.is_on_gpu) {
    return clip_on_gpu(operation, gradients, limit, options, &clipped->on_gpu);
  }
  clipped->on_cpu = reduce(gradients, options.norm_type, options.is_float64);
  if (gradients.entries.empty()) return std::nullopt;
  return clip(gradients, *clipped->on_cpu, limit.value, options.error_if_nonfinite);
}

class ParameterList {
 public:
  explicit ParameterList(const py::list& parameters) {
    for (const py::handle object : parameters) {
      sources_.push_back(py::reinterpret_borrow<py::object>(object));
    }
  }

  std::optional<at::Tensor> clip_grad_norm_(const MaxNorm& max_norm, double norm_type,
                                            bool error_if_nonfinite) {
    check_norm_type(norm_type);
    Gradients gradients = collect();
    const auto last = std::make_shared<Clipped>(Clipped{
        {norm_type, gradients.has_float64, error_if_nonfinite}, gradients.entry_of_source, {}, {}});
    // Another thread may clip while the GIL is released: the last one to come back stays.
    const KeepLast keep_last{last, &last_};
    return clip(Operation{"GradClipper"}, gradients, max_norm, last.get());
  }

  Gradients collect(Takes takes = Takes::kNative) const {
    Collector collector(sources_.size(), kClips, takes);
    const auto object_at = [this](size_t i) {
      return i < sources_.size() ? sources_[i].ptr() : nullptr;
    };
    for (size_t i = 0; i < sources_.size(); ++i) {
      collector.look_ahead(i, object_at);
      collector.add_parameter(sources_[i].ptr());
    }
    return collector.finish_parameters();
  }

  const std::vector<py::object>& sources() const { return sources_; }

  void clear() {
    const std::vector<py::object> dropped = std::move(sources_);
    sources_.clear();
  }

  // One norm per parameter, 0 where `.grad` was None; made on demand from the last clip's sums.
  at::Tensor parameter_norms() const {
    TORCH_CHECK(last_ != nullptr, "ParameterList: parameter_norms needs a clip first");
    const KeepDenormals keep_denormals;
    if (last_->on_gpu) {
      const std::shared_ptr<const Clipped> last = last_;  // another thread may clip meanwhile
      const py::gil_scoped_release without_gil;
      return gpu_norms(*last);
    }
    return last_->options.is_float64 ? cpu_norms<double>(*last_, at::kDouble)
                                     : cpu_norms<float>(*last_, at::kFloat);
  }

 private:
  struct KeepLast {
    std::shared_ptr<Clipped> clipped;
    std::shared_ptr<const Clipped>* last;

    ~KeepLast() {
      if (clipped->on_cpu || clipped->on_gpu) *last = clipped;
    }
  };

  template <typename T>
  static at::Tensor cpu_norms(const Clipped& last, at::ScalarType type) {
    const auto size = static_cast<int64_t>(last.entry_of_source.size());
    at::Tensor norms = at::empty({size}, at::device(at::kCPU).dtype(type));
    T* const values = norms.mutable_data_ptr<T>();
    const Reduction& reduction = *last.on_cpu;
    const auto entries = static_cast<int64_t>(reduction.combined.size());
    if (entries == size) {  // every parameter has a gradient of its own, in order
      reduction.norm.roots(reduction.combined.data(), size, values);
      return norms;
    }
    std::vector<T> roots(entries);
    reduction.norm.roots(reduction.combined.data(), entries, roots.data());
    for (int64_t i = 0; i < size; ++i) {
      const int32_t entry = last.entry_of_source[i];
      values[i] = entry < 0 ? T(0) : roots[entry];
    }
    return norms;
  }

  static at::Tensor gpu_norms(const Clipped& last) {
    const at::Tensor roots = roots_of(*last.on_gpu, last.options);
    const int64_t entries = roots.numel();
    std::vector<int64_t> place_of_entry(entries);
    int64_t place = 0;
    for (const Part& part : last.on_gpu->parts) {
      for (const int32_t entry : part.positions) place_of_entry[entry] = place++;
    }
    std::vector<int64_t> places;
    bool is_in_order = true;
    for (const int32_t entry : last.entry_of_source) {
      places.push_back(entry < 0 ? entries : place_of_entry[entry]);
      is_in_order &= places.back() == static_cast<int64_t>(places.size()) - 1;
    }
    if (is_in_order && static_cast<int64_t>(places.size()) == entries) return roots;
    for (const Part& part : last.on_gpu->parts) {
      TORCH_CHECK(!part.is_capturing(), "GradClipper: parameter_norms must be read outside of a ",
                  "CUDA graph's capture where parameters have no gradient, or share one");
    }
    const c10::Device device = last.on_gpu->parts[0].device;
    const at::Tensor index = accelerator::upload(at::tensor(places, at::kLong), device);
    return at::cat({roots, at::zeros({1}, roots.options())}).index_select(0, index);
  }

  // The Python objects, not their tensors: a module's conversion may swap the tensor of a
  // parameter.
  std::vector<py::object> sources_;
  std::shared_ptr<const Clipped> last_;
};

// Python's collector must see the parameters: one may refer back to its GradClipper.
inline void let_cycles_be_found(PyHeapTypeObject* heap_type) {
  PyTypeObject* const type = &heap_type->ht_type;
  type->tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
#if PY_VERSION_HEX >= 0x03090000
    Py_VISIT(Py_TYPE(self));
#endif
    if (!py::detail::is_holder_constructed(self)) return 0;
    for (const py::object& object : py::cast<ParameterList&>(py::handle(self)).sources()) {
      Py_VISIT(object.ptr());
    }
    return 0;
  };
  type->tp_clear = [](PyObject* self) {
    if (py::detail::is_holder_constructed(self)) {
      py::cast<ParameterList&>(py::handle(self)).clear();
    }
    return 0;
  };
}

}  // namespace fastclip
