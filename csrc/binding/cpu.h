// The operations on lists that lie in CPU memory alone.
#pragma once

#include <cmath>
#include <vector>

#include "collector.h"
#include "engine.h"

namespace fastclip {

// Rounded here: torch refuses a double that float32 would round to inf.
inline at::Tensor norm_tensor(double total_norm, bool is_float64) {
  return at::scalar_tensor(is_float64 ? total_norm : static_cast<float>(total_norm),
                           at::device(at::kCPU).dtype(is_float64 ? at::kDouble : at::kFloat));
}

// What one pass over the gradients found.
struct Reduction {
  Norm norm;
  std::vector<double> combined;  // per entry, before the root
  bool is_float64;
  double total_norm;  // rounded to the norm's dtype
};

inline Reduction reduce(Gradients& gradients, double norm_type, bool is_float64) {
  if (!Norm::streams(norm_type)) gradients.own();
  const WithoutGil without_gil(gradients);
  Reduction result{Norm(norm_type, is_float64), {}, is_float64, 0};
  result.combined = reduce_entries(gradients.on_cpu.list, result.norm);
  result.total_norm = result.norm.root(combine_entries(result.combined, result.norm));
  if (!is_float64) result.total_norm = static_cast<float>(result.total_norm);
  return result;
}

// The sources of the entries for which is_bad[entry] is set.
inline std::vector<int64_t> sources_of(const Gradients& gradients,
                                       const std::vector<char>& is_bad) {
  std::vector<int64_t> positions;
  for (size_t i = 0; i < gradients.entry_of_source.size(); ++i) {
    const int32_t entry = gradients.entry_of_source[i];
    if (entry >= 0 && is_bad[entry]) positions.push_back(static_cast<int64_t>(i));
  }
  return positions;
}

// The sources whose gradient holds inf or nan. A float64 sum that overflowed holds none.
inline std::vector<int64_t> non_finite_positions(const Gradients& gradients,
                                                 const Reduction& reduction) {
  const Norm maximum(INFINITY, false);
  std::vector<char> is_bad(gradients.entries.size());
  for (size_t i = 0; i < is_bad.size(); ++i) {
    if (std::isfinite(reduction.combined[i])) continue;
    std::vector<TensorEntry> alone = {gradients.entries[i]};
    const CpuList packed = pack_for_cpu(&alone);
    is_bad[i] = !std::isfinite(reduce_entries(packed.list, maximum)[0]);
  }
  return sources_of(gradients, is_bad);
}

inline void check_finite(const Gradients& gradients, const Reduction& reduction) {
  if (std::isfinite(reduction.total_norm)) return;
  throw NonFinite{norm_tensor(reduction.total_norm, reduction.is_float64),
                  non_finite_positions(gradients, reduction)};
}

// Autograd learns of the change in place, as after torch's own multiplication, written or not.
inline void bump_versions(const Gradients& gradients) {
  for (c10::TensorImpl* const grad : gradients.tensors) grad->bump_version();
  for (c10::TensorImpl* const grad : gradients.duplicates) grad->bump_version();
}

inline void scale(const Gradients& gradients, double clip_coef) {
  bump_versions(gradients);
  const WithoutGil without_gil(gradients);
  scale_entries(gradients.on_cpu.list, clip_coef);
}

inline at::Tensor clip(const Gradients& gradients, const Reduction& reduction, double max_norm,
                       bool error_if_nonfinite) {
  if (error_if_nonfinite) check_finite(gradients, reduction);
  scale(gradients, clip_coefficient(reduction.total_norm, max_norm, reduction.is_float64));
  return norm_tensor(reduction.total_norm, reduction.is_float64);
}

}  // namespace fastclip
