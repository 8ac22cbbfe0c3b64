// The Python module fastclip._C: walk, check, pack, run the kernels, wrap the result.
// With binding/*.h, which it alone includes, the only code that knows torch.
#include <torch/csrc/Exceptions.h>

#include "binding/collector.h"
#include "binding/engine.h"

namespace fastclip {
namespace {

// Thrown as Python's _C.NonFiniteError, before any gradient is written.
struct NonFinite {
  at::Tensor total_norm;
  std::vector<int64_t> positions;
};

PyObject* unsupported_error = nullptr;
PyObject* non_finite_error = nullptr;

void translate_exception(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const Unsupported& error) {
    PyErr_SetObject(unsupported_error, py::cast(error.reasons).ptr());
  } catch (const NonFinite& error) {
    PyErr_SetObject(non_finite_error, py::make_tuple(error.total_norm, error.positions).ptr());
  }
}

// A `.grad` may be a property that runs Python code, so the list is indexed afresh at each step.
template <typename Add>
void for_each_object(const py::list& objects, Collector* collector, Add add) {
  const auto object_at = [&](size_t i) -> PyObject* {
    const auto index = static_cast<Py_ssize_t>(i);
    return index < PyList_GET_SIZE(objects.ptr()) ? PyList_GET_ITEM(objects.ptr(), index) : nullptr;
  };
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(objects.ptr()); ++i) {
    collector->look_ahead(static_cast<size_t>(i), object_at);
    const auto object = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(objects.ptr(), i));
    add(object.ptr());
  }
}

Gradients collect_parameters(const py::list& parameters, bool writes) {
  Collector collector(parameters.size(), writes);
  for_each_object(parameters, &collector,
                  [&](PyObject* object) { collector.add_parameter(object); });
  return collector.finish_parameters();
}

Gradients collect_tensors(const py::list& tensors) {
  Collector collector(tensors.size(), false);
  for_each_object(tensors, &collector, [&](PyObject* object) { collector.add_tensor(object); });
  return collector.finish_tensors();
}

void check_norm_type(double norm_type) {
  if (Norm::supports(norm_type)) return;
  throw Unsupported{{"norm_type " + std::to_string(norm_type) + " (supported: above 0, and inf)"}};
}

at::Tensor norm_tensor(double total_norm, bool is_float64) {
  return at::scalar_tensor(total_norm,
                           at::device(at::kCPU).dtype(is_float64 ? at::kDouble : at::kFloat));
}

// What one pass over the gradients found.
struct Reduction {
  Norm norm;
  std::vector<double> combined;  // per entry, before the root
  bool is_float64;
  double total_norm;  // rounded to the norm's dtype
};

Reduction reduce(Gradients& gradients, double norm_type, bool is_float64) {
  if (!Norm::streams(norm_type)) gradients.own();
  const WithoutGil without_gil(gradients);
  Reduction result{Norm(norm_type, is_float64), {}, is_float64, 0};
  result.combined = reduce_entries(gradients.list, result.norm);
  result.total_norm = result.norm.root(combine_entries(result.combined, result.norm));
  if (!is_float64) result.total_norm = static_cast<float>(result.total_norm);
  return result;
}

// The sources whose gradient holds inf or nan. A float64 sum that overflowed holds none.
std::vector<int64_t> non_finite_positions(const Gradients& gradients, const Reduction& reduction) {
  const Norm maximum(INFINITY, false);
  std::vector<char> is_bad(gradients.entries.size());
  for (size_t i = 0; i < is_bad.size(); ++i) {
    if (std::isfinite(reduction.combined[i])) continue;
    TensorEntry entry = gradients.entries[i];
    entry.first_chunk = 0;
    TensorList alone{
        &entry,  1, gradients.list.chunk_size, chunks_of(entry.count, gradients.list.chunk_size),
        nullptr, 0};
    const std::vector<ChunkSpan> spans = spans_of(alone);
    alone.spans = spans.data();
    alone.span_count = static_cast<int64_t>(spans.size());
    is_bad[i] = !std::isfinite(reduce_entries(alone, maximum)[0]);
  }
  std::vector<int64_t> positions;
  for (size_t i = 0; i < gradients.entry_of_source.size(); ++i) {
    const int32_t entry = gradients.entry_of_source[i];
    if (entry >= 0 && is_bad[entry]) positions.push_back(static_cast<int64_t>(i));
  }
  return positions;
}

void check_finite(const Gradients& gradients, const Reduction& reduction) {
  if (std::isfinite(reduction.total_norm)) return;
  throw NonFinite{norm_tensor(reduction.total_norm, reduction.is_float64),
                  non_finite_positions(gradients, reduction)};
}

// Autograd learns of the change in place, as after torch's own multiplication, written or not.
void bump_versions(const Gradients& gradients) {
  for (c10::TensorImpl* const grad : gradients.tensors) grad->bump_version();
  for (c10::TensorImpl* const grad : gradients.duplicates) grad->bump_version();
}

