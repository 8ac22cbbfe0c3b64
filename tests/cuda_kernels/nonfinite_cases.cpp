// NaN and inf among the gradients, and every kind of max_norm.
#include <cmath>

#include "cases.h"
#include "lists.h"
#include "norms.h"

namespace fastclip::kernel_tests {

void nonfinite_anywhere(Run& run) {
  constexpr double kNormTypes[] = {kInf, 2, 1, 3, 0.5};
  constexpr double kValues[] = {kNan, kInf, -kInf};
  const auto specs = run.seed() % 2 != 0 ? mixed_list() : head_list();
  Gradients gradients(run, specs);
  int tensor = 0;
  for (uint64_t use = 0; gradients.spec(tensor).count == 0 || use == 0; ++use) {
    tensor = static_cast<int>(run.pick(gradients.size(), use));
  }
  const int64_t last = gradients.spec(tensor).count - 1;
  const int64_t places[] = {0, last, run.pick(last + 1, 101)};  // mostly head, tail, body
  gradients.set(tensor, places[run.pick(3, 102)], kValues[run.seed() % 3]);
  Request request;
  request.norm_type = kNormTypes[run.seed() % 5];
  request.is_wide = run.pick(4, 103) == 0;
  request.max_norm = 0.75;
  for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
    request.mode = mode;
    const Outcome outcome = clip(run, gradients.list, request);
    run.expect_true(!std::isfinite(outcome.total_norm), "total_norm is finite");
    expect_clipped(run, "tensor " + std::to_string(tensor), gradients, request, outcome);
    gradients.restore();
  }
}

void nonfinite_error(Run& run) {
  Gradients gradients(run, mixed_list());
  Request request;
  request.error_if_nonfinite = true;
  request.max_norm = 0.75;
  for (const double value : {1.0, kNan, kInf}) {
    gradients.set(13, 5, value);
    for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
      request.mode = mode;
      const Outcome outcome = clip(run, gradients.list, request);
      expect_clipped(run, "with " + std::to_string(value), gradients, request, outcome);
      gradients.restore();
    }
  }
}

void max_norm_values(Run& run) {
  const DType dtype = kAllDTypes[run.seed() % kDTypes];
  Gradients gradients(run, short_list(dtype));
  Request request;
  request.mode = run.seed() / 2 % 2 != 0 ? CudaMode::kFused : CudaMode::kSplit;
  for (const double max_norm : {0.0, -0.0, -2.5, kInf, -kInf, kNan, 1e-30, 3.3, 1e300}) {
    for (const bool is_tensor : {false, true}) {
      for (const bool is_float64 : {false, true}) {
        request.max_norm = max_norm;
        request.has_max_norm_tensor = is_tensor;
        request.is_float64 = is_float64;
        const Outcome outcome = clip(run, gradients.list, request);
        expect_clipped(run, "max_norm " + std::to_string(max_norm), gradients, request, outcome);
        gradients.restore();
      }
    }
  }
}

}  // namespace fastclip::kernel_tests
