// The Python module fastclip._C: walk, check, pack, run the kernels, wrap the result.
// With binding/*.h, which it alone includes, the only code that knows torch.
#include <torch/csrc/Exceptions.h>

#include "binding/packed_list.h"
#include "binding/parameter_list.h"

namespace fastclip {
namespace {

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

Gradients collect_parameters(const py::list& parameters, Use use, Takes takes = Takes::kNative) {
  Collector collector(parameters.size(), use, takes);
  for_each_object(parameters, &collector,
                  [&](PyObject* object) { collector.add_parameter(object); });
  return collector.finish_parameters();
}

Gradients collect_tensors(const py::list& tensors, Takes takes = Takes::kNative) {
  Collector collector(tensors.size(), kReads, takes);
  for_each_object(tensors, &collector, [&](PyObject* object) { collector.add_tensor(object); });
  return collector.finish_tensors();
}

std::optional<at::Tensor> clip_grad_norm_(const py::list& parameters, const MaxNorm& max_norm,
                                          double norm_type, bool error_if_nonfinite) {
  check_norm_type(norm_type);
  Gradients gradients = collect_parameters(parameters, kClips);
  Clipped clipped{{norm_type, gradients.has_float64, error_if_nonfinite}, {}, {}, {}};
  return clip(Operation{"clip_grad_norm_"}, gradients, max_norm, &clipped);
}

at::Tensor get_total_norm(const py::list& tensors, double norm_type, bool error_if_nonfinite,
                          std::optional<at::ScalarType> dtype) {
  check_norm_type(norm_type);
  Gradients gradients = collect_tensors(tensors);
  const bool is_float64 = dtype ? *dtype == at::kDouble : gradients.has_float64;
  if (gradients.is_on_gpu) {
    return norm_on_gpu(Operation{"get_total_norm"}, gradients,
                       {norm_type, is_float64, error_if_nonfinite});
  }
  const KeepDenormals keep_denormals;
  const Reduction reduction = reduce(gradients, norm_type, is_float64);
  if (error_if_nonfinite) check_finite(gradients, reduction);
  return norm_tensor(reduction.total_norm, is_float64);
}

// The coefficient of a norm that lies on the CPU.
double coef_of(const at::Tensor& total_norm, double max_norm) {
  const bool is_float64 = total_norm.scalar_type() == at::kDouble;
  return clip_coefficient(total_norm.item<double>(), max_norm, is_float64);
}

// Returns whether there are gradients.
bool clip_grads_with_norm_(const py::list& parameters, const MaxNorm& max_norm,
                           const at::Tensor& total_norm) {
  DType dtype;
  const bool is_on_gpu = is_gpu_tensor(total_norm);
  if ((!is_on_gpu && total_norm.key_set() != plain_cpu_keys()) || total_norm.dim() != 0 ||
      !to_dtype(total_norm.scalar_type(), &dtype)) {
    throw Unsupported{{"total_norm must be a plain 0-dim floating-point tensor"}};
  }
  const Gradients gradients = collect_parameters(parameters, kChanges);
  const Limit limit = limit_of(max_norm, gradients);
  const KeepDenormals keep_denormals;
  if (gradients.is_on_gpu) {
    scale_on_gpu(Operation{"clip_grads_with_norm_"}, gradients, limit,
                 apart_from(gradients, total_norm), is_on_gpu);
  } else if (!is_on_gpu) {
    scale(gradients, coef_of(total_norm, limit.value));
  } else if (!gradients.entries.empty()) {
    throw Unsupported{{"total_norm is on a GPU and the gradients are on the CPU"}};
  }
  return !gradients.entries.empty();
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

// Returns whether there are gradients.
bool clip_grad_value_(const py::list& parameters, double clip_value) {
  const Gradients gradients = collect_parameters(parameters, kChanges);
  check_clip_value(gradients, clip_value);
  if (gradients.is_on_gpu) {
    clamp_on_gpu(Operation{"clip_grad_value_"}, gradients, clip_value);
    return true;
  }
  bump_versions(gradients);
  const WithoutGil without_gil(gradients);
  clamp_entries(gradients.on_cpu.list, clip_value);
  return !gradients.entries.empty();
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
  if (gradients.is_on_gpu) {
    scale_on_gpu_into(Operation{"scaled"}, gradients, targets, clip_coef);
    return results;
  }
  const WithoutGil without_gil(gradients);
  scale_entries_into(gradients.on_cpu.list, targets, clip_coef);
  return results;
}

Takes takes_of(bool is_interpreted) { return is_interpreted ? Takes::kCpu : Takes::kGpu; }

PackedList pack_parameters(const py::list& parameters, bool is_interpreted, bool takes_norm) {
  const Use use = takes_norm ? kClips : kChanges;
  return PackedList(collect_parameters(parameters, use, takes_of(is_interpreted)));
}

PackedList pack_tensors(const py::list& tensors, bool is_interpreted) {
  return PackedList(collect_tensors(tensors, takes_of(is_interpreted)));
}

// Why the CUDA kernels cannot run on a device; nothing if they can.
std::vector<std::string> cuda_reasons(int device) {
  if (cuda_launchers() == nullptr) return {"fastclip._C has no CUDA kernels"};
  const auto index = static_cast<c10::DeviceIndex>(device);
  const std::string reason = why_device_cannot({at::kCUDA, index});
  return reason.empty() ? std::vector<std::string>() : std::vector<std::string>{reason};
}

void fuse_clips(bool is_fused) { clip_mode() = is_fused ? CudaMode::kFused : CudaMode::kSplit; }

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
  py::register_local_exception_translator(&translate_exception);

  module.def("clip_grad_norm_", wrap_pybind_function(&clip_grad_norm_), py::arg("parameters"),
             py::arg("max_norm"), py::arg("norm_type"), py::arg("error_if_nonfinite"));
  module.def("get_total_norm", wrap_pybind_function(&get_total_norm), py::arg("tensors"),
             py::arg("norm_type"), py::arg("error_if_nonfinite"), py::arg("dtype").none(true));
  module.def("clip_grads_with_norm_", wrap_pybind_function(&clip_grads_with_norm_),
             py::arg("parameters"), py::arg("max_norm"), py::arg("total_norm"));
  module.def("clip_grad_value_", wrap_pybind_function(&clip_grad_value_), py::arg("parameters"),
             py::arg("clip_value"));
  module.def("scaled", wrap_pybind_function(&scaled), py::arg("tensors"), py::arg("clip_coef"));

  py::class_<PackedList>(module, "PackedList", py::module_local())
      .def_property_readonly("size", &PackedList::size)
      .def_property_readonly("device", &PackedList::device)
      .def_property_readonly("chunk_size", &PackedList::chunk_size)
      .def_property_readonly("groups", &PackedList::groups)
      .def_property_readonly("mix", &PackedList::mix)
      .def_property_readonly("has_float64", &PackedList::has_float64)
      .def_property_readonly("places", &PackedList::places)
      .def_property_readonly("is_in_order", &PackedList::is_in_order)
      .def("holds", &PackedList::holds, py::arg("address"))
      .def("write", wrap_pybind_function(&PackedList::write), py::arg("words"), py::arg("fields"),
           py::arg("targets"))
      .def("bump_versions", &PackedList::bump);

  py::class_<ParameterList>(module, "ParameterList", py::module_local(),
                            py::custom_type_setup(&let_cycles_be_found))
      .def(py::init<const py::list&>(), py::arg("parameters"))
      .def("clip_grad_norm_", wrap_pybind_function(&ParameterList::clip_grad_norm_),
           py::arg("max_norm"), py::arg("norm_type"), py::arg("error_if_nonfinite"))
      .def("parameter_norms", wrap_pybind_function(&ParameterList::parameter_norms))
      .def(
          "pack",
          [](const ParameterList& list, bool is_interpreted) {
            return PackedList(list.collect(takes_of(is_interpreted)));
          },
          py::arg("is_interpreted"));

  module.def("pack_parameters", wrap_pybind_function(&pack_parameters), py::arg("parameters"),
             py::arg("is_interpreted"), py::arg("takes_norm"));
  module.def("pack_tensors", wrap_pybind_function(&pack_tensors), py::arg("tensors"),
             py::arg("is_interpreted"));

  module.def("fuse_clips", &fuse_clips, py::arg("is_fused"));
  module.def("cuda_reasons", wrap_pybind_function(&cuda_reasons), py::arg("device"));
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
