// Squares that leave the range of float32: sums over float64 instead, and only where needed.
#include <algorithm>
#include <cmath>

#include "cases.h"
#include "lists.h"
#include "norms.h"

namespace fastclip::kernel_tests {
namespace {

void expect_norm_of(Run& run, const std::string& name, DType dtype, const Values& values) {
  Gradients gradients(run, short_list(dtype), {values});
  Request request;
  request.is_float64 = run.pick(2) != 0;
  for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
    request.mode = mode;
    const Outcome outcome = clip(run, gradients.list, request);
    expect_clipped(run, name, gradients, request, outcome);
    gradients.restore();
  }
}

Values constant(double value) {
  return [value](Random&, int, int64_t) { return value; };
}

// The others lie between zeros: a chunk, or a run of small tensors, that is not zero throughout.
Values rare(double value, int64_t distance) {
  return [=](Random&, int, int64_t index) { return index % distance == 1 ? value : 0.0; };
}

}  // namespace

void rescue_extremes(Run& run) {
  const DType dtype = run.seed() % 2 != 0 ? DType::kBFloat16 : DType::kFloat32;
  for (const double value : {1e30, -2e25, 1e-30, -3e-25, 1e-40, 0.0, 1e-20}) {
    const std::string name = std::to_string(std::log10(std::fabs(value)));
    expect_norm_of(run, "constants, 10^" + name, dtype, constant(value));
    expect_norm_of(run, "among zeros, 10^" + name, dtype, rare(value, 700));
    expect_norm_of(run, "random, 10^" + name, dtype,
                   [=](Random& random, int, int64_t) { return value * (random.uniform() - 0.5); });
  }
  // The one element that is not zero lies in the share of a later warp.
  expect_norm_of(run, "one alone", dtype,
                 [](Random&, int, int64_t index) { return index == 1200 ? 1e-30 : 0.0; });
  // Tensors of every magnitude side by side.
  expect_norm_of(run, "mixed", dtype, [](Random& random, int tensor, int64_t) {
    constexpr double kMagnitudes[] = {1e-30, 1, 1e-42, 1e-20};
    return kMagnitudes[tensor % 4] * (random.uniform() + 0.5);
  });
}

// Tries magnitudes around those where float32 squares begin to lose digits, 2^-63, and to overflow,
// 2^64.
void rescue_threshold(Run& run) {
  const DType dtype = kAllDTypes[run.seed() % kDTypes];
  for (const int exponent : {-75, -64, -62, -52, -51, -50, -24, 15, 62, 63, 64}) {
    const bool is_narrow = dtype == DType::kFloat16;
    const double value =
        std::ldexp(1.3, is_narrow ? std::max(-24, std::min(15, exponent)) : exponent);
    expect_norm_of(run, "2^" + std::to_string(exponent), dtype, [=](Random& random, int, int64_t) {
      return value * (1 + random.uniform() / 2);
    });
  }
  // Squares that are lost, each a little less than half of the smallest float32, among a few that
  // keep the mean square at 2^-exponent.
  for (const int exponent : {140, 128, 120, 103, 102, 101}) {
    const double few = std::sqrt(std::ldexp(1000, -exponent));
    expect_norm_of(run, "lost under 2^-" + std::to_string(exponent), dtype,
                   [=](Random&, int, int64_t i) { return i % 1000 == 7 ? few : 0x0.ffp-75; });
  }
}

}  // namespace fastclip::kernel_tests
