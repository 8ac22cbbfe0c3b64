// GPU tensors as the binding sees them. Builds over the emulator include
// tests/support/emulated/emulated_accelerator.h instead, in which tensors in CPU memory stand for
// tensors on GPUs.
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

// For torch 2.10, which offers C++ no way to the stream's handle without CUDA's headers.
template <typename Guard>
void* handle_of(const Guard&, c10::Stream stream, long) {
  const py::gil_scoped_acquire gil;
  const py::object current = py::module_::import("torch._C").attr("_cuda_getCurrentRawStream");
  return reinterpret_cast<void*>(current(stream.device_index()).cast<uintptr_t>());
}

// Returns the stream that torch's own operations would run on, as a cudaStream_t.
inline void* current_stream(c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return handle_of(guard, guard.getStream(device), 0);
}

// Makes a device current. The binding needs torch's guard, because torch knows which devices
// nothing has used yet: making such a device current again would create a context of hundreds of
// megabytes on it.
using OnDevice = c10::DeviceGuard;

inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type, c10::Device device) {
  return at::empty(sizes, at::device(device).dtype(type));
}

// Returns the tensor on the device and of the type; it is the tensor itself if it is both already.
// A copy between GPUs orders their streams; a copy from or to the CPU waits.
inline at::Tensor move(const at::Tensor& tensor, c10::Device device, at::ScalarType type) {
  return tensor.to(device, type);
}

// Keeps the tensor's memory from being reused before the device's current stream is done with it.
inline void record_use(const at::Tensor& tensor, c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.recordDataPtrOnStream(tensor.storage().data_ptr(), guard.getStream(device));
}

}  // namespace fastclip::accelerator

#endif