void scale(const Gradients& gradients, double clip_coef) {
  bump_versions(gradients);
  const WithoutGil without_gil(gradients);
  scale_entries(gradients.list, clip_coef);
}

at::Tensor clip(const Gradients& gradients, const Reduction& reduction, double max_norm,
                bool error_if_nonfinite) {
  if (error_if_nonfinite) check_finite(gradients, reduction);
  scale(gradients, clip_coefficient(reduction.total_norm, max_norm, reduction.is_float64));
  return norm_tensor(reduction.total_norm, reduction.is_float64);
}

at::Tensor clip_grad_norm_(const py::list& parameters, double max_norm, double norm_type,
                           bool error_if_nonfinite) {
  check_norm_type(norm_type);
  Gradients gradients = collect_parameters(parameters, true);
  const KeepDenormals keep_denormals;
  const Reduction reduction = reduce(gradients, norm_type, gradients.has_float64);
  return clip(gradients, reduction, max_norm, error_if_nonfinite);
}

at::Tensor get_total_norm(const py::list& tensors, double norm_type, bool error_if_nonfinite,
                          std::optional<at::ScalarType> dtype) {
  check_norm_type(norm_type);
  Gradients gradients = collect_tensors(tensors);
  const KeepDenormals keep_denormals;
  const bool is_float64 = dtype ? *dtype == at::kDouble : gradients.has_float64;
  const Reduction reduction = reduce(gradients, norm_type, is_float64);
  if (error_if_nonfinite) check_finite(gradients, reduction);
  return norm_tensor(reduction.total_norm, is_float64);
}

void clip_grads_with_norm_(const py::list& parameters, double max_norm,
                           const at::Tensor& total_norm) {
  DType dtype;
  if (total_norm.key_set() != plain_cpu_keys() || total_norm.dim() != 0 ||
      !to_dtype(total_norm.scalar_type(), &dtype)) {
    throw Unsupported{{"total_norm must be a 0-dim floating-point tensor on the CPU"}};
  }
  const Gradients gradients = collect_parameters(parameters, true);
  const KeepDenormals keep_denormals;
  const bool is_float64 = dtype == DType::kFloat64;
  scale(gradients, clip_coefficient(total_norm.item<double>(), max_norm, is_float64));
}

// torch refuses a finite bound that the gradient's dtype cannot hold, and has its own rules for
// negative and NaN bounds: those go to the reference backend.
void check_clip_value(const Gradients& gradients, double clip_value) {
  if (std::signbit(clip_value) || std::isnan(clip_value)) {
    throw Unsupported{{"clip_value must not be negative or nan"}};
  }
  if (std::isinf(clip_value)) return;
  for (const TensorEntry& entry : gradients.entries) {
    if (c10::overflows<c10::Half, double>(clip_value) && entry.dtype == DType::kFloat16) {
      throw Unsupported{{"clip_value does not fit float16"}};
    }
    if (c10::overflows<c10::BFloat16, double>(clip_value) && entry.dtype == DType::kBFloat16) {
      throw Unsupported{{"clip_value does not fit bfloat16"}};
    }
    if (c10::overflows<float, double>(clip_value) && entry.dtype != DType::kFloat64) {
      throw Unsupported{{"clip_value does not fit float32"}};
    }
  }
}

void clip_grad_value_(const py::list& parameters, double clip_value) {
  const Gradients gradients = collect_parameters(parameters, true);
  check_clip_value(gradients, clip_value);
  bump_versions(gradients);
  const WithoutGil without_gil(gradients);
  clamp_entries(gradients.list, clip_value);
}

// New tensors: tensors[i] * clip_coef, evaluated as the in-place scale evaluates it.
std::vector<at::Tensor> scaled(const py::list& tensors, double clip_coef) {
  const Gradients gradients = collect_tensors(tensors);
  std::vector<at::Tensor> results;
  std::vector<char*> targets;
  for (c10::TensorImpl* const tensor : gradients.tensors) {
    results.push_back(at::empty_like(owner_of(tensor)));
    targets.push_back(static_cast<char*>(results.back().mutable_data_ptr()));
  }
  const WithoutGil without_gil(gradients);
  scale_entries_into(gradients.list, targets, clip_coef);
  return results;
}

// The parameters of a GradClipper, held strongly, and what the last clip saw of each.
class ParameterList {
 public:
  explicit ParameterList(const py::list& parameters) {
    for (const py::handle object : parameters) {
      sources_.push_back(py::reinterpret_borrow<py::object>(object));
    }
  }

