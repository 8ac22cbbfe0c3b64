// inv_scale and found_inf of scale and of clamp; and a clip that is taken apart.
#include <cmath>
#include <iterator>

#include "cases.h"
#include "lists.h"
#include "norms.h"
#include "numbers.h"

namespace fastclip::kernel_tests {
namespace {

constexpr double kInvScales[] = {1, 0.5, -2, 0x1p-16, 0, 1.0 / 3, 3.3e37, kNan, kInf};

// One float32 that kernels may only read.
class Scalar {
 public:
  Scalar(Run& run, double value) : numbers_(run, {value}, false) {}
  const float* data() const { return static_cast<const float*>(numbers_.data()); }

 private:
  Numbers numbers_;
};

double as_held(double value, bool is_float64) {
  return is_float64 ? value : static_cast<double>(static_cast<float>(value));
}

// What gradients are multiplied by: evaluated in the dtype of the coefficient.
double product(double coef, double inv_scale, bool is_float64) {
  if (is_float64) return coef * as_held(inv_scale, false);
  return static_cast<float>(coef) * static_cast<float>(inv_scale);
}

bool should_write(double coef, double inv_scale) { return !(coef >= 1 && inv_scale == 1); }

// A list with every special value among ordinary ones.
GradientOptions special_values() {
  return {[](Random& random, int tensor, int64_t index) {
    constexpr double kSpecial[] = {kNan, kInf, -kInf, -0.0, 0.0, 65504, -3e38, 1e-40, 1};
    const auto which = static_cast<size_t>(random.below(20));
    return which < std::size(kSpecial) ? kSpecial[which] : ordinary_value(random, tensor, index);
  }};
}

void expect_scaled(Run& run, Gradients& gradients, const CudaCoefs& coefs, double coef,
                   double inv_scale) {
  run.expect_success("scale", cuda().scale(gradients.list, coefs, run.device(), nullptr));
  const std::string what =
      "a coefficient of " + std::to_string(coef) + ", inv_scale " + std::to_string(inv_scale);
  if (should_write(coef, inv_scale)) {
    gradients.expect_multiplied(what, product(coef, inv_scale, coefs.is_float64));
  } else {
    gradients.expect_unchanged(what);
  }
  gradients.restore();
}

uint64_t scaled_and_clamped(DType dtype, uint64_t bits, double inv_scale, double limit) {
  return clamped(dtype, multiplied(dtype, bits, inv_scale), limit);
}

void expect_clamped(Run& run, Gradients& gradients, double limit, double inv_scale) {
  const Scalar scalar(run, inv_scale);
  const CudaClamp clamp = {limit, scalar.data(), nullptr};
  run.expect_success("clamp", cuda().clamp(gradients.list, clamp, run.device(), nullptr));
  gradients.expect_each(
      "times " + std::to_string(inv_scale) + ", clamped to " + std::to_string(limit),
      [&](int, DType dtype, uint64_t bits) {
        return scaled_and_clamped(dtype, bits, as_held(inv_scale, false), limit);
      });
  gradients.restore();
}

// Another address modulo 16 for most tensors.
std::vector<TensorSpec> at_other_addresses(std::vector<TensorSpec> specs) {
  for (size_t i = 0; i < specs.size(); ++i) {
    const auto size = static_cast<size_t>(element_size(specs[i].dtype));
    specs[i].offset = (specs[i].offset + i % 3 * size) % 16;
  }
  return specs;
}

// A coefficient for each tensor.
void scale_each(Run& run, const std::vector<TensorSpec>& specs, const GradientOptions& options) {
  constexpr double kCoefs[] = {1, 0.3, 2, kNan, -1};
  const Gradients gradients(run, specs, options);
  const bool is_float64 = run.pick(2, 1) != 0;
  const double inv_scale = run.seed() % 3 == 0 ? 1 : 0.7;
  std::vector<double> values;
  for (int i = 0; i < gradients.size(); ++i) values.push_back(as_held(kCoefs[i % 5], is_float64));
  const Numbers per_tensor(run, values, is_float64);
  const Scalar scalar(run, inv_scale), found_inf(run, 0);
  CudaCoefs coefs = {};
  coefs.per_tensor = per_tensor.data();
  coefs.inv_scale = scalar.data();
  coefs.found_inf = found_inf.data();
  coefs.is_float64 = is_float64;
  run.expect_success("scale", cuda().scale(gradients.list, coefs, run.device(), nullptr));
  gradients.expect_each("per tensor", [&](int tensor, DType dtype, uint64_t before) {
    const double coef = values[static_cast<size_t>(tensor)];
    const bool is_kept = options.targets.empty() && !should_write(coef, inv_scale);
    return is_kept ? before : multiplied(dtype, before, product(coef, inv_scale, is_float64));
  });
}

}  // namespace

void unscale_sources(Run& run) {
  Gradients gradients(run, short_list(kAllDTypes[run.seed() % kDTypes]), special_values());
  for (const bool is_float64 : {false, true}) {
    for (const double inv_scale : kInvScales) {
      const Scalar scalar(run, inv_scale);
      // 1 - 2^-30 is 1 in float32: a number counts as what it is in the product's dtype.
      for (const double coef : {0.3, 1.0, 1 - 0x1p-30, 1.5, kNan}) {
        const double held = as_held(coef, is_float64);
        CudaCoefs coefs = {};
        coefs.is_float64 = is_float64;
        coefs.inv_scale = scalar.data();
        coefs.value = coef;
        expect_scaled(run, gradients, coefs, held, inv_scale);
        const Numbers pointer(run, {coef}, is_float64);
        coefs.clip_coef = pointer.data();
        expect_scaled(run, gradients, coefs, held, inv_scale);
      }
      const Numbers norm(run, {2.7}, is_float64);
      for (const double max_norm : {1.9, 4.0}) {
        CudaCoefs coefs = {};
        coefs.total_norm = norm.data();
        coefs.inv_scale = scalar.data();
        coefs.value = max_norm;
        coefs.is_float64 = is_float64;
        expect_scaled(run, gradients, coefs,
                      coefficient(as_held(2.7, is_float64), max_norm, is_float64), inv_scale);
      }
    }
  }
}

void unscale_lists(Run& run) {
  run.select(static_cast<int>(run.pick(kDevices)));
  const auto& specs = awkward_list(run).specs;
  GradientOptions options = special_values();
  scale_each(run, specs, options);
  options.targets = at_other_addresses(specs);
  options.is_read_only = true;
  scale_each(run, specs, options);
}

void unscale_and_clamp_lists(Run& run) {
  run.select(static_cast<int>(run.pick(kDevices)));
  Gradients gradients(run, awkward_list(run).specs, special_values());
  expect_clamped(run, gradients, 0.1, 0.7);
}

void unscale_and_clamp_limits(Run& run) {
  Gradients gradients(run, short_list(kAllDTypes[run.seed() % kDTypes]), special_values());
  for (const double inv_scale : kInvScales) {
    // 0.1 is rounded in every dtype; 65519 is float16's largest number, 65520 inf in float16.
    for (const double limit : {0.1, 0.0, 65519.0, 65520.0, 1e-42, 1e300, kInf}) {
      expect_clamped(run, gradients, limit, inv_scale);
    }
  }
}

// Lists whose tables lie in 4 KB of arguments, in 32 KB and in device memory.
void unscale_tables(Run& run) {
  const Scalar inv_scale(run, 0.5), found_inf(run, 0);
  for (const int tensors : {150, 1600, 1700}) {
    Gradients gradients(run, tiny_list(tensors));
    const std::string what = std::to_string(tensors) + " tensors";
    run.expect(what + ", in device memory", gradients.list.table_bytes > 0, tensors > 1630);
    CudaCoefs coefs = {};
    coefs.value = 1;
    coefs.inv_scale = inv_scale.data();
    coefs.found_inf = found_inf.data();
    run.expect_success("scale", cuda().scale(gradients.list, coefs, 0, nullptr));
    gradients.expect_multiplied(what, 0.5);
    gradients.restore();
    const CudaClamp clamp = {0.25, inv_scale.data(), found_inf.data()};
    run.expect_success("clamp", cuda().clamp(gradients.list, clamp, 0, nullptr));
    gradients.expect_each(what + ", clamped", [&](int, DType dtype, uint64_t bits) {
      return scaled_and_clamped(dtype, bits, 0.5, 0.25);
    });
  }
}

// If the flag is set, gradients are neither written nor read, but targets are written.
void unscale_after_found_inf(Run& run) {
  const auto& specs = awkward_list(run).specs;
  const Gradients in_place(run, specs, {ordinary_value, true});
  const Scalar inv_scale(run, 0.5);
  for (const double already : {1.0, 2.0, kNan}) {
    const Scalar found_inf(run, already);
    for (const float* const scale : {static_cast<const float*>(nullptr), inv_scale.data()}) {
      CudaCoefs coefs = {};
      coefs.value = 0.3;
      coefs.inv_scale = scale;
      coefs.found_inf = found_inf.data();
      run.expect_success("scale", cuda().scale(in_place.list, coefs, 0, nullptr));
      const CudaClamp clamp = {0.1, scale, found_inf.data()};
      run.expect_success("clamp", cuda().clamp(in_place.list, clamp, 0, nullptr));
      in_place.expect_unchanged("found_inf is set");
      run.expect<int64_t>("bytes read", in_place.traffic().read, 0);
      const Gradients copy(run, specs, {ordinary_value, true, specs});
      run.expect_success("scale", cuda().scale(copy.list, coefs, 0, nullptr));
      copy.expect_multiplied("into targets", product(0.3, scale == nullptr ? 1 : 0.5, false));
    }
  }
}

// Ranks clip together in this way: sums, the norm of a given total, a scale by its coefficient. The
// results must be those of one clip of the list, bit for bit.
void clip_in_steps(Run& run) {
  constexpr double kNormTypes[] = {2, 1, kInf, 3};
  run.select(static_cast<int>(run.pick(kDevices)));
  const NamedList& named = awkward_list(run);
  Gradients gradients(run, named.specs);
  Request request;
  request.norm_type = kNormTypes[run.pick(4, 1)];
  request.is_float64 = run.pick(2, 2) != 0;
  request.max_norm = run.pick(3, 3) != 0 ? 0.1 : 1e9;
  request.has_max_norm_tensor = run.pick(2, 4) != 0;
  request.has_inv_scale = request.has_found_inf = true;
  request.inv_scale = run.pick(3, 5) != 0 ? -0.25 : 1;
  if (run.pick(3, 6) == 0) gradients.set(0, 0, kInf);
  const Outcome whole = clip(run, gradients.list, request);
  const uint64_t digest = gradients.digest();
  gradients.restore();

  const Workspace steps(run, gradients.list, request);
  CudaSums sums = steps.sums();
  CudaResult result = steps.result();
  CudaResult totals = {};
  totals.total = result.total;
  run.expect_success("reduce", cuda().reduce(gradients.list, sums, run.device(), nullptr));
  run.expect_success("sums", cuda().finish(gradients.list, sums, totals, run.device(), nullptr));
  CudaList none = cuda().plan(nullptr, 0, nullptr);
  none.groups = 1;
  CudaCoefs coefs = {};
  coefs.clip_coef = result.clip_coef;
  coefs.inv_scale = result.inv_scale;
  coefs.found_inf = sums.found_inf;
  coefs.is_float64 = request.is_float64;
  sums.partials = totals.total;
  sums.sums = nullptr;
  result.total = nullptr;
  run.expect_success("finish", cuda().finish(none, sums, result, run.device(), nullptr));
  run.expect_success("scale", cuda().scale(gradients.list, coefs, run.device(), nullptr));
  expect_same_outcome(run, named.name, steps.outcome(), whole);
  run.expect(named.name + ", digest of the gradients", gradients.digest(), digest);
}

}  // namespace fastclip::kernel_tests
