// What a list is for, and which tensors it may hold: those that this extension's kernels take, or
// those that Triton's kernels take, on a GPU or, in Triton's interpreter, on the CPU.
#pragma once

#include <ATen/ATen.h>

#include "../cuda_launchers.h"

namespace fastclip {

// What a call does with the gradients that it collects.
struct Use {
  bool writes;      // copy-on-write storage is made the tensor's own first
  bool takes_norm;  // the ranks of a mesh do that together
};

constexpr Use kClips{true, true};
constexpr Use kChanges{true, false};
constexpr Use kReads{false, true};

enum class Takes { kNative, kGpu, kCpu };

inline bool takes_cpu(Takes takes) { return takes != Takes::kGpu; }

inline bool takes_gpu(Takes takes) {
  return takes == Takes::kNative ? cuda_launchers() != nullptr : takes == Takes::kGpu;
}

inline bool is_supported_device(const at::Tensor& grad, Takes takes) {
  return (grad.device().is_cpu() && takes_cpu(takes)) ||
         (grad.device().is_cuda() && takes_gpu(takes));
}

inline const char* supported_devices(Takes takes) {
  if (takes == Takes::kGpu) return " (supported: cuda)";
  if (takes == Takes::kCpu) return " (supported in Triton's interpreter: cpu)";
  return takes_gpu(takes) ? " (supported: cpu, cuda)"
                          : " (supported: cpu; fastclip._C has no CUDA kernels)";
}

}  // namespace fastclip
