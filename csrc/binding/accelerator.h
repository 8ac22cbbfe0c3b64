// GPU tensors as the binding sees them. tests/emulator has its own version, in which tensors in CPU
// memory stand for tensors on GPUs.
#pragma once

#include "walk/plain_keys.h"

#ifdef FASTCLIP_EMULATOR
#include "emulated_accelerator.h"
#else

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/utils/pybind.h>

namespace fastclip::accelerator {

inline bool is_plain(const c10::TensorImpl* tensor) {
  static const c10::DispatchKeySet keys = plain_keys(c10::BackendComponent::CUDABit);
  return tensor->key_set() == keys;
}

inline c10::Device device_of(const c10::TensorImpl* tensor) { return tensor->device(); }

template <typename Guard>
auto handle_of(const Guard& guard, c10::Stream stream, int)
    -> decltype(guard.getStreamNativeHandle(stream)) {
  return guard.getStreamNativeHandle(stream);
}

// torch 2.10 has no way from C++ without CUDA's headers.
template <typename Guard>
void* handle_of(const Guard&, c10::Stream stream, long) {
  const py::gil_scoped_acquire gil;
  const py::object current = py::module_::import("torch._C").attr("_cuda_getCurrentRawStream");
  return reinterpret_cast<void*>(current(stream.device_index()).cast<uintptr_t>());
}

// The stream that torch's own operations would run on, as a cudaStream_t.
inline void* current_stream(c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return handle_of(guard, guard.getStream(device), 0);
}

// Makes a device current. torch's guard knows what the launchers cannot: to make a device current
// again that nothing has used yet would cost it a context of hundreds of megabytes.
using OnDevice = c10::DeviceGuard;

inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type, c10::Device device) {
  return at::empty(sizes, at::device(device).dtype(type));
}

// On the device and of the type; the tensor itself where it is both. Between GPUs the copy orders
// their streams, from and to the CPU it waits.
inline at::Tensor move(const at::Tensor& tensor, c10::Device device, at::ScalarType type) {
  return tensor.to(device, type);
}

// Memory that the current stream of the device is about to use is not given to another use before.
inline void record_use(const at::Tensor& tensor, c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.recordDataPtrOnStream(tensor.storage().data_ptr(), guard.getStream(device));
}

// From pinned memory, so that nobody waits.
inline at::Tensor upload(const at::Tensor& tensor, c10::Device device) {
  return tensor.pin_memory().to(device, tensor.scalar_type(), /*non_blocking=*/true);
}

}  // namespace fastclip::accelerator

#endif
