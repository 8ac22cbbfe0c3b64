// Every case, by file. main.cpp lists them.
#pragma once

#include "run.h"

namespace fastclip::kernel_tests {

// clip_cases.cpp
void clip_squares(Run& run);
void clip_wide_squares(Run& run);
void clip_magnitudes(Run& run);
void clip_maximum(Run& run);
void clip_cubes(Run& run);
void clip_roots(Run& run);
void clip_float64(Run& run);
void clip_awkward_lengths(Run& run);
void clip_close_to_one(Run& run);

// norm_cases.cpp
void norm_alone(Run& run);
void norm_of_devices(Run& run);
void norm_of_a_total(Run& run);
void partials_in_order(Run& run);
void norm_of_constants(Run& run);
void norm_of_unlucky_vectors(Run& run);
void norm_of_nothing(Run& run);
void norm_outputs_may_be_null(Run& run);

// nonfinite_cases.cpp
void nonfinite_anywhere(Run& run);
void nonfinite_error(Run& run);
void max_norm_values(Run& run);

// amp_cases.cpp
void inv_scale(Run& run);
void found_inf_anywhere(Run& run);
void found_inf_without_inf(Run& run);
void found_inf_already(Run& run);

// rescue_cases.cpp
void rescue_extremes(Run& run);
void rescue_threshold(Run& run);

// scale_cases.cpp
void scale_sources(Run& run);
void scale_lists(Run& run);
void scale_per_tensor(Run& run);
void scale_into_targets(Run& run);

// unscale_cases.cpp
void unscale_sources(Run& run);
void unscale_lists(Run& run);
void unscale_and_clamp_lists(Run& run);
void unscale_and_clamp_limits(Run& run);
void unscale_tables(Run& run);
void unscale_after_found_inf(Run& run);
void clip_in_steps(Run& run);

// clamp_cases.cpp
void clamp_lists(Run& run);
void clamp_limits(Run& run);

// count_cases.cpp
void count_not_clipped(Run& run);
void count_clipped(Run& run);
void count_clamp(Run& run);
void count_clamp_of_few(Run& run);
void count_unscaled_clamp(Run& run);
void count_scale(Run& run);
void count_rescue(Run& run);
void count_backwards(Run& run);

// table_cases.cpp
void table_lengths(Run& run);
void table_targets(Run& run);
void table_clip(Run& run);

// launch_cases.cpp
void cooperative_refused(Run& run);
void capture_and_replay(Run& run);
void loaded_before_capture(Run& run);
void launch_failures(Run& run);
void other_device(Run& run);
void machine_errors(Run& run);
void grid_sizes(Run& run);

// plan_cases.cpp
void plan_chunk_sizes(Run& run);
void plan_slots(Run& run);
void plan_huge(Run& run);
void offsets_beyond_32_bits(Run& run);

}  // namespace fastclip::kernel_tests
