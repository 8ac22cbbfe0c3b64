// DTensors: what the binding must know of them in order to leave them to the reference backend.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

namespace fastclip {

// Packing by torch's operations says the same (fastclip/backends/triton/torch_list.py).
constexpr const char* kDTensorReason =
    "a DTensor, whose ranks clip together (supported: plain strided tensors)";

// Asks for the class anew, without importing it: where nobody has, there are no DTensors.
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

// A DTensor without a gradient on this rank may have one on others, which then wait for this rank
// to take its part in the norm.
inline bool may_have_gradient_elsewhere(PyObject* parameter) {
  return is_dtensor(parameter) && THPVariable_Unpack(parameter).requires_grad();
}

}  // namespace fastclip
