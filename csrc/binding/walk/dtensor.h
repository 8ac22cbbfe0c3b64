// DTensors: what the binding must know about them in order to leave them to the reference backend.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

namespace fastclip {

// DTENSOR_REASON of fastclip/backends/triton/torch_list.py is the same text.
constexpr const char* kDTensorReason =
    "a DTensor, whose ranks clip together (supported: plain strided tensors)";

// Returns whether an object is a DTensor. The class is looked up at each call and never imported:
// where nobody has imported it, there are no DTensors.
inline bool is_dtensor(PyObject* object) {
  PyObject* const modules = PyImport_GetModuleDict();
  PyObject* const module = PyDict_GetItemString(modules, "torch.distributed.tensor");
  if (module == nullptr) return false;
  const auto type = py::reinterpret_steal<py::object>(PyObject_GetAttrString(module, "DTensor"));
  if (!type) {
    PyErr_Clear();  // the module is still being imported
    return false;
  }
  return PyType_Check(type.ptr()) &&
         PyType_IsSubtype(Py_TYPE(object), reinterpret_cast<PyTypeObject*>(type.ptr()));
}

inline bool is_dtensor(const at::Tensor& tensor) {
  if (!tensor.key_set().has(c10::DispatchKey::Python)) return false;
  return is_dtensor(py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor)).ptr());
}

// Returns whether a parameter without a gradient on this rank may have one on others, as a DTensor
// may. Those ranks then wait for this one to take its part in the norm.
inline bool may_have_gradient_elsewhere(PyObject* parameter) {
  return is_dtensor(parameter) && THPVariable_Unpack(parameter).requires_grad();
}

}  // namespace fastclip
