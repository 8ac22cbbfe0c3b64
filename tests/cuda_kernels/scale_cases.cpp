// Multiplying by coefficients from everywhere, in place and into other tensors.
#include "cases.h"
#include "lists.h"
#include "norms.h"
#include "numbers.h"

namespace fastclip::kernel_tests {
namespace {

void scale(Run& run, const Gradients& gradients, const CudaCoefs& coefs) {
  run.expect_success("scale", cuda().scale(gradients.list, coefs, run.device(), nullptr));
}

void expect_scaled(Run& run, Gradients& gradients, const CudaCoefs& coefs, double coef) {
  scale(run, gradients, coefs);
  if (coef >= 1) {
    gradients.expect_unchanged("a coefficient of " + std::to_string(coef));
  } else {
    gradients.expect_multiplied("a coefficient of " + std::to_string(coef), coef);
  }
  gradients.restore();
}

double as_held(double value, bool is_float64) {
  return is_float64 ? value : static_cast<double>(static_cast<float>(value));
}

constexpr double kCoefs[] = {0.3, 1, 1.5, -0.5, 0, kNan, kInf, -kInf, 1e-30};

}  // namespace

void scale_sources(Run& run) {
  Gradients gradients(run, short_list(kAllDTypes[run.seed() % kDTypes]));
  for (const bool is_float64 : {false, true}) {
    for (const double coef : kCoefs) {
      CudaCoefs coefs = {};
      coefs.is_float64 = is_float64;
      coefs.value = coef;
      expect_scaled(run, gradients, coefs, as_held(coef, is_float64));
      // The first one given counts; the others must not be read.
      const Numbers pointer(run, {coef}, is_float64);
      coefs.clip_coef = pointer.data();
      coefs.value = 0.125;
      expect_scaled(run, gradients, coefs, as_held(coef, is_float64));
    }
    for (const double total_norm : {2.7, 1e-8, 0.0, kInf, kNan}) {
      for (const double max_norm : {1.9, -1.0, kInf}) {
        const Numbers norm(run, {total_norm}, is_float64), limit(run, {max_norm}, is_float64);
        const double coef = coefficient(as_held(total_norm, is_float64), max_norm, is_float64);
        CudaCoefs coefs = {};
        coefs.total_norm = norm.data();
        coefs.value = max_norm;
        coefs.is_float64 = is_float64;
        expect_scaled(run, gradients, coefs, coef);
        coefs.max_norm_tensor = limit.data();
        coefs.value = kNan;
        expect_scaled(run, gradients, coefs, coef);
      }
    }
  }
}

void scale_lists(Run& run) {
  run.select(static_cast<int>(run.pick(kDevices)));
  Gradients gradients(run, awkward_list(run).specs);
  CudaCoefs coefs = {};
  coefs.value = 0.37;
  coefs.is_float64 = true;
  scale(run, gradients, coefs);
  gradients.expect_multiplied("in place", 0.37);
}

void scale_per_tensor(Run& run) {
  const bool is_float64 = run.seed() % 2 != 0;
  Gradients gradients(run, awkward_lists()[run.seed() / 2 % awkward_lists().size()].specs);
  std::vector<double> values;
  for (int i = 0; i < gradients.size(); ++i) {
    const double other = run.pick(1000, static_cast<uint64_t>(i)) / 1000.0 - 0.5;
    values.push_back(as_held(i % 3 == 0 ? kCoefs[i / 3 % 9] : other, is_float64));
  }
  const Numbers per_tensor(run, values, is_float64);
  CudaCoefs coefs = {};
  coefs.per_tensor = per_tensor.data();
  coefs.is_float64 = is_float64;
  scale(run, gradients, coefs);
  gradients.expect_each("per tensor", [&](int tensor, DType dtype, uint64_t before) {
    const double coef = values[static_cast<size_t>(tensor)];
    return coef >= 1 ? before : multiplied(dtype, before, coef);
  });
}

void scale_into_targets(Run& run) {
  const auto& specs = awkward_list(run).specs;
  std::vector<TensorSpec> targets = specs;
  // At the source's address modulo 16, at another, and a mixture of both.
  const auto shift = static_cast<size_t>(run.pick(3));
  for (size_t i = 0; i < targets.size(); ++i) {
    const auto size = static_cast<size_t>(element_size(targets[i].dtype));
    targets[i].offset = (targets[i].offset + (shift == 2 ? i : shift) * size) % 16;
  }
  for (const double coef : {0.3, 1.0, 1.5, kNan}) {
    Gradients gradients(run, specs, {ordinary_value, true, targets});
    CudaCoefs coefs = {};
    coefs.value = coef;
    coefs.is_float64 = true;
    scale(run, gradients, coefs);
    gradients.expect_multiplied("into targets, " + std::to_string(coef), coef);
    gradients.expect_unchanged("into targets");
    const emulator::Traffic traffic = gradients.target_traffic();
    run.expect<int64_t>("bytes of targets written", traffic.written, gradients.bytes());
    run.expect<int64_t>("different ones", traffic.unique_written, gradients.bytes());
    run.expect<int64_t>("bytes of targets read", traffic.read, 0);
    run.expect<int64_t>("bytes of tensors read", gradients.traffic().read, gradients.bytes());
  }
}

}  // namespace fastclip::kernel_tests
