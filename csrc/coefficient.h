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

// A coefficient times inv_scale, which is a float32: in float64, or rounded as a product of two
// float32.
constexpr double scaled_coefficient(double clip_coef, double inv_scale, bool is_wide) {
  if (is_wide) return clip_coef * inv_scale;
  return static_cast<float>(clip_coef) * static_cast<float>(inv_scale);
}

}  // namespace fastclip
