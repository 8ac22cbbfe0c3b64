"""The faults that cuda_run.py plants in the CUDA sources, and the cases that must notice each."""

from dataclasses import dataclass
from typing import Literal

from planting import Fault

CLIP = "csrc/cuda/clip.cu"
FACTOR = "csrc/cuda/factor.cuh"
NORM = "csrc/cuda/norm.cuh"
REDUCE = "csrc/cuda/reduce.cuh"
SCALE = "csrc/cuda/scale.cuh"
SCALE_KERNELS = "csrc/cuda/scale.cu"
TABLE = "csrc/cuda/table.cuh"
TABLE_WRITER = "csrc/cuda/table.cu"
VECTOR = "csrc/cuda/vector.cuh"
WORK = "csrc/gpu_work.h"
LAUNCHERS = "csrc/cuda/launchers.cpp"
COEFFICIENT = "csrc/coefficient.h"


@dataclass(frozen=True)
class CudaFault(Fault):
    """A fault with what must notice it.

    Attributes:
        cases: of tests/cuda_kernels, likeliest first; one must fail.
        build: what the cases are run in: "thread" is ThreadSanitizer's.
    """

    cases: tuple[str, ...]
    build: Literal["plain", "thread"] = "plain"


# Faults that only ThreadSanitizer sees come first: they take longest.
FAULTS = (
    CudaFault(
        "the grid sync orders no memory",
        CLIP,
        "cooperative_groups::this_grid().sync();",
        "emulator::relaxed_grid_sync();",
        ("clip_squares",),
        "thread",
    ),
    CudaFault(
        "a partial is written by two blocks",
        NORM,
        "       group += static_cast<int>(gridDim.x)) {\n    tensor",
        "       group += max(1, static_cast<int>(gridDim.x) - 1)) {\n    tensor",
        ("clip_squares",),
        "thread",
    ),
    CudaFault(
        "one buffer of shared memory where two take turns",
        REDUCE,
        "    turn_ ^= 1;\n",
        "",
        ("clip_squares",),
        "thread",
    ),
    CudaFault(
        "no __syncthreads between the warps' values and their sum",
        REDUCE,
        "    __syncthreads();\n",
        "",
        ("clip_squares",),
    ),
    CudaFault(
        "no grid sync",
        CLIP,
        "  sync_grid();\n",
        "",
        ("clip_squares",),
    ),
    CudaFault(
        "the block of the last group returns before the grid sync",
        CLIP,
        "  sync_grid();\n",
        "  if (static_cast<int>(blockIdx.x) == shape.groups - 1) return;\n  sync_grid();\n",
        ("clip_awkward_lengths",),
    ),
    CudaFault(
        "the last element of a tail is not read",
        VECTOR,
        "if (last < tail) {",
        "if (last + 1 < tail) {",
        ("clip_awkward_lengths",),
    ),
    CudaFault(
        "a head as long as the address is past the boundary",
        WORK,
        "static_cast<int64_t>(-address % kVectorBytes)",
        "static_cast<int64_t>(address % kVectorBytes)",
        ("clip_awkward_lengths", "clip_squares"),
    ),
    CudaFault(
        "later chunks begin where they would without a head",
        TABLE,
        "chunk == 0 ? 0 : head + chunk * chunk_size;",
        "chunk * chunk_size;",
        ("clip_squares",),
    ),
    CudaFault(
        "the search misses a tensor that begins at the slot",
        TABLE,
        "if (table.first_slot(middle) <= slot) {",
        "if (table.first_slot(middle) < slot) {",
        ("clip_squares",),
    ),
    CudaFault(
        "the last warp is forgotten",
        REDUCE,
        "for (int i = 1; i < kWarps; ++i) {",
        "for (int i = 1; i < kWarps - 1; ++i) {",
        ("clip_squares",),
    ),
    CudaFault(
        "an offset within a tensor overflows 32 bits",
        TABLE,
        "head + chunk * chunk_size;",
        "static_cast<int32_t>(head + chunk * chunk_size);",
        ("offsets_beyond_32_bits",),
    ),
    CudaFault(
        "an offset within a target overflows 32 bits",
        SCALE,
        "work.begin * static_cast<int64_t>(sizeof(typename T::Element));",
        "static_cast<int32_t>(work.begin * static_cast<int64_t>(sizeof(typename T::Element)));",
        ("offsets_beyond_32_bits",),
    ),
    CudaFault(
        "a maximum drops NaN",
        REDUCE,
        "return b > a || b != b ? b : a;",
        "return fmax(a, b);",
        ("nonfinite_anywhere",),
    ),
    CudaFault(
        "a coefficient a little below 1 is not applied",
        FACTOR,
        "!(coef >= 1 && scale == 1)",
        "!(coef >= T(0.999) && scale == 1)",
        ("clip_close_to_one",),
    ),
    CudaFault(
        "a coefficient of 1 is written",
        FACTOR,
        "!(coef >= 1 && scale == 1)",
        "!(coef > 1 && scale == 1)",
        ("count_not_clipped",),
    ),
    CudaFault(
        "a NaN coefficient is not written",
        FACTOR,
        "!(coef >= 1 && scale == 1)",
        "(coef < 1 || scale != 1)",
        ("nonfinite_anywhere",),
    ),
    CudaFault(
        "squares that lost digits are not summed again",
        REDUCE,
        "sum < count * 0x1p-102",
        "sum < count * 0x1p-130",
        ("rescue_threshold",),
    ),
    CudaFault(
        "squares that overflowed are not summed again",
        REDUCE,
        "!isfinite(sum) || (any",
        "(any",
        ("rescue_threshold",),
    ),
    CudaFault(
        "chunks of zeros are summed again",
        REDUCE,
        "(any_magnitude && sum < count * 0x1p-102)",
        "sum < count * 0x1p-102",
        ("count_rescue",),
    ),
    CudaFault(
        "found_inf is cleared by a thread that saw nothing",
        NORM,
        "if (!isfinite(seen.value())) atomicExch(found_inf, 1.0f);",
        "atomicExch(found_inf, isfinite(seen.value()) ? 0.0f : 1.0f);",
        ("found_inf_anywhere",),
    ),
    CudaFault(
        "found_inf of before the call does not protect the gradients",
        NORM,
        "if (is_set(norm.found_inf))",
        "if (norm.found_inf != nullptr && !isfinite(total))",
        ("found_inf_already",),
    ),
    CudaFault(
        "an overflowing sum sets found_inf",
        NORM,
        "if (!isfinite(seen.value())) atomicExch(found_inf, 1.0f);",
        "atomicExch(found_inf, 1.0f);",
        ("found_inf_without_inf",),
    ),
    CudaFault(
        "a small tensor has the dtype of its group's first",
        TABLE,
        "dtype_of(table, mine)}};",
        "dtype}};",
        ("clip_squares",),
    ),
    CudaFault(
        "a tensor's sum takes a chunk of the next one",
        NORM,
        "chunks_of_large(table.address(tensor), count, dtype, shape.chunk_size)",
        "chunks_of_large(0, count, dtype, shape.chunk_size)",
        ("clip_squares",),
    ),
    CudaFault(
        "a negative inv_scale makes a negative norm",
        NORM,
        "fabs(static_cast<double>(__ldcg(result.inv_scale)))",
        "static_cast<double>(__ldcg(result.inv_scale))",
        ("inv_scale",),
    ),
    CudaFault(
        "error_if_nonfinite changes the gradients",
        NORM,
        "  if (result.error_if_nonfinite && !isfinite(total_norm)) factor.should_write = false;\n",
        "",
        ("nonfinite_error",),
    ),
    CudaFault(
        "a product is rounded once, in float64",
        SCALE,
        "value *= static_cast<typename T::Value>(coef);",
        "value = static_cast<typename T::Value>(value * coef);",
        ("scale_lists",),
    ),
    CudaFault(
        "a target at another address is written in vectors",
        SCALE,
        "% kVectorBytes == 0;",
        "% 4 == 0;",
        ("scale_into_targets",),
    ),
    CudaFault(
        "a clamp replaces NaN",
        SCALE,
        "const bool is_out = fabs(value) > limit;",
        "const bool is_out = !(fabs(value) <= limit);",
        ("clamp_limits",),
    ),
    CudaFault(
        "a coefficient that is not below 1 leaves targets unwritten",
        SCALE_KERNELS,
        "shape.has_targets || factor.should_write",
        "factor.should_write",
        ("scale_into_targets",),
    ),
    CudaFault(
        "inv_scale is not applied without a clip",
        FACTOR,
        "!(coef >= 1 && scale == 1)",
        "!(coef >= 1)",
        ("unscale_lists", "inv_scale"),
    ),
    CudaFault(
        "a coefficient times inv_scale is not rounded",
        FACTOR,
        "static_cast<double>(coef * scale)",
        "static_cast<double>(coef) * static_cast<double>(scale)",
        ("unscale_sources",),
    ),
    CudaFault(
        "a scale forgets inv_scale",
        SCALE_KERNELS,
        "factor_of(coef_of<float>(coefs, tensor), coefs.inv_scale)",
        "factor_of(coef_of<float>(coefs, tensor), nullptr)",
        ("clip_in_steps",),
    ),
    CudaFault(
        "a number is not rounded to the dtype of the product",
        SCALE_KERNELS,
        "    const Factor factor = coefs.is_float64\n",
        "    const bool is_number = coefs.per_tensor == nullptr && coefs.clip_coef == nullptr &&\n"
        "                           coefs.total_norm == nullptr;\n"
        "    const Factor factor = coefs.is_float64 || is_number\n",
        ("unscale_sources",),
    ),
    CudaFault(
        "found_inf does not stop a scale",
        SCALE_KERNELS,
        "  if (!shape.has_targets && is_set(coefs.found_inf)) return;\n",
        "",
        ("unscale_after_found_inf",),
    ),
    CudaFault(
        "found_inf leaves targets unwritten",
        SCALE_KERNELS,
        "if (!shape.has_targets && is_set(coefs.found_inf)) return;",
        "if (is_set(coefs.found_inf)) return;",
        ("unscale_after_found_inf",),
    ),
    CudaFault(
        "found_inf does not stop a clamp",
        SCALE_KERNELS,
        "  if (is_set(clamp.found_inf)) return;\n  change_groups(",
        "  change_groups(",
        ("unscale_after_found_inf",),
    ),
    CudaFault(
        "found_inf does not stop a clamp with inv_scale",
        SCALE_KERNELS,
        "  if (is_set(clamp.found_inf)) return;\n  const float",
        "  const float",
        ("unscale_after_found_inf",),
    ),
    CudaFault(
        "a clamp goes without inv_scale",
        SCALE_KERNELS,
        "clamp.inv_scale == nullptr ? &clamp_kernel<Table>",
        "clamp.inv_scale != nullptr ? &clamp_kernel<Table>",
        ("unscale_and_clamp_lists",),
    ),
    CudaFault(
        "found_inf counts only where it is 1",
        FACTOR,
        "__ldcg(found_inf) != 0;",
        "__ldcg(found_inf) == 1;",
        ("unscale_after_found_inf",),
    ),
    CudaFault(
        "found_inf counts where it is 0",
        FACTOR,
        "found_inf != nullptr && __ldcg(found_inf) != 0;",
        "found_inf != nullptr;",
        ("unscale_tables",),
    ),
    CudaFault(
        "a clamp forgets inv_scale",
        SCALE_KERNELS,
        "const float inv_scale = __ldcg(clamp.inv_scale);",
        "const float inv_scale = 1;",
        ("unscale_and_clamp_lists",),
    ),
    CudaFault(
        "a clamp comes before the product",
        SCALE,
        "    multiply.template apply<T>(value);\n"
        "    const bool is_out = clamp.template apply<T>(value);\n",
        "    const bool is_out = clamp.template apply<T>(value);\n"
        "    multiply.template apply<T>(value);\n",
        ("unscale_and_clamp_limits",),
    ),
    CudaFault(
        "a product within the limit is not written",
        SCALE,
        "return writes_all || is_out;",
        "return is_out;",
        ("unscale_and_clamp_lists",),
    ),
    CudaFault(
        "a clamp with inv_scale of 1 writes all",
        SCALE_KERNELS,
        "{clamp.clip_value}, inv_scale != 1};",
        "{clamp.clip_value}, true};",
        ("count_unscaled_clamp",),
    ),
    CudaFault(
        "a total is finished without inv_scale",
        NORM,
        "if (result.inv_scale != nullptr) value *=",
        "if (result.inv_scale != nullptr && norm.sums != nullptr) value *=",
        ("norm_of_a_total",),
    ),
    CudaFault(
        "max_norm on the device does not count",
        NORM,
        "const T max_norm = result.max_norm_tensor != nullptr\n",
        "const T max_norm = false\n",
        ("norm_of_a_total",),
    ),
    CudaFault(
        "every part of a long table is the first",
        TABLE_WRITER,
        "pack_table<Table>(list, first, size)",
        "pack_table<Table>(list, 0, size)",
        ("table_lengths",),
    ),
    CudaFault(
        "the coefficient has no epsilon",
        COEFFICIENT,
        "(total_norm + T(kEps))",
        "total_norm",
        ("clip_squares", "norm_of_nothing"),
    ),
    CudaFault(
        "a partial past the end is read",
        NORM,
        "batch[k] = i < count ? __ldcg(partials + i) : 0;",
        "batch[k] = i <= count ? __ldcg(partials + i) : 0;",
        ("partials_in_order",),
    ),
    CudaFault(
        "a second round of partials is taken for the first",
        NORM,
        "if (count <= kBlockSize) {",
        "if (count <= 2 * kBlockSize) {",
        ("partials_in_order",),
    ),
    CudaFault(
        "a round of partials is left out",
        NORM,
        "first += kLoads * kBlockSize) {",
        "first += 2 * kLoads * kBlockSize) {",
        ("partials_in_order",),
    ),
    CudaFault(
        "four partials are added in another order",
        NORM,
        "for (const double partial : batch) value = Sum::combine(value, partial);",
        "for (int k = kLoads - 1; k >= 0; --k) value = Sum::combine(value, batch[k]);",
        ("partials_in_order",),
    ),
    CudaFault(
        "a block for every four groups",
        LAUNCHERS,
        "std::max(1, std::min(*blocks, groups))",
        "std::max(1, std::min(*blocks, groups / 4))",
        ("grid_sizes",),
    ),
    CudaFault(
        "a tensor of 16 KiB is large",
        WORK,
        "kSmallBytes = (int64_t{1} << 14) + 1;",
        "kSmallBytes = int64_t{1} << 14;",
        ("plan_slots",),
    ),
    CudaFault(
        "a large tensor begins within a group",
        WORK,
        "if (is_large) slots = (slots + kWarps - 1) / kWarps * kWarps;\n",
        "",
        ("plan_slots",),
    ),
    CudaFault(
        "a refused launch leaves its error behind",
        LAUNCHERS,
        "  if (status != cudaSuccess) cudaGetLastError();\n",
        "",
        ("cooperative_refused",),
    ),
    CudaFault(
        "a cooperative launch that is refused becomes two launches",
        LAUNCHERS,
        "    if (mode == CudaMode::kFused) return launch_fused(list, sums, result, queue);\n",
        "    if (mode == CudaMode::kFused &&\n"
        "        launch_fused(list, sums, result, queue) == cudaSuccess) {\n"
        "      return cudaSuccess;\n"
        "    }\n",
        ("cooperative_refused",),
    ),
    CudaFault(
        "a fused clip is split while a graph is captured",
        LAUNCHERS,
        "    if (mode == CudaMode::kFused) return",
        "    bool is_capturing(int, void*);\n"
        "    if (mode == CudaMode::kFused && !is_capturing(device, stream)) return",
        ("loaded_before_capture",),
    ),
    CudaFault(
        "a split clip is fused",
        LAUNCHERS,
        "    if (mode == CudaMode::kFused) return",
        "    return",
        ("cooperative_refused",),
    ),
    CudaFault(
        "the device that was current is not restored",
        LAUNCHERS,
        "if (saved_ >= 0) take_error(cudaSetDevice(saved_));",
        "",
        ("other_device",),
    ),
    CudaFault(
        "only the first warp decides whether a chunk holds anything",
        REDUCE,
        "      *seen |= scratch_.seen[turn_][i] != 0;\n",
        "",
        ("rescue_extremes",),
    ),
    CudaFault(
        "what rounded squares dropped is not added",
        REDUCE,
        "return squares + dropped;",
        "return squares;",
        ("norm_of_unlucky_vectors",),
    ),
    CudaFault(
        "four squares are added in a row",
        REDUCE,
        "(a + b) + (c + d);",
        "((a + b) + c) + d;",
        ("norm_of_unlucky_vectors",),
    ),
    CudaFault(
        "a negative zero counts as a small number",
        VECTOR,
        "kMagnitudes = 0x7fffffff;",
        "kMagnitudes = 0xffffffff;",
        ("count_rescue",),
    ),
    CudaFault(
        "the rescale goes through the list forwards",
        SCALE,
        "  for (int group = block + (shape.groups - 1 - block) / blocks * blocks; group >= 0;\n"
        "       group -= blocks) {",
        "  for (int group = block; group < shape.groups; group += blocks) {",
        ("count_backwards",),
    ),
    CudaFault(
        "a doubt about capture counts as no",
        LAUNCHERS,
        "take_error(status) != cudaSuccess || capture",
        "take_error(status) == cudaSuccess && capture",
        ("cooperative_refused",),
    ),
    CudaFault(
        "the first driver that takes long arguments gets short ones",
        LAUNCHERS,
        "version >= 12010;",
        "version > 12010;",
        ("table_lengths",),
    ),
)
