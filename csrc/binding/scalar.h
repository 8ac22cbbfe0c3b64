// The scalars of a call and the flag found_inf, on the devices of the parts that need them.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "parts.h"
#include "walk/collector.h"

namespace fastclip {

inline bool is_gpu_tensor(const at::Tensor& tensor) {
  return cuda_launchers() != nullptr && accelerator::is_plain(tensor.unsafeGetTensorImpl());
}

inline bool is_plain_cpu_tensor(const at::Tensor& tensor) {
  return tensor.key_set() == plain_cpu_keys() && !is_gpu_tensor(tensor);
}

inline bool is_float(const at::Tensor& tensor) {
  DType dtype;
  return to_dtype(tensor.scalar_type(), &dtype);
}

// A number, or a tensor of one element on a GPU, which kernels read there.
struct Scalar {
  double value = 0;
  at::Tensor tensor;  // undefined: `value` counts

  Scalar() = default;
  Scalar(double number) : value(number) {}                  // NOLINT: a number is a scalar
  Scalar(at::Tensor on_gpu) : tensor(std::move(on_gpu)) {}  // NOLINT: so is a tensor on a GPU

  bool is_on_gpu() const { return tensor.defined(); }
  // Returns the value. Waits for the GPU if the scalar is there.
  double on_host() const { return is_on_gpu() ? tensor.item<double>() : value; }

  // Returns where the kernels of `device` read it as `type`; `held` keeps that memory alive.
  // Nothing is copied from host memory, as a CUDA graph requires.
  const void* on(c10::Device device, at::ScalarType type, std::vector<at::Tensor>* held) const {
    at::Tensor there = is_on_gpu() ? accelerator::move(tensor, device, type)
                                   : accelerator::empty({}, type, device).fill_(value);
    return held->emplace_back(std::move(there)).const_data_ptr();
  }
};

// Returns a scalar that no kernel writes while others read it: a copy if it lies in a gradient.
inline Scalar copy_if_held(const Gradients& gradients, const Scalar& scalar) {
  if (!scalar.is_on_gpu() || !gradients.holds(scalar.tensor.const_data_ptr())) return scalar;
  const at::Tensor& tensor = scalar.tensor;
  const c10::Device device = accelerator::device_of(tensor.unsafeGetTensorImpl());
  at::Tensor copy = accelerator::empty(tensor.sizes(), tensor.scalar_type(), device);
  return copy.copy_(tensor.detach());
}

// Returns a tensor of one element as it is on a GPU, or its value from the CPU.
inline Scalar scalar_of(const at::Tensor& tensor) {
  if (is_gpu_tensor(tensor)) return tensor;
  return tensor.item<double>();
}

using MaxNorm = std::variant<double, at::Tensor>;

// Returns a number, or a tensor on a GPU, which only work on a GPU can use.
inline Scalar max_norm_of(const MaxNorm& max_norm, bool is_on_gpu) {
  if (const double* const value = std::get_if<double>(&max_norm)) return *value;
  const at::Tensor& tensor = std::get<at::Tensor>(max_norm);
  if (!is_on_gpu || !is_gpu_tensor(tensor) || tensor.dim() != 0 || !is_float(tensor)) {
    throw Unsupported(ReasonKind::kCall, "max_norm is on device " + tensor.device().str() +
                                             " (supported: cpu, and for gradients on cuda a plain "
                                             "0-dim floating-point tensor there)");
  }
  return tensor;
}

inline Scalar max_norm_of(const MaxNorm& max_norm, const Gradients& gradients) {
  if (gradients.entries.empty()) return {};  // nothing to limit
  return copy_if_held(gradients, max_norm_of(max_norm, gradients.is_on_gpu));
}

// Checks that a tensor is float32 and has one element, and that kernels can read it.
inline void check_one_float32(const char* name, const at::Tensor& tensor) {
  // Python has checked this before, in better words (check_scalars of
  // fastclip/backends/tensors.py).
  TORCH_CHECK_VALUE(tensor.numel() == 1 && tensor.scalar_type() == at::kFloat, "GradList: ", name);
  if (!is_gpu_tensor(tensor) && !is_plain_cpu_tensor(tensor)) {
    throw Unsupported(ReasonKind::kCall, std::string(name) + " is on device " +
                                             tensor.device().str() +
                                             " (supported: plain tensors on cpu and cuda)");
  }
}

// Returns inv_scale, 1 if none is given.
inline Scalar inv_scale_of(const std::optional<at::Tensor>& inv_scale) {
  if (!inv_scale) return 1;
  check_one_float32("inv_scale", *inv_scale);
  return scalar_of(*inv_scale);
}

// found_inf, as each part of a list reads and sets it. A part on another device than the given
// tensor has its own copy, which starts with the tensor's value and is merged back into the tensor.
class FoundInf {
 public:
  explicit FoundInf(const std::optional<at::Tensor>& given) {
    if (!given) return;
    check_one_float32("found_inf", *given);
    given_ = *given;
  }

  bool is_given() const { return given_.defined(); }
  const at::Tensor& tensor() const { return given_; }

  // Makes the parts' flags. To be called before the first part is launched.
  void spread(const Parts& parts) {
    if (!is_given()) return;
    flags_.clear();
    for (const Part& part : parts) {
      if (part.is_gpu()) {
        flags_.push_back({accelerator::move(given_, part.device, at::kFloat), false});
      } else {
        flags_.push_back({{}, given_.item<float>() != 0});
      }
    }
  }

  // Returns where GPU kernels find a part's flag; null if none is given.
  float* on_gpu(size_t part) {
    return is_given() ? flags_[part].on_gpu.mutable_data_ptr<float>() : nullptr;
  }

  // Returns where CPU kernels find it.
  bool* on_cpu(size_t part) { return is_given() ? &flags_[part].on_cpu : nullptr; }

  // Returns whether a part on the CPU must not be written.
  bool stops(size_t part) const { return is_given() && flags_[part].on_cpu; }

  // Merges what the parts found into the given tensor and into each part's flag. Waits for a GPU if
  // the list, or the list and the tensor, lie partly on the CPU and partly on a GPU.
  void merge(const Parts& parts) {
    if (!is_given()) return;
    bool is_spread = false;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!parts[i].is_gpu()) {
        if (flags_[i].on_cpu) given_.fill_(1);
        is_spread |= is_gpu_tensor(given_);
      } else if (!flags_[i].on_gpu.is_same(given_)) {
        is_spread = true;
        const c10::Device device = is_gpu_tensor(given_)
                                       ? accelerator::device_of(given_.unsafeGetTensorImpl())
                                       : c10::Device(at::kCPU);
        const at::Tensor flag = accelerator::move(flags_[i].on_gpu, device, at::kFloat);
        given_.copy_(at::maximum(given_, flag.view(given_.sizes())));
      }
    }
    if (is_spread || parts.size() > 1) spread(parts);
  }

 private:
  struct Flag {
    at::Tensor on_gpu;
    bool on_cpu;
  };

  at::Tensor given_;         // undefined: none
  std::vector<Flag> flags_;  // one for each part
};

}  // namespace fastclip
