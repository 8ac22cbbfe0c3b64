// The Python module fastclip._C: the bound list, its errors, and facts about the machine. This file
// and the headers below csrc/binding, which only it includes, are the only code that knows torch.
// They are one translation unit because torch/extension.h alone takes a compiler most of a minute,
// and every further source would pay that again.
#include <torch/csrc/Exceptions.h>

#include "binding/grad_list.h"

namespace fastclip {
namespace {

PyObject* unsupported_error = nullptr;
PyObject* non_finite_error = nullptr;

void translate_exception(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const Unsupported& error) {
    py::list reasons;
    for (const Reason& reason : error.reasons) {
      reasons.append(py::make_tuple(static_cast<int>(reason.kind), reason.text));
    }
    PyErr_SetObject(unsupported_error, reasons.ptr());
  } catch (const NonFinite& error) {
    auto gradients = GradList::held_list(error.read, Kind::kReadOnly, Kernels::kNative);
    const py::tuple arguments =
        py::make_tuple(std::make_unique<Remains>(error.found), std::move(gradients));
    PyErr_SetObject(non_finite_error, arguments.ptr());
  }
}

// Python's collector must see the sources: a parameter may refer back to its GradClipper.
void support_garbage_collection(PyHeapTypeObject* heap_type) {
  PyTypeObject* const type = &heap_type->ht_type;
  type->tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!py::detail::is_holder_constructed(self)) return 0;
    Py_VISIT(py::cast<GradList&>(py::handle(self)).sources().ptr());
    return 0;
  };
  type->tp_clear = [](PyObject* self) {
    if (py::detail::is_holder_constructed(self)) {
      py::cast<GradList&>(py::handle(self)).clear();
    }
    return 0;
  };
}

// Returns why the CUDA kernels cannot run on a device; empty if they can.
std::vector<std::string> cuda_reasons(int device) {
  if (cuda_launchers() == nullptr) return {"fastclip._C has no CUDA kernels"};
  const auto index = static_cast<c10::DeviceIndex>(device);
  const std::string reason = why_device_cannot({at::kCUDA, index});
  return reason.empty() ? std::vector<std::string>() : std::vector<std::string>{reason};
}

std::vector<std::string> instruction_sets() {
  int size = 0;
  const ChunkKernels* const* tables = runnable_kernels(&size);
  std::vector<std::string> names;
  for (int i = 0; i < size; ++i) names.emplace_back(tables[i]->name);
  return names;
}

void set_instruction_set(const std::string& name) {
  TORCH_CHECK_VALUE(select_kernels(name.c_str()), "instruction set \"", name,
                    "\" is not one that this build and CPU can run");
}

using Optional = std::optional<at::Tensor>;

// Reads a ClipRequest of fastclip/backends/request.py, which is a tuple. As separate arguments its
// fields would cost a call 0.2 us.
ClipRequest request_of(const py::tuple& fields) {
  TORCH_CHECK_VALUE(fields.size() == 8, "GradList: request must be a ClipRequest");
  const auto field = [&](size_t i) { return py::handle(PyTuple_GET_ITEM(fields.ptr(), i)); };
  const auto tensor = [&](size_t i) {
    return field(i).is_none() ? Optional() : field(i).cast<Optional>();
  };
  return {.max_norm = field(0).cast<MaxNorm>(),
          .norm_type = field(1).cast<double>(),
          .error_if_nonfinite = field(2).cast<bool>(),
          .inv_scale = tensor(3),
          .found_inf = tensor(4),
          .writes = field(5).cast<bool>(),
          .dtype = field(6).cast<std::optional<at::ScalarType>>()};
}

std::unique_ptr<Remains> clip_and_keep(GradList& list, const py::tuple& request, bool is_fused) {
  const CudaMode mode = is_fused ? CudaMode::kFused : CudaMode::kSplit;
  auto remains = std::make_unique<Remains>();
  list.clip(request_of(request), mode, remains.get());
  return remains;
}

// Returns total_norm only: making a Python object of the rest takes 0.3 us.
Optional clip(GradList& list, const py::tuple& request, bool is_fused) {
  const CudaMode mode = is_fused ? CudaMode::kFused : CudaMode::kSplit;
  Remains remains;
  list.clip(request_of(request), mode, &remains);
  return remains.total_norm();
}

// Returns total_norm and clip_coef for a total, which may include the sums of other lists.
std::pair<at::Tensor, at::Tensor> finish(const at::Tensor& total, double norm_type,
                                         at::ScalarType dtype, const MaxNorm& max_norm,
                                         const Optional& inv_scale) {
  check_norm_type(norm_type);
  TORCH_CHECK_VALUE(total.dim() == 0 && total.scalar_type() == at::kDouble,
                    "fastclip: total must be a 0-dim float64 tensor (got ", total.dim(),
                    " dimensions of ", total.scalar_type(), ")");
  const bool is_on_gpu = is_gpu_tensor(total);
  if (!is_on_gpu && !is_plain_cpu_tensor(total)) {
    throw Unsupported(ReasonKind::kCall, "total is on device " + total.device().str() +
                                             " (supported: plain tensors on cpu and cuda)");
  }
  const c10::Device device =
      is_on_gpu ? accelerator::device_of(total.unsafeGetTensorImpl()) : c10::Device(at::kCPU);
  const KeepDenormals keep_denormals;
  const NormOptions options{norm_type, dtype == at::kDouble};
  const Finished finished =
      finish_totals({scalar_of(total)}, device, options,
                    {max_norm_of(max_norm, is_on_gpu), inv_scale_of(inv_scale)});
  const Scalar& coef = finished.clip_coef;
  return {finished.total_norm,
          coef.is_on_gpu() ? coef.tensor : scalar_tensor(coef.value, options.is_float64)};
}

