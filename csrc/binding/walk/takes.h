// What a list is for, and which tensors it may hold: those that this extension's kernels take, or
// those that Triton's kernels take, on a GPU or, in Triton's interpreter, on the CPU.
#pragma once

#include <ATen/ATen.h>

#include "../../cuda_launchers.h"
#include "reasons.h"

namespace fastclip {

// What the sources of a list are; the numbers of Kind in fastclip/backends/request.py.
enum class Kind : int { kParameters = 0, kTensors = 1, kReadOnly = 2 };

// What an operation does with the gradients that it collects.
struct Use {
  bool writes;      // copy-on-write storage is made the tensor's own first, and equal ones are one
  bool takes_norm;  // the ranks of a mesh do that together
};

// The numbers of Takes in fastclip/backends/extension.py.
enum class Takes : int { kNative = 0, kTritonOnGpu = 1, kTritonInterpreted = 2 };

inline bool takes_cpu(Takes takes) { return takes != Takes::kTritonOnGpu; }

inline bool takes_gpu(Takes takes) {
  return takes == Takes::kNative ? cuda_launchers() != nullptr : takes == Takes::kTritonOnGpu;
}

inline bool is_supported_device(const at::Tensor& grad, Takes takes) {
  return (grad.device().is_cpu() && takes_cpu(takes)) ||
         (grad.device().is_cuda() && takes_gpu(takes));
}

inline Reason why_not_on_device(const at::Tensor& grad, Takes takes) {
  const std::string device = "device " + grad.device().str();
  if (takes == Takes::kTritonOnGpu) return {ReasonKind::kTensors, device + " (supported: cuda)"};
  if (takes == Takes::kTritonInterpreted) {
    return {ReasonKind::kTensors, device + " (supported in Triton's interpreter: cpu)"};
  }
  if (takes_gpu(takes)) return {ReasonKind::kTensors, device + " (supported: cpu, cuda)"};
  return {grad.device().is_cuda() ? ReasonKind::kNotBuilt : ReasonKind::kTensors,
          device + " (supported: cpu; fastclip._C has no CUDA kernels)"};
}

}  // namespace fastclip
