// What the sources of a list are, what an operation does with their gradients, and whose kernels
// work on them: this extension's or Triton's.
#pragma once

#include <ATen/ATen.h>

#include "../../cuda_launchers.h"
#include "reasons.h"

namespace fastclip {

// What the sources of a list are; the numbers of Kind in fastclip/backends/request.py.
enum class Kind : int { kParameters = 0, kTensors = 1, kReadOnly = 2 };

// What an operation does with the gradients that it collects.
struct Use {
  // Writes them: equal gradients become one entry, and each gets storage that no other tensor
  // reads.
  bool writes;
  // Takes their norm, which the ranks of a mesh do together.
  bool takes_norm;
};

// Whose kernels a list is for. Triton's run on a GPU or, in Triton's interpreter, on the CPU. The
// numbers are those of Kernels in fastclip/backends/extension.py.
enum class Kernels : int { kNative = 0, kTritonOnGpu = 1, kTritonInterpreted = 2 };

inline bool reach_cpu(Kernels kernels) { return kernels != Kernels::kTritonOnGpu; }

inline bool reach_gpu(Kernels kernels) {
  return kernels == Kernels::kNative ? cuda_launchers() != nullptr
                                     : kernels == Kernels::kTritonOnGpu;
}

inline bool is_supported_device(const at::Tensor& grad, Kernels kernels) {
  return (grad.device().is_cpu() && reach_cpu(kernels)) ||
         (grad.device().is_cuda() && reach_gpu(kernels));
}

inline Reason why_not_on_device(const at::Tensor& grad, Kernels kernels) {
  const std::string device = "device " + grad.device().str();
  if (kernels == Kernels::kTritonOnGpu)
    return {ReasonKind::kTensors, device + " (supported: cuda)"};
  if (kernels == Kernels::kTritonInterpreted) {
    return {ReasonKind::kTensors, device + " (supported in Triton's interpreter: cpu)"};
  }
  if (reach_gpu(kernels)) return {ReasonKind::kTensors, device + " (supported: cpu, cuda)"};
  return {grad.device().is_cuda() ? ReasonKind::kNotBuilt : ReasonKind::kTensors,
          device + " (supported: cpu; fastclip._C has no CUDA kernels)"};
}

}  // namespace fastclip