  at::Tensor clip_grad_norm_(double max_norm, double norm_type, bool error_if_nonfinite) {
    check_norm_type(norm_type);
    Gradients gradients = collect();
    const KeepDenormals keep_denormals;
    const auto last = std::make_shared<const Last>(
        Last{reduce(gradients, norm_type, gradients.has_float64), gradients.entry_of_source});
    last_ = last;  // another thread may replace it while the GIL is released
    return clip(gradients, last->reduction, max_norm, error_if_nonfinite);
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
    return last_->reduction.is_float64 ? last_norms<double>(at::kDouble)
                                       : last_norms<float>(at::kFloat);
  }

 private:
  template <typename T>
  at::Tensor last_norms(at::ScalarType type) const {
    const auto size = static_cast<int64_t>(last_->entry_of_source.size());
    at::Tensor norms = at::empty({size}, at::device(at::kCPU).dtype(type));
    T* const values = norms.mutable_data_ptr<T>();
    const Reduction& reduction = last_->reduction;
    const auto entries = static_cast<int64_t>(reduction.combined.size());
    if (entries == size) {  // every parameter has a gradient of its own, in order
      reduction.norm.roots(reduction.combined.data(), size, values);
      return norms;
    }
    std::vector<T> roots(entries);
    reduction.norm.roots(reduction.combined.data(), entries, roots.data());
    for (int64_t i = 0; i < size; ++i) {
      const int32_t entry = last_->entry_of_source[i];
      values[i] = entry < 0 ? T(0) : roots[entry];
    }
    return norms;
  }

  struct Last {
    Reduction reduction;
    std::vector<int32_t> entry_of_source;
  };

  Gradients collect() const {
    Collector collector(sources_.size(), true);
    const auto object_at = [this](size_t i) {
      return i < sources_.size() ? sources_[i].ptr() : nullptr;
    };
    for (size_t i = 0; i < sources_.size(); ++i) {
      collector.look_ahead(i, object_at);
      collector.add_parameter(sources_[i].ptr());
    }
    return collector.finish_parameters();
  }

  // The Python objects, not their tensors: a module's conversion may swap the tensor of a
  // parameter.
  std::vector<py::object> sources_;
  std::shared_ptr<const Last> last_;
};

// Python's collector must see the parameters: one may refer back to its GradClipper.
void let_cycles_be_found(PyHeapTypeObject* heap_type) {
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

std::vector<std::string> instruction_sets() {
  int size = 0;
  const ChunkKernels* const* tables = runnable_kernels(&size);
  std::vector<std::string> names;
  for (int i = 0; i < size; ++i) names.emplace_back(tables[i]->name);
  return names;
}

}  // namespace
}  // namespace fastclip

PYBIND11_MODULE(_C, module) {
  using namespace fastclip;
  using torch::wrap_pybind_function;  // turns TORCH_WARN into Python warnings
  unsupported_error = PyErr_NewException("fastclip._C.UnsupportedError", nullptr, nullptr);
  non_finite_error = PyErr_NewException("fastclip._C.NonFiniteError", nullptr, nullptr);
  module.attr("UnsupportedError") = py::handle(unsupported_error);
  module.attr("NonFiniteError") = py::handle(non_finite_error);
  py::register_exception_translator(&translate_exception);

  module.def("clip_grad_norm_", wrap_pybind_function(&clip_grad_norm_), py::arg("parameters"),
             py::arg("max_norm"), py::arg("norm_type"), py::arg("error_if_nonfinite"));
  module.def("get_total_norm", wrap_pybind_function(&get_total_norm), py::arg("tensors"),
             py::arg("norm_type"), py::arg("error_if_nonfinite"), py::arg("dtype").none(true));
  module.def("clip_grads_with_norm_", wrap_pybind_function(&clip_grads_with_norm_),
             py::arg("parameters"), py::arg("max_norm"), py::arg("total_norm"));
  module.def("clip_grad_value_", wrap_pybind_function(&clip_grad_value_), py::arg("parameters"),
             py::arg("clip_value"));
  module.def("scaled", wrap_pybind_function(&scaled), py::arg("tensors"), py::arg("clip_coef"));

  py::class_<ParameterList>(module, "ParameterList", py::custom_type_setup(&let_cycles_be_found))
      .def(py::init<const py::list&>(), py::arg("parameters"))
      .def("clip_grad_norm_", wrap_pybind_function(&ParameterList::clip_grad_norm_),
           py::arg("max_norm"), py::arg("norm_type"), py::arg("error_if_nonfinite"))
      .def("parameter_norms", wrap_pybind_function(&ParameterList::parameter_norms));

  module.def("instruction_sets", &instruction_sets);
  module.def("instruction_set", [] { return std::string(active_kernels().name); });
  module.def(
      "set_instruction_set",
      [](const std::string& name) {
        TORCH_CHECK_VALUE(select_kernels(name.c_str()), "instruction set \"", name,
                          "\" is not one that this build and CPU can run");
      },
      py::arg("name"));
}
