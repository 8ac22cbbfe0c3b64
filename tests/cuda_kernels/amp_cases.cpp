// Unscaling: inv_scale and found_inf.
#include <algorithm>
#include <cmath>

#include "cases.h"
#include "lists.h"
#include "norms.h"

namespace fastclip::kernel_tests {

void inv_scale(Run& run) {
  Gradients gradients(run, short_list(kAllDTypes[run.seed() % kDTypes]));
  Request request;
  request.has_inv_scale = true;
  request.is_float64 = run.seed() % 3 == 0;
  for (const double inv_scale : {1.0, 0.5, -2.0, -1.0, 1.0 / 65536, 0.0, 3.3e37, kNan}) {
    // Clipped or not, gradients that are unscaled must be written.
    for (const double max_norm : {0.01, 1e30}) {
      for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
        request.inv_scale = inv_scale;
        request.max_norm = max_norm;
        request.mode = mode;
        const Outcome outcome = clip(run, gradients.list, request);
        expect_clipped(run, "inv_scale " + std::to_string(inv_scale), gradients, request, outcome);
        gradients.restore();
      }
    }
  }
}

void found_inf_anywhere(Run& run) {
  constexpr double kNormTypes[] = {2, kInf, 1, 3};
  Gradients gradients(run, run.seed() % 2 != 0 ? mixed_list() : head_list());
  Request request;
  request.norm_type = kNormTypes[run.pick(4)];
  request.is_wide = run.pick(2, 1) != 0;
  request.max_norm = 0.75;
  request.has_found_inf = request.has_inv_scale = true;
  request.inv_scale = 0.25;
  for (int round = 0; round < 3; ++round) {
    const auto use = static_cast<uint64_t>(round) * 10;
    const auto tensor = static_cast<int>(run.pick(gradients.size(), use + 2));
    const int64_t count = gradients.spec(tensor).count;
    const int64_t places[] = {0, count - 1, run.pick(std::max<int64_t>(count, 1), use + 3)};
    const bool has_one = round > 0 && count > 0;
    if (has_one) gradients.set(tensor, places[run.pick(3, use + 4)], round == 1 ? kInf : kNan);
    request.mode = run.pick(2, use + 5) != 0 ? CudaMode::kFused : CudaMode::kSplit;
    const Outcome outcome = clip(run, gradients.list, request);
    if (has_one) run.expect("found_inf", outcome.found_inf, 1.0);
    if (round == 0) run.expect("found_inf", outcome.found_inf, 0.0);
    expect_clipped(run, "round " + std::to_string(round), gradients, request, outcome);
    gradients.restore();
  }
}

// Sums, and products with inv_scale, that overflow while every element is finite.
void found_inf_without_inf(Run& run) {
  Request request;
  request.has_found_inf = request.has_inv_scale = true;
  request.inv_scale = 1e30;
  for (const DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16}) {
    const double huge = dtype == DType::kFloat64 ? 1e200 : 3e38;
    Gradients gradients(run, short_list(dtype), {[&](Random&, int, int64_t) { return huge; }});
    for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
      request.mode = mode;
      const Outcome outcome = clip(run, gradients.list, request);
      run.expect("found_inf", outcome.found_inf, 0.0);
      run.expect("total_norm", outcome.total_norm, kInf);
      run.expect("clip_coef", outcome.clip_coef, 0.0);
      gradients.expect_multiplied("an overflowing norm", 0);
      gradients.restore();
    }
  }
}

void found_inf_already(Run& run) {
  Gradients gradients(run, mixed_list(), {ordinary_value, true});
  Request request;
  request.has_found_inf = true;
  request.max_norm = 0.75;
  request.has_inv_scale = run.seed() % 2 != 0;
  request.inv_scale = 2;
  // Another device or an earlier call has set the flag to 1, and it must stay.
  for (const double already : {1.0, 2.0}) {
    request.found_inf = already;
    for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
      request.mode = mode;
      const Outcome outcome = clip(run, gradients.list, request);
      run.expect("found_inf", outcome.found_inf, already);
      expect_norm(run, "found_inf is set", gradients, request, outcome);
      gradients.expect_unchanged("found_inf is set");
    }
  }
}

}  // namespace fastclip::kernel_tests
