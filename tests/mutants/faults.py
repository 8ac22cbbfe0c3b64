"""The faults that run.py plants in the CPU sources, and the tests that must notice each."""

from dataclasses import dataclass

KERNELS = "csrc/cpu/chunk_kernels.h"
VECTORS = "csrc/cpu/vectors.h"
ENGINE = "csrc/binding/engine.h"
GRADIENTS = "csrc/binding/gradients.h"
BINDINGS = "csrc/bindings.cpp"


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        name: what goes wrong, in words.
        file: the source, from the root of the tree.
        old: the text to replace; it must stand in the file exactly once.
        new: what replaces it.
        tests: test files, or ``file.py::test_name``, in tests/; at least one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "the tail of a reduction is left out",
        KERNELS,
        "rest != 0) {",
        "rest < 0) {",
        ("test_native.py::test_every_element_counts_once",),
    ),
    Fault(
        "the tail of a scale is one element short",
        KERNELS,
        "memcpy(to + at, tail, bytes - at);",
        "memcpy(to + at, tail, bytes - at - kSize);",
        ("test_native.py::test_each_awkward_size_alone",),
    ),
    Fault(
        "a load asks for an aligned address",
        VECTORS,
        "  V vector;\n  memcpy(&vector, address, sizeof(V));\n",
        "  V vector = *reinterpret_cast<const V*>(address);\n",
        ("test_native_bits.py::test_same_bits_at_any_address",),
    ),
    Fault(
        "lanes are float32 for a whole chunk",
        KERNELS,
        "lanes.sums[i] += x.values[i] * x.values[i];",
        "lanes.sums[i] = __builtin_convertvector("
        "__builtin_convertvector(lanes.sums[i] + x.values[i] * x.values[i], f32half), f64v);",
        ("test_native_accuracy.py::test_random_constants_do_not_drift",),
    ),
    Fault(
        "the rescue's lower threshold is 0",
        KERNELS,
        "static_cast<double>(count) * 0x1p-102;",
        "static_cast<double>(count) * 0.0;",
        ("test_native_accuracy.py::test_constants_over_the_whole_range",),
    ),
    Fault(
        "an overflowed sum is not rescued",
        KERNELS,
        "return overflowed || underflowed",
        "return underflowed",
        ("test_native_accuracy.py::test_squares_beyond_float32_are_rescued",),
    ),
    Fault(
        "a maximum over tensors drops NaN",
        ENGINE,
        "return b > a || b != b ? b : a;",
        "return b > a ? b : a;",
        ("test_native.py::test_nan_is_kept_from_any_chunk_and_tensor",),
    ),
    Fault(
        "a maximum within a chunk drops NaN",
        KERNELS,
        "maxima[i] = bits > maxima[i] ? bits : maxima[i];",
        "maxima[i] = (bits > maxima[i]) & (bits <= Magnitude<T>::kInfinity) ? bits : maxima[i];",
        ("test_native.py::test_nan_is_kept_wherever_it_stands",),
    ),
    Fault(
        "lanes depend on the width of a vector",
        KERNELS,
        "    for (int half = kLanes / 2; half > 0; half /= 2) {\n"
        "      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];\n"
        "    }\n",
        "    for (int i = 1; i < kLanes; ++i) lanes[0] += lanes[i * kDoubles % kLanes + "
        "i * kDoubles / kLanes];\n",
        (
            "test_native_bits.py::test_same_bits_for_each_instruction_set",
            "test_native_bits.py::test_same_bits_of_the_norm_of_any_values_for_each_instruction_set",
        ),
    ),
    Fault(
        "a clamp replaces NaN",
        KERNELS,
        "(magnitudes > limit) & (magnitudes <= Magnitude<T>::kInfinity)",
        "(magnitudes > limit) & (magnitudes > limit)",
        ("test_native.py::test_clamp_keeps_nan_and_the_sign_of_zero",),
    ),
    Fault(
        "float16 is read as bfloat16",
        GRADIENTS,
        "*dtype = DType::kFloat16;",
        "*dtype = DType::kBFloat16;",
        ("test_native.py::test_dtypes_mixed_in_one_list",),
    ),
    Fault(
        "a span skips its first chunk",
        ENGINE,
        "int64_t chunk = span.chunk;",
        "int64_t chunk = span.chunk > 0 ? span.chunk + 1 : 0;",
        (
            "test_native_bits.py::test_same_bits_for_any_number_of_threads",
            "test_native_accuracy.py",
        ),
    ),
    Fault(
        "partials are added as threads finish",
        ENGINE,
        "partials[chunk] = norm.partial(kernels, entry.dtype, data, count);",
        "static std::atomic<int64_t> slot{0};\n"
        "    partials[(slot++ + 0 * chunk) % list.chunks] =\n"
        "        norm.partial(kernels, entry.dtype, data, count);",
        ("test_native_threads.py::test_two_threads_clip_different_gradients",),
    ),
    Fault(
        "a coefficient of 1 is written",
        ENGINE,
        "if (clip_coef >= 1) return;",
        "if (clip_coef > 1) return;",
        ("test_native_memory.py::test_nothing_is_written_unless_it_must_be",),
    ),
    Fault(
        "a NaN coefficient is not written",
        ENGINE,
        "if (clip_coef >= 1) return;",
        "if (!(clip_coef < 1)) return;",
        ("test_native_memory.py::test_a_norm_that_is_not_finite_is_written",),
    ),
    Fault(
        "a shared gradient is scaled twice",
        GRADIENTS,
        "    drop_duplicates();\n",
        "",
        ("test_native_tensors.py::test_a_gradient_of_two_parameters_is_clipped_once",),
    ),
    Fault(
        "versions stay as they were",
        BINDINGS,
        "void scale(const Gradients& gradients, double clip_coef) {\n  bump_versions(gradients);\n",
        "void scale(const Gradients& gradients, double clip_coef) {\n",
        ("test_native_parameters.py::test_each_write_bumps_each_version_by_1_written_or_not",),
    ),
)
