// Clamping by value.
#include "cases.h"
#include "lists.h"
#include "norms.h"
#include "numbers.h"

namespace fastclip::kernel_tests {
namespace {

void expect_clamp(Run& run, Gradients& gradients, double limit) {
  run.expect_success("clamp", cuda().clamp(gradients.list, {limit}, run.device(), nullptr));
  gradients.expect_each(
      "clamped to " + std::to_string(limit),
      [&](int, DType dtype, uint64_t bits) { return clamped(dtype, bits, limit); });
  gradients.restore();
}

}  // namespace

void clamp_lists(Run& run) {
  run.select(static_cast<int>(run.pick(kDevices)));
  Gradients gradients(run, awkward_list(run).specs);
  expect_clamp(run, gradients, 0.1);
}

void clamp_limits(Run& run) {
  constexpr double kSpecial[] = {kNan, kInf, -kInf, -0.0, 0.0, 0.1, -0.1, 65504, -3e38, 1e-40, 1};
  const DType dtype = kAllDTypes[run.seed() % kDTypes];
  Gradients gradients(run, short_list(dtype), {[&](Random& random, int tensor, int64_t index) {
                        const bool is_special = random.below(2) != 0;
                        return is_special ? kSpecial[random.below(11)]
                                          : ordinary_value(random, tensor, index);
                      }});
  // 0.1 and 0.3001 are rounded in every dtype; 65519 rounds down to float16's largest number,
  // 65520 and 1e300 round up to inf in float16 and in all but float64.
  for (const double limit : {0.1, 0.3001, 0.0, 1.0, 65519.0, 65520.0, 1e-42, 1e300, kInf}) {
    expect_clamp(run, gradients, limit);
  }
}

}  // namespace fastclip::kernel_tests
