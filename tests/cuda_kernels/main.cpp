// Runs cases of the CUDA kernels in the emulator, under every schedule and as many seeds as asked.
//
//     kernels list                  the names of all cases
//     kernels [--first] SEEDS CASE...
//
// Exit status 1 if a check failed; --first: after the first run with such a one.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cases.h"

namespace fastclip::kernel_tests {
namespace {

constexpr Case kCases[] = {{"clip_squares", clip_squares},
                           {"clip_wide_squares", clip_wide_squares},
                           {"clip_magnitudes", clip_magnitudes},
                           {"clip_maximum", clip_maximum},
                           {"clip_cubes", clip_cubes},
                           {"clip_roots", clip_roots},
                           {"clip_float64", clip_float64},
                           {"clip_awkward_lengths", clip_awkward_lengths},
                           {"clip_close_to_one", clip_close_to_one},
                           {"norm_alone", norm_alone},
                           {"norm_of_devices", norm_of_devices},
                           {"norm_of_a_total", norm_of_a_total},
                           {"partials_in_order", partials_in_order},
                           {"norm_of_constants", norm_of_constants},
                           {"norm_of_unlucky_vectors", norm_of_unlucky_vectors},
                           {"norm_of_nothing", norm_of_nothing},
                           {"norm_outputs_may_be_null", norm_outputs_may_be_null},
                           {"nonfinite_anywhere", nonfinite_anywhere},
                           {"nonfinite_error", nonfinite_error},
                           {"max_norm_values", max_norm_values},
                           {"inv_scale", inv_scale},
                           {"found_inf_anywhere", found_inf_anywhere},
                           {"found_inf_without_inf", found_inf_without_inf},
                           {"found_inf_already", found_inf_already},
                           {"rescue_extremes", rescue_extremes},
                           {"rescue_threshold", rescue_threshold},
                           {"scale_sources", scale_sources},
                           {"scale_lists", scale_lists},
                           {"scale_per_tensor", scale_per_tensor},
                           {"scale_into_targets", scale_into_targets},
                           {"unscale_sources", unscale_sources},
                           {"unscale_lists", unscale_lists},
                           {"unscale_and_clamp_lists", unscale_and_clamp_lists},
                           {"unscale_and_clamp_limits", unscale_and_clamp_limits},
                           {"unscale_tables", unscale_tables},
                           {"unscale_after_found_inf", unscale_after_found_inf},
                           {"clip_in_steps", clip_in_steps},
                           {"clamp_lists", clamp_lists},
                           {"clamp_limits", clamp_limits},
                           {"count_not_clipped", count_not_clipped},
                           {"count_clipped", count_clipped},
                           {"count_clamp", count_clamp},
                           {"count_clamp_of_few", count_clamp_of_few},
                           {"count_unscaled_clamp", count_unscaled_clamp},
                           {"count_scale", count_scale},
                           {"count_rescue", count_rescue},
                           {"count_backwards", count_backwards},
                           {"table_lengths", table_lengths},
                           {"table_targets", table_targets},
                           {"table_clip", table_clip},
                           {"cooperative_refused", cooperative_refused},
                           {"capture_and_replay", capture_and_replay},
                           {"loaded_before_capture", loaded_before_capture},
                           {"launch_failures", launch_failures},
                           {"other_device", other_device},
                           {"machine_errors", machine_errors},
                           {"grid_sizes", grid_sizes},
                           {"plan_chunk_sizes", plan_chunk_sizes},
                           {"plan_slots", plan_slots},
                           {"plan_huge", plan_huge},
                           {"offsets_beyond_32_bits", offsets_beyond_32_bits}};

const Case* find_case(const char* name) {
  for (const Case& known : kCases) {
    if (std::strcmp(known.name, name) == 0) return &known;
  }
  std::fprintf(stderr, "kernels: no case is named %s\n", name);
  std::exit(2);
}

// Returns whether all checks held.
bool run_case(const Case& one, int seeds, bool stops) {
  bool is_right = true;
  for (int seed = 0; seed < seeds; ++seed) {
    for (const emulator::Schedule schedule : emulator::kSchedules) {
      Run run(one.name, schedule, static_cast<uint64_t>(seed));
      one.body(run);
      is_right = is_right && run.failures() == 0;
      if (stops && !is_right) return false;
    }
  }
  return is_right;
}

int list_cases() {
  for (const Case& known : kCases) std::printf("%s\n", known.name);
  return 0;
}

int run_cases(int count, char** arguments) {
  const bool stops = count > 0 && std::strcmp(arguments[0], "--first") == 0;
  const int first = stops ? 1 : 0;
  const int seeds = first < count ? std::atoi(arguments[first]) : 0;
  if (seeds < 1 || first + 1 >= count) {
    std::fprintf(stderr, "usage: kernels list | kernels [--first] SEEDS CASE...\n");
    return 2;
  }
  bool is_right = true;
  for (int i = first + 1; i < count && (is_right || !stops); ++i) {
    is_right &= run_case(*find_case(arguments[i]), seeds, stops);
  }
  return is_right ? 0 : 1;
}

}  // namespace
}  // namespace fastclip::kernel_tests

int main(int argc, char** argv) {
  using namespace fastclip::kernel_tests;
  if (argc == 2 && std::strcmp(argv[1], "list") == 0) return list_cases();
  return run_cases(argc - 1, argv + 1);
}
