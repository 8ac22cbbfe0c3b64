// csrc/binding/accelerator.h for the emulator: tensors in CPU memory stand for tensors on GPUs.
#pragma once

#include <ATen/ATen.h>

namespace fastclip::accelerator {

constexpr int kOnCpu = -1;

// The number of the device that memory belongs to: 0, or what tests said (controls.cpp).
int place_of(const void* data);
void* stream_of(int device);
void keep(const at::Tensor& tensor, int device);

inline const void* storage_of(const c10::TensorImpl* tensor) {
  const c10::Storage& storage = tensor->unsafe_storage();
  return storage ? storage.data() : nullptr;
}

inline bool is_plain(const c10::TensorImpl* tensor) {
  return tensor->key_set() == plain_cpu_keys() && place_of(storage_of(tensor)) != kOnCpu;
}

inline c10::Device device_of(const c10::TensorImpl* tensor) {
  return {at::kCUDA, static_cast<c10::DeviceIndex>(place_of(storage_of(tensor)))};
}

inline void* current_stream(c10::Device device) { return stream_of(device.index()); }

// Memory starts as NaN in every dtype.
inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type, c10::Device device) {
  at::Tensor tensor = at::empty(sizes, at::device(at::kCPU).dtype(type));
  __builtin_memset(tensor.mutable_data_ptr(), 0xFF, tensor.nbytes());
  keep(tensor, device.index());
  return tensor;
}

inline at::Tensor move(const at::Tensor& tensor, c10::Device, at::ScalarType type) {
  return tensor.to(type);
}

inline at::Tensor upload(const at::Tensor& tensor, c10::Device) { return tensor; }

}  // namespace fastclip::accelerator
