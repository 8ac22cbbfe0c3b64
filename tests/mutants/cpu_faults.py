"""The faults that cpu_run.py plants in the CPU sources, and the tests that must notice each."""

from dataclasses import dataclass

from planting import Fault

KERNELS = "csrc/cpu/chunk_kernels.h"
VECTORS = "csrc/cpu/vectors.h"
TENSOR_LIST = "csrc/tensor_list.h"
ENGINE = "csrc/cpu_engine.h"
COLLECTOR = "csrc/binding/walk/collector.h"
GRADIENTS = "csrc/binding/gradients.h"
CHANGES = "csrc/binding/changes.h"
NORMS = "csrc/binding/norms.h"
GRAD_LIST = "csrc/binding/grad_list.h"
COEFFICIENT = "csrc/coefficient.h"


@dataclass(frozen=True)
class CpuFault(Fault):
    """A fault with what must notice it.

    Attributes:
        tests: ``file.py::test_name``, in tests/; at least one must fail.
        needs_two_sets: only another instruction set, without the fault, can show it.
    """

    tests: tuple[str, ...]
    needs_two_sets: bool = False


# Faults that need the binding compiled, which takes longest, come first.
FAULTS = (
    CpuFault(
        "a chunk that holds one element is forgotten",
        TENSOR_LIST,
        "return (count + chunk_size - 1) / chunk_size;",
        "return (count + chunk_size - 2) / chunk_size;",
        ("native/test_native.py::test_each_awkward_size_alone",),
    ),
    CpuFault(
        "a span starts at its tensor's first chunk",
        ENGINE,
        "int64_t chunk = span.chunk;",
        "int64_t chunk = 0;",
        ("native/test_native_accuracy.py::test_random_constants_do_not_drift",),
    ),
    CpuFault(
        "chunks depend on the number of threads",
        ENGINE,
        "list.chunk_size = choose_chunk_size(total_count);",
        "list.chunk_size = choose_chunk_size(total_count) * at::get_num_threads();",
        ("native/test_native_bits.py::test_same_bits_for_any_number_of_threads",),
    ),
    CpuFault(
        "a coefficient of 1 is written",
        ENGINE,
        "if (chosen >= 1) return inv_scale != 1;",
        "if (chosen > 1) return inv_scale != 1;",
        ("native/test_native_memory.py::test_nothing_is_written_unless_it_must_be",),
    ),
    CpuFault(
        "a NaN coefficient is not written",
        ENGINE,
        "if (chosen >= 1) return inv_scale != 1;",
        "if (!(chosen < 1)) return inv_scale != 1;",
        ("native/test_native_memory.py::test_a_norm_that_is_not_finite_is_written",),
    ),
    CpuFault(
        "the coefficient adds another epsilon",
        COEFFICIENT,
        "(total_norm + T(kEps))",
        "(total_norm + T(kEps / 10))",
        ("native/test_native.py::test_each_awkward_size_alone",),
    ),
    CpuFault(
        "a maximum over chunks and tensors drops NaN",
        ENGINE,
        "return b > a || b != b ? b : a;",
        "return b > a ? b : a;",
        ("native/test_native.py::test_nan_is_kept_from_any_chunk_and_tensor",),
    ),
    CpuFault(
        "a shared gradient is scaled twice",
        COLLECTOR,
        "    if (writes_) drop_duplicates();\n",
        "",
        ("native/test_native_tensors.py::test_a_gradient_of_two_parameters_is_clipped_once",),
    ),
    CpuFault(
        "gradients are only borrowed while Python code runs",
        COLLECTOR,
        "    ahead_.forget();\n    gradients_.own();\n",
        "    ahead_.forget();\n",
        ("native/test_native_hazards.py::test_a_grad_property_may_drop_the_gradients_before_it",),
    ),
    CpuFault(
        "a DTensor that has no gradient here is passed over",
        COLLECTOR,
        "    if (takes_norm_ && may_have_gradient_elsewhere(object)) {",
        "    if (false && may_have_gradient_elsewhere(object)) {",
        ("distributed/test_dtensor.py::test_dtensors_on_one_mesh[1]",),
    ),
    CpuFault(
        "a list without gradients has a norm",
        NORMS,
        "    if (!finished.total_norm.defined()) return std::nullopt;\n",
        "    if (!finished.total_norm.defined()) return scalar_tensor(0, false);\n",
        ("api/test_nothing_to_clip.py::test_the_norm_of_nothing_follows_torchs_defaults",),
    ),
    CpuFault(
        "an address is kept although Python code has run since",
        COLLECTOR,
        "        gradients_.entries[i] = entry;\n        gradients_.is_on_gpu",
        "        gradients_.is_on_gpu",
        (
            "native/test_native_hazards.py"
            "::test_a_grad_property_may_replace_the_memory_of_a_gradient_before_it",
        ),
    ),
    CpuFault(
        "an alias has no owner while the GIL is released",
        GRADIENTS,
        "for (c10::TensorImpl* const impl : duplicates) owners.push_back(owner_of(impl));",
        "",
        (
            "native/test_native_hazards.py::test_another_thread_may_drop_an_alias_while_the_norm_is_taken",
        ),
    ),
    CpuFault(
        "memory that another allocator made is compared only with its like",
        COLLECTOR,
        "storage.device_type() == at::kCPU || !is_cuda_allocation(storage)",
        "false",
        (
            "native/test_native_tensors.py"
            "::test_an_alias_of_a_gradient_is_clipped_once_and_both_versions_tell",
        ),
    ),
    CpuFault(
        "versions stay as they were",
        CHANGES,
        "  if (parts[0].targets.empty()) gradients.bump_versions();\n",
        "",
        (
            "native/test_native_parameters.py::test_each_write_bumps_each_version_by_1_written_or_not",
        ),
    ),
    CpuFault(
        "the GIL is held during a reduction",
        GRAD_LIST,
        "      const AtWork at_work(&gradients, found->parts, options.norm_type);\n",
        "",
        ("native/test_native_threads.py::test_other_threads_run_during_a_call",),
    ),
    CpuFault(
        "an overflowed sum of finite elements sets found_inf",
        ENGINE,
        "if (!std::isfinite(largest)) any_inf.store(true, std::memory_order_relaxed);",
        "any_inf.store(largest >= 0, std::memory_order_relaxed);",
        ("lists/test_grad_list.py::test_a_sum_that_overflows_sets_no_flag[native]",),
    ),
    CpuFault(
        "a gradient that found_inf protects is scaled",
        CHANGES,
        "    } else if (!found_inf->stops(i)) {\n      scale_entries",
        "    } else {\n      scale_entries",
        (
            "lists/test_grad_list_writes.py::test_a_flag_that_is_set_already_stays_and_stops_every_write[native]",
        ),
    ),
    CpuFault(
        "a coefficient of 1 leaves out inv_scale",
        ENGINE,
        "if (chosen >= 1) return inv_scale != 1;",
        "if (chosen >= 1) return false;",
        ("lists/test_grad_list.py::test_a_clip_unscales_measures_and_rescales[native-0.125]",),
    ),
    CpuFault(
        "a float32 coefficient leaves out inv_scale",
        COEFFICIENT,
        "return static_cast<float>(clip_coef) * static_cast<float>(inv_scale);",
        "return static_cast<float>(clip_coef);",
        ("lists/test_grad_list.py::test_a_clip_unscales_measures_and_rescales[native-3.0]",),
    ),
    CpuFault(
        "a held list counts as checked whatever it was checked for",
        GRAD_LIST,
        "checked_.defined() && checked_.is_same(found_inf.tensor());",
        "is_held_;",
        (
            "lists/test_grad_list_writes.py::test_writes_look_for_inf_before_they_write[native-True]",
        ),
    ),
    CpuFault(
        "a tail of one element is left out of a reduction",
        KERNELS,
        "rest != 0) {",
        "rest > 1) {",
        ("native/test_native.py::test_every_element_counts_once",),
    ),
    CpuFault(
        "a reduction's tail reads a whole block",
        KERNELS,
        "memcpy(tail, p, rest * kSize);",
        "memcpy(tail, p, sizeof(tail));",
        (
            "native/test_native_memory.py::test_the_neighbours_of_every_gradient_are_unchanged_and_uncounted",
        ),
    ),
    CpuFault(
        "a scale's tail is one element short",
        KERNELS,
        "memcpy(to + at, tail, bytes - at);",
        "memcpy(to + at, tail, bytes - at - kSize);",
        ("native/test_native.py::test_each_awkward_size_alone",),
    ),
    CpuFault(
        "a scale's tail writes a whole vector",
        KERNELS,
        "memcpy(to + at, tail, bytes - at);",
        "memcpy(to + at, tail, sizeof(tail));",
        (
            "native/test_native_memory.py::test_the_neighbours_of_every_gradient_are_unchanged_and_uncounted",
        ),
    ),
    CpuFault(
        "a reduction starts at an aligned address",
        KERNELS,
        "const char* p = static_cast<const char*>(data);",
        "const char* p = reinterpret_cast<const char*>("
        "reinterpret_cast<uintptr_t>(data) & ~uintptr_t{15});",
        ("native/test_native_bits.py::test_same_bits_at_any_address_for_each_instruction_set",),
    ),
    CpuFault(
        "a load asks for an aligned address",
        VECTORS,
        "  V vector;\n  memcpy(&vector, address, sizeof(V));\n",
        "  V vector = *reinterpret_cast<const V*>(address);\n",
        ("native/test_native_bits.py::test_same_bits_at_any_address_for_each_instruction_set",),
    ),
    CpuFault(
        "lanes are float32 for a whole chunk",
        KERNELS,
        "lanes.sums[i] += x.values[i] * x.values[i];",
        "lanes.sums[i] = __builtin_convertvector("
        "__builtin_convertvector(lanes.sums[i] + x.values[i] * x.values[i], f32half), f64v);",
        ("native/test_native_accuracy.py::test_random_constants_do_not_drift",),
    ),
    CpuFault(
        "the rescue of small squares starts too late",
        KERNELS,
        "static_cast<double>(count) * 0x1p-102;",
        "static_cast<double>(count) * 0x1p-140;",
        ("native/test_native_accuracy.py::test_constants_over_the_whole_range",),
    ),
    CpuFault(
        "an overflowed sum is not rescued",
        KERNELS,
        "return overflowed || underflowed",
        "return (false && overflowed) || underflowed",
        ("native/test_native_accuracy.py::test_squares_beyond_float32_are_rescued",),
    ),
    CpuFault(
        "a maximum within a chunk drops NaN",
        KERNELS,
        "maxima[i] = bits > maxima[i] ? bits : maxima[i];",
        "maxima[i] = (bits > maxima[i]) & (bits <= Magnitude<T>::kInfinity) ? bits : maxima[i];",
        ("native/test_native.py::test_nan_is_kept_wherever_it_stands",),
    ),
    # Only the instruction set in use is compiled with a fault, so that it differs from the others.
    CpuFault(
        "the lanes of one instruction set are others",
        KERNELS,
        "constexpr int kLanes = 16;",
        "constexpr int kLanes = 32;",
        ("native/test_native_bits.py::test_same_bits_for_each_instruction_set",),
        needs_two_sets=True,
    ),
    CpuFault(
        "a product and a sum are contracted into one operation",
        KERNELS,
        "lanes.sums[i] += x.values[i] * x.values[i];",
        "for (int k = 0; k < kDoubles; ++k) lanes.sums[i][k] = "
        "__builtin_fma(x.values[i][k], x.values[i][k], lanes.sums[i][k]);",
        ("native/test_native_bits.py::test_same_bits_of_short_norms_for_each_instruction_set",),
        needs_two_sets=True,
    ),
    CpuFault(
        "float16 and bfloat16 are mixed up in a scale",
        KERNELS,
        "{scale_float32, scale_float64, scale_bfloat16, scale_float16},",
        "{scale_float32, scale_float64, scale_float16, scale_bfloat16},",
        ("native/test_native.py::test_dtypes_mixed_in_one_list",),
    ),
    CpuFault(
        "ties are rounded away from zero in bfloat16",
        VECTORS,
        "bits + 0x7fffu + ((bits >> 16) & 1u);",
        "bits + 0x8000u;",
        ("native/test_native.py::test_scale_has_the_bits_of_torchs_product",),
    ),
    CpuFault(
        "a clamp replaces NaN",
        KERNELS,
        "(magnitudes > limit) & (magnitudes <= Magnitude<T>::kInfinity)",
        "(magnitudes > limit) & (magnitudes > limit)",
        ("native/test_native.py::test_clamp_keeps_nan_and_the_sign_of_zero",),
    ),
)
