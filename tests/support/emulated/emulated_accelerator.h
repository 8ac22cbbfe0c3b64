// csrc/binding/accelerator.h for the emulator: tensors in CPU memory stand for tensors on GPUs.
#pragma once

#include <ATen/ATen.h>

namespace fastclip::accelerator {

constexpr int kOnCpu = -1;

// Returns the number of the device that memory belongs to: 0, or what tests have set
// (controls.cpp).
int place_of(const void* data);
void* stream_of(int device);
// Places the tensor on a device and returns it. Where that matters, its memory is watched as long
// as it lives.
at::Tensor place(const at::Tensor& tensor, int device);
// Works as torch's guard does: a device that nothing has used yet becomes current again and stays
// unused.
void make_current(int device);
int current();

class OnDevice {
 public:
  explicit OnDevice(c10::Device device) : saved_(current()) { make_current(device.index()); }
  ~OnDevice() { make_current(saved_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int saved_;
};

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
  return place(tensor, device.index());
}

inline at::Tensor move(const at::Tensor& tensor, c10::Device device, at::ScalarType type) {
  const int target = device.is_cpu() ? kOnCpu : static_cast<int>(device.index());
  const bool is_there = place_of(storage_of(tensor.unsafeGetTensorImpl())) == target;
  if (is_there && tensor.scalar_type() == type) return tensor;
  return place(tensor.to(type, /*non_blocking=*/false, /*copy=*/true), target);
}

inline void record_use(const at::Tensor&, c10::Device) {}

inline at::Tensor upload(const at::Tensor& tensor, c10::Device device) {
  return place(tensor.clone(), device.index());
}

}  // namespace fastclip::accelerator
