// The two steps of a norm as separate calls, on gradients that nothing may write.
#include <algorithm>
#include <cmath>

#include "cases.h"
#include "lists.h"
#include "norms.h"

namespace fastclip::kernel_tests {
namespace {

constexpr double kNormTypes[] = {2, 1, kInf, 3, 0.5};

Outcome norm(Run& run, const CudaList& list, const Request& request) {
  const Workspace workspace(run, list, request);
  run.expect_success("reduce", cuda().reduce(list, workspace.sums(), run.device(), nullptr));
  run.expect_success(
      "finish", cuda().finish(list, workspace.sums(), workspace.result(), run.device(), nullptr));
  return workspace.outcome();
}

constexpr int kThreads = 256, kLanes = 32;

// Each thread adds every 256th partial, lanes are joined across halves of a warp, warps one after
// another.
double combined(const double* partials, int count, double norm_type) {
  const auto joined = [&](double a, double b) {
    return std::isinf(norm_type) ? std::max(a, b) : a + b;
  };
  std::vector<double> threads(kThreads);
  for (int i = 0; i < count; ++i) {
    double& thread = threads[static_cast<size_t>(i % kThreads)];
    thread = joined(thread, partials[i]);
  }
  for (size_t distance = kLanes / 2; distance > 0; distance /= 2) {
    const std::vector<double> before = threads;
    for (size_t i = 0; i < kThreads; ++i) threads[i] = joined(before[i], before[i ^ distance]);
  }
  double total = threads[0];
  for (size_t i = kLanes; i < kThreads; i += kLanes) total = joined(total, threads[i]);
  return total;
}

}  // namespace

void norm_alone(Run& run) {
  Request request;
  request.norm_type = kNormTypes[run.seed() / 4 % 5];
  request.max_norm = 0.75;
  request.is_float64 = run.pick(2) != 0;
  run.select(static_cast<int>(run.pick(kDevices, 1)));
  const NamedList& named = awkward_list(run);
  const Gradients untouched(run, named.specs, {ordinary_value, true});
  const Outcome alone = norm(run, untouched.list, request);
  expect_norm(run, named.name, untouched, request, alone);
  const Gradients gradients(run, named.specs);
  request.mode = CudaMode::kFused;
  expect_same_outcome(run, named.name + ", fused", clip(run, gradients.list, request), alone);
}

// This is how the binding combines devices: a total from each, and `finish` over them.
void norm_of_devices(Run& run) {
  Request request;
  request.norm_type = kNormTypes[run.seed() % 5];
  request.max_norm = 0.75;
  const auto specs = mixed_list();
  const Gradients all(run, specs);
  std::vector<double> totals;
  for (int device = 0; device < kDevices; ++device) {
    run.select(device);
    // The values of `all`, a third of them.
    const auto begin = specs.size() * static_cast<size_t>(device) / kDevices;
    const auto end = specs.size() * static_cast<size_t>(device + 1) / kDevices;
    const auto value = [&](Random&, int tensor, int64_t i) {
      return all.value(tensor + static_cast<int>(begin), i);
    };
    const std::vector<TensorSpec> part(specs.begin() + static_cast<std::ptrdiff_t>(begin),
                                       specs.begin() + static_cast<std::ptrdiff_t>(end));
    const Gradients gradients(run, part, {value, true});
    totals.push_back(norm(run, gradients.list, request).total);
  }
  run.select(0);
  CudaList list = cuda().plan(nullptr, 0, nullptr);
  list.groups = kDevices;
  request.has_sums = false;
  const Workspace workspace(run, list, request);
  std::copy(totals.begin(), totals.end(), workspace.sums().partials);
  run.expect_success("finish",
                     cuda().finish(list, workspace.sums(), workspace.result(), 0, nullptr));
  expect_norm(run, "three devices", all, request, workspace.outcome());
}

// This is how the binding finishes a total of all ranks: one double, and no gradients.
void norm_of_a_total(Run& run) {
  run.select(static_cast<int>(run.pick(kDevices)));
  CudaList none = cuda().plan(nullptr, 0, nullptr);
  none.groups = 1;
  Request request;
  request.has_sums = false;
  request.has_inv_scale = true;
  request.max_norm = 0.75;
  uint64_t use = 0;
  for (const double norm_type : kNormTypes) {
    for (const double total : {0.0, 2.7, 1e-12, 1e100, kInf, kNan}) {
      for (const double inv_scale : {1.0, 0x1p-16, -3.0, 0.0}) {
        request.norm_type = norm_type;
        request.inv_scale = inv_scale;
        request.is_float64 = run.pick(2, ++use) != 0;
        request.has_max_norm_tensor = run.pick(2, ++use) != 0;
        const Workspace workspace(run, none, request);
        workspace.sums().partials[0] = total;
        run.expect_success("finish", cuda().finish(none, workspace.sums(), workspace.result(),
                                                   run.device(), nullptr));
        expect_norm(run, "a total of " + std::to_string(total), norm_of_total(total, norm_type),
                    request, workspace.outcome());
      }
    }
  }
}

// Any number of partials is added in the order that the kernels keep to. Partials of a single
// thread are tried as well: with all of them, the roundings of one thread's additions are mostly
// lost in those of the total.
void partials_in_order(Run& run) {
  Request request;
  request.norm_type = kNormTypes[run.seed() % 3];
  request.has_sums = false;
  for (const int count : {1,    3,    255,  256,  257,  511,  512,  513,  767,  768, 769,
                          1000, 1023, 1024, 1025, 1279, 1280, 1281, 2000, 2049, 3001}) {
    for (const bool is_alone : {false, true}) {
      CudaList list = cuda().plan(nullptr, 0, nullptr);
      list.groups = count;
      const Workspace workspace(run, list, request);
      double* const partials = workspace.sums().partials;
      Random random(run.seed() * 4099 + static_cast<uint64_t>(count));
      const int thread = static_cast<int>(random.below(std::min(count, kThreads)));
      for (int i = 0; i < count; ++i) {
        // They lie far apart, so that another order gives other bits.
        const double value = std::ldexp(1 + random.uniform(), static_cast<int>(random.below(30)));
        partials[i] = is_alone && i % kThreads != thread ? 0 : value;
      }
      const double wanted = combined(partials, count, request.norm_type);
      run.expect_success("finish",
                         cuda().finish(list, workspace.sums(), workspace.result(), 0, nullptr));
      run.expect("total of " + std::to_string(count) + " partials", workspace.outcome().total,
                 wanted);
    }
  }
}

// Equal elements make equal rounding errors, which add up where random ones cancel.
void norm_of_constants(Run& run) {
  Request request;
  request.norm_type = kNormTypes[run.seed() % 2];
  request.max_norm = 0.75;
  request.is_float64 = true;  // so that total_norm is not rounded once more
  for (const double value : {0.1, -1.0 / 3, 0.7, 1.999}) {
    const Gradients gradients(run, chunk_list(),
                              {[&](Random&, int, int64_t) { return value; }, true});
    expect_norm(run, "constants of " + std::to_string(value), gradients, request,
                norm(run, gradients.list, request));
  }
}

// Vectors of four whose rounding errors are the worst that a search has found, in every chunk: a
// sum of float32 squares that are rounded is off by 2.4 x 2^-24 on the first, one of four squares
// that are added in a row by 2.9 x 2^-24 on the second.
void norm_of_unlucky_vectors(Run& run) {
  constexpr double kVectors[2][4] = {
      {0x1.03966ep+0, 0x1.043e78p+0, 0x1.03edb4p+0, 0x1.03286ep+0},
      {1, 0x1.fcp-13, 0x1.fcp-13, 0x1.fcp-13},
  };
  Request request;
  request.is_float64 = true;  // so that total_norm is not rounded once more
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  for (const DType dtype : dtypes) {
    for (const auto& vector : kVectors) {
      const Gradients gradients(run, {{dtype, 40'000}, {dtype, 320}},
                                {[&](Random&, int, int64_t i) { return vector[i % 4]; }, true});
      expect_norm(run, "vectors of " + std::to_string(vector[1]), gradients, request,
                  norm(run, gradients.list, request));
    }
  }
}

void norm_of_nothing(Run& run) {
  const std::vector<TensorSpec> lists[] = {
      {},
      {{DType::kFloat32, 0}},
      {{DType::kFloat64, 0}, {DType::kBFloat16, 0}, {DType::kFloat16, 0}},
      {{DType::kFloat16, 1, 2}},
      {{DType::kFloat32, 0}, {DType::kFloat64, 700, 8}, {DType::kFloat32, 0}}};
  for (const auto& specs : lists) {
    for (const double norm_type : kNormTypes) {
      for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
        Gradients gradients(run, specs);
        Request request;
        request.norm_type = norm_type;
        request.max_norm = 0x1p-20;
        request.mode = mode;
        const Outcome outcome = clip(run, gradients.list, request);
        expect_clipped(run, std::to_string(specs.size()) + " tensors", gradients, request, outcome);
        run.expect_success("scale", cuda().scale(gradients.list, {}, 0, nullptr));
        run.expect_success("clamp", cuda().clamp(gradients.list, {0}, 0, nullptr));
      }
    }
  }
}

void norm_outputs_may_be_null(Run& run) {
  Gradients gradients(run, mixed_list());
  Request request;
  request.has_sums = false;
  request.max_norm = 0.75;
  for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
    const Workspace all(run, gradients.list, request);
    run.expect_success("clip", call_clip(run, gradients.list, all));
    const double coef = all.outcome().clip_coef;
    gradients.restore();
    CudaResult nothing = all.result();
    nothing.total = nullptr;
    nothing.total_norm = nothing.clip_coef = nullptr;
    run.expect_success("clip without outputs",
                       cuda().clip(gradients.list, all.sums(), nothing, mode, 0, nullptr));
    gradients.expect_multiplied("without outputs", coef);
    gradients.restore();
  }
}

}  // namespace fastclip::kernel_tests