// This is a function and no constructor, because Python takes 0.1 us longer to call a class.
std::unique_ptr<GradList> gather(py::list sources, int kind, int kernels) {
  return std::make_unique<GradList>(std::move(sources), kind, kernels);
}

// Returns the getter of a property of a held list's packing.
template <typename Get>
auto packed(Get get) {
  return [get](const GradList& list) { return (list.packing().*get)(); };
}

void bind_grad_list(py::module_& module) {
  using torch::wrap_pybind_function;  // turns TORCH_WARN into Python warnings
  const auto none = [](const char* name) { return py::arg(name).none(true); };
  py::class_<GradList>(module, "GradList", py::module_local(),
                       py::custom_type_setup(&support_garbage_collection))
      .def("hold", wrap_pybind_function(&GradList::hold), py::arg("takes_norm"))
      .def("clip", wrap_pybind_function(&clip), py::arg("request"), py::arg("is_fused"))
      .def("clip_and_keep", wrap_pybind_function(&clip_and_keep), py::arg("request"),
           py::arg("is_fused"))
      .def("reduce", wrap_pybind_function(&GradList::reduce), py::arg("norm_type"), none("dtype"),
           none("found_inf"))
      .def("scale", wrap_pybind_function(&GradList::scale), py::arg("by"), none("inv_scale"),
           none("found_inf"))
      .def("scale_by_norm", wrap_pybind_function(&GradList::scale_by_norm), py::arg("max_norm"),
           py::arg("total_norm"), none("inv_scale"), none("found_inf"))
      .def("scale_into", wrap_pybind_function(&GradList::scale_into), py::arg("targets"),
           py::arg("by"), none("inv_scale"), none("found_inf"))
      .def("clamp", wrap_pybind_function(&GradList::clamp), py::arg("clip_value"),
           none("inv_scale"), none("found_inf"))
      .def_property_readonly("size", packed(&Packing::size))
      .def_property_readonly("device", packed(&Packing::device))
      .def_property_readonly("chunk_size", packed(&Packing::chunk_size))
      .def_property_readonly("groups", packed(&Packing::groups))
      .def_property_readonly("mix", packed(&Packing::mix))
      .def_property_readonly("has_float64", packed(&Packing::has_float64))
      .def_property_readonly("places", packed(&Packing::places))
      .def(
          "holds",
          [](const GradList& list, uint64_t address) { return list.packing().holds(address); },
          py::arg("address"))
      .def("write",
           wrap_pybind_function([](const GradList& list, const at::Tensor& words,
                                   const std::vector<int64_t>& fields,
                                   const std::vector<uint64_t>& targets) {
             list.packing().write(words, fields, targets);
           }),
           py::arg("words"), py::arg("fields"), py::arg("targets"))
      .def("addresses_of",
           wrap_pybind_function([](const GradList& list, const std::vector<at::Tensor>& targets) {
             return list.packing().addresses_of(targets);
           }),
           py::arg("targets"))
      .def("bump_versions", packed(&Packing::bump_versions));
}

}  // namespace
}  // namespace fastclip

PYBIND11_MODULE(_C, module) {
  using namespace fastclip;
  using torch::wrap_pybind_function;
  unsupported_error = PyErr_NewException("fastclip._C.UnsupportedError", nullptr, nullptr);
  non_finite_error = PyErr_NewException("fastclip._C.NonFiniteError", nullptr, nullptr);
  module.attr("UnsupportedError") = py::handle(unsupported_error);
  module.attr("NonFiniteError") = py::handle(non_finite_error);
  py::register_local_exception_translator(&translate_exception);

  py::class_<Remains>(module, "Remains", py::module_local())
      .def_property_readonly("total_norm", &Remains::total_norm)
      .def("clip_coef", wrap_pybind_function(&Remains::clip_coef))
      .def("sums", wrap_pybind_function(&Remains::sums))
      .def("norms", wrap_pybind_function(&Remains::norms))
      .def("is_capturing", wrap_pybind_function(&Remains::is_capturing));
  bind_grad_list(module);

  module.def("gather", &gather, py::arg("sources"), py::arg("kind"), py::arg("kernels"));
  module.def("finish", wrap_pybind_function(&finish), py::arg("total"), py::arg("norm_type"),
             py::arg("dtype"), py::arg("max_norm"), py::arg("inv_scale").none(true));
  module.def("cuda_reasons", wrap_pybind_function(&cuda_reasons), py::arg("device"));
  module.def("instruction_sets", &instruction_sets);
  module.def("instruction_set", [] { return std::string(active_kernels().name); });
  module.def("set_instruction_set", &set_instruction_set, py::arg("name"));
}
