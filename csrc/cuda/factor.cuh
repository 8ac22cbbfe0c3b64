// What gradients are multiplied by, and whether they are written at all: the same functions for
// clips and scales, so that both give the same bits.
#pragma once

#include <cuda_runtime.h>

namespace fastclip::device {

__device__ inline float inv_scale_of(const float* inv_scale) {
  return inv_scale != nullptr ? __ldcg(inv_scale) : 1;
}

__device__ inline bool is_set(const float* found_inf) {
  return found_inf != nullptr && __ldcg(found_inf) != 0;
}

struct Factor {
  double value;  // to be rounded to float32 for 16- and 32-bit gradients
  bool should_write;
};

// The product is evaluated in T, the dtype of the norm. NaN is not >= 1: it is written, as torch
// writes it.
template <typename T>
__device__ Factor factor_of(T coef, const float* inv_scale) {
  const T scale = inv_scale_of(inv_scale);
  return {static_cast<double>(coef * scale), !(coef >= 1 && scale == 1)};
}

}  // namespace fastclip::device
