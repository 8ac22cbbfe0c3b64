// The clip coefficient: one function, so that the CPU, the fused and the split kernels agree.
// Includes no torch and no CUDA; nvcc compiles it for the device with --expt-relaxed-constexpr.
#pragma once

namespace fastclip {

constexpr double kEps = 1e-6;  // torch's: keeps the coefficient finite when every gradient is 0

// (1 / (total_norm + eps)) * max_norm, evaluated in T as torch evaluates it, clamped to 1; NaN
// stays.
template <typename T>
constexpr T clip_coefficient(T total_norm, T max_norm) {
  const T clip_coef = (T(1) / (total_norm + T(kEps))) * max_norm;
  return clip_coef > T(1) ? T(1) : clip_coef;
}

}  // namespace fastclip
