// Norm and rescale, fused and split: right, and the same bits whatever the launch, the order of
// threads and the device.
#include "cases.h"
#include "lists.h"
#include "norms.h"

namespace fastclip::kernel_tests {
namespace {

// Fused and split on `specs`; all that they return must agree bit for bit.
void clip_both_ways(Run& run, const NamedList& named, Request request) {
  run.select(static_cast<int>(run.pick(kDevices)));
  Gradients gradients(run, named.specs);
  request.mode = CudaMode::kFused;
  const Outcome fused = clip(run, gradients.list, request);
  expect_clipped(run, named.name, gradients, request, fused);
  expect_outcome_as_ever(run, named.name, fused);
  const uint64_t digest = gradients.digest();
  run.expect_as_ever(named.name + ", gradients", digest);
  gradients.restore();
  request.mode = CudaMode::kSplit;
  expect_same_outcome(run, named.name + ", split", clip(run, gradients.list, request), fused);
  run.expect(named.name + ", digest of the split kernels' gradients", gradients.digest(), digest);
}

Request request_of(double norm_type) {
  Request request;
  request.norm_type = norm_type;
  request.max_norm = 0.75;  // below the norm of every list
  return request;
}

}  // namespace

void clip_squares(Run& run) { clip_both_ways(run, awkward_list(run), request_of(2)); }

void clip_wide_squares(Run& run) {
  Request request = request_of(2);
  request.is_wide = true;
  clip_both_ways(run, awkward_list(run), request);
}

void clip_magnitudes(Run& run) { clip_both_ways(run, awkward_list(run), request_of(1)); }
void clip_maximum(Run& run) { clip_both_ways(run, awkward_list(run), request_of(kInf)); }
void clip_cubes(Run& run) { clip_both_ways(run, awkward_list(run), request_of(3)); }
void clip_roots(Run& run) { clip_both_ways(run, awkward_list(run), request_of(0.5)); }

void clip_float64(Run& run) {
  constexpr double kNormTypes[] = {2, 1, kInf, 3};
  Request request = request_of(kNormTypes[run.seed() / 4 % 4]);
  request.is_float64 = true;
  const NamedList& list = awkward_list(run);
  const std::string name = list.name + ", p = " + std::to_string(request.norm_type);
  clip_both_ways(run, {name, list.specs}, request);
}

// A coefficient a little below 1 is applied, and 1 is not.
void clip_close_to_one(Run& run) {
  Gradients gradients(run, short_list(kAllDTypes[run.seed() % kDTypes]));
  Request request;
  request.is_float64 = run.pick(2) != 0;
  const auto norm = static_cast<double>(norm_of(gradients, 2).total_norm);
  for (const double ratio : {0.5, 0.99, 1 - 0x1p-19, 1 + 0x1p-19, 1.01}) {
    for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
      request.max_norm = norm * ratio;
      request.mode = mode;
      const Outcome outcome = clip(run, gradients.list, request);
      run.expect_true((outcome.clip_coef < 1) == (ratio < 1),
                      "clip_coef is on the wrong side of 1");
      expect_clipped(run, "max_norm " + std::to_string(ratio), gradients, request, outcome);
      gradients.restore();
    }
  }
}

// Every length up to three vectors a lane, one tensor at a time: heads, bodies and tails of all
// sizes.
void clip_awkward_lengths(Run& run) {
  const DType dtype = kAllDTypes[run.seed() % kDTypes];
  const int64_t first = run.pick(300, 2);
  const auto size = static_cast<size_t>(element_size(dtype));
  std::vector<TensorSpec> specs;
  for (int64_t i = 0; i < 24; ++i) {
    specs.push_back({dtype, first + i, static_cast<size_t>(i) % (16 / size) * size});
  }
  const std::string name =
      "lengths from " + std::to_string(first) + ", seed " + std::to_string(run.seed());
  clip_both_ways(run, {name, specs}, request_of(run.seed() % 3 == 0 ? 1 : 2));
}

}  // namespace fastclip::kernel_tests
