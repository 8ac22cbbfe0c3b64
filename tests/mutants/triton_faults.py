"""The faults that triton_run.py plants in the Triton kernels, and the test that must notice."""

from dataclasses import dataclass

from planting import Fault

FOLDER = "fastclip/backends/triton"
ARGUMENTS = f"{FOLDER}/arguments.py"
BACKEND = f"{FOLDER}/backend.py"
CALL = f"{FOLDER}/call.py"
LAUNCHES = f"{FOLDER}/launches.py"
KERNELS = f"{FOLDER}/device/kernels.py"
NORM = f"{FOLDER}/device/norm.py"
REDUCE = f"{FOLDER}/device/reduce.py"
SCALE = f"{FOLDER}/device/scale.py"
WORDS = f"{FOLDER}/device/words.py"


@dataclass(frozen=True)
class TritonFault(Fault):
    """A fault with what must notice it.

    Attributes:
        test: ``file.py::test_name[parameters]``, in tests/; an assertion of it must fail.
    """

    test: str


FAULTS = (
    TritonFault(
        "later chunks begin where they would without a head",
        WORDS,
        "tl.where(chunk == 0, 0, head + chunk * chunk_size)",
        "tl.where(chunk == 0, 0, chunk * chunk_size)",
        "triton/test_triton.py::test_every_misalignment[dtype2]",
    ),
    TritonFault(
        "a chunk ends one element too late",
        WORDS,
        "head + (chunk + 1) * chunk_size)",
        "head + (chunk + 1) * chunk_size + 1)",
        "triton/test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "the search misses a tensor that begins at the slot",
        WORDS,
        "tl.load(slots_ptr + middle) <= slot",
        "tl.load(slots_ptr + middle) < slot",
        "triton/test_triton.py::test_many_small_tensors_between_large_ones",
    ),
    TritonFault(
        "the last element before the first vector is forgotten",
        REDUCE,
        "(lane >= EDGE) | (lane < head)",
        "(lane >= EDGE) | (lane + 1 < head)",
        "triton/test_triton.py::test_every_misalignment[dtype2]",
    ),
    TritonFault(
        "vectors begin at the head, which counts twice",
        REDUCE,
        "pointer_to(data + head * SIZE,",
        "pointer_to(data,",
        "triton/test_triton.py::test_every_misalignment[dtype2]",
    ),
    TritonFault(
        "a mask lets a vector too many through",
        REDUCE,
        "mask=offsets + BLOCK < count,",
        "mask=offsets + BLOCK < count + VECTOR_BYTES // 4,",
        "triton/test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "squares that lost digits are not summed again",
        REDUCE,
        "tl.constexpr(2.0**-102)",
        "tl.constexpr(2.0**-140)",
        "triton/test_triton.py::test_squares_out_of_range_are_rescued_chunk_by_chunk[3e-20-dtype0]",
    ),
    TritonFault(
        "squares that overflowed are not summed again",
        REDUCE,
        "if not (value < INF) or (seen != 0",
        "if (seen != 0",
        "triton/test_triton.py::test_squares_out_of_range_are_rescued_chunk_by_chunk[1e+20-dtype0]",
    ),
    TritonFault(
        "chunks of zeros are summed again",
        REDUCE,
        "(seen != 0 and value < count * LOST)",
        "value < count * LOST",
        "triton/test_triton.py::test_only_chunks_out_of_range_are_read_again",
    ),
    TritonFault(
        "a negative zero counts as a small number",
        REDUCE,
        "& 0x7FFF7FFF",
        "& -1",
        "triton/test_triton.py::test_only_chunks_out_of_range_are_read_again",
    ),
    TritonFault(
        "what the second of two halves holds is not seen",
        REDUCE,
        "& 0x7FFF7FFF",
        "& 0x7FFF",
        "triton/test_triton_hazards.py::test_a_tiny_element_among_zeros_is_rescued_wherever_it_stands[dtype1]",
    ),
    TritonFault(
        "the first of two bfloat16 adds bits to the second",
        REDUCE,
        "(words & -65536)",
        "words",
        "triton/test_triton.py::test_parameter_norms[2.0]",
    ),
    TritonFault(
        "the second of two float16 is the first",
        REDUCE,
        "(words >> 16).to(tl.int16)",
        "words.to(tl.int16)",
        "triton/test_triton.py::test_parameter_norms[2.0]",
    ),
    TritonFault(
        "what rounded squares dropped is not added",
        REDUCE,
        "        squares += dropped.to(tl.float64)\n",
        "",
        "triton/test_triton_hazards.py::test_four_squares_added_in_float32[unlucky-dtype2]",
    ),
    TritonFault(
        "a maximum over blocks drops NaN",
        REDUCE,
        "seen = tl.maximum(seen, magnitude(words))",
        "seen = tl.maximum(seen, magnitude(words) * (words == words))",
        "triton/test_triton_hazards.py::test_nan_is_kept_wherever_it_stands[inf-dtype2]",
    ),
    TritonFault(
        "a maximum of partials drops NaN",
        REDUCE,
        "tl.max(values.to(tl.int64, bitcast=True), axis)",
        "tl.max(values, axis)",
        "triton/test_triton.py::test_found_inf_is_set_and_nothing_written[13-nan-fused]",
    ),
    TritonFault(
        "a group of small tensors takes those of the next",
        WORDS,
        "return mine, first_slot == slot + row",
        "return mine, mine < tensors",
        "triton/test_triton.py::test_many_small_tensors_between_large_ones",
    ),
    TritonFault(
        "the sums of tensors of two chunks are not written",
        NORM,
        "mask=chunks > 1",
        "mask=chunks > 2",
        "triton/test_triton.py::test_parameter_norms[2.0]",
    ),
    TritonFault(
        "chunks are counted as if there were no head",
        NORM,
        "chunks_of(address, packed, chunk_size))",
        "chunks_of(address * 0, packed, chunk_size))",
        "triton/test_triton.py::test_parameter_norms[2.0]",
    ),
    TritonFault(
        "partials beyond a block of them are forgotten",
        NORM,
        "for start in range(0, groups, PARTIALS_BLOCK):",
        "for start in range(0, 1, PARTIALS_BLOCK):",
        "triton/test_triton_hazards.py::test_more_groups_than_a_block_of_partials",
    ),
    TritonFault(
        "a tensor's chunks beyond a block of them are forgotten",
        NORM,
        "range(0, tl.max(chunks), CHUNKS_BLOCK)",
        "range(0, 1, CHUNKS_BLOCK)",
        "triton/test_triton_hazards.py::test_more_chunks_in_a_tensor_than_a_block_of_them",
    ),
    TritonFault(
        "the coefficient follows from the norm before it is rounded",
        NORM,
        "clip_coef = clip_coefficient(total_norm, max_norm)\n    if",
        "clip_coef = clip_coefficient(norm, max_norm.to(tl.float64)).to(T)\n    if",
        "triton/test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "a coefficient of 1 is written",
        NORM,
        "clip_coef, 0.0) >= 1.0)",
        "clip_coef, 0.0) > 1.0)",
        "triton/test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "a NaN coefficient is not written",
        NORM,
        "~(tl.where(inv_scale == 1.0, clip_coef, 0.0) >= 1.0)",
        "tl.where(inv_scale == 1.0, clip_coef, 0.0) < 1.0",
        "triton/test_triton_hazards.py::test_the_coefficient_of_a_norm_that_is_not_finite_is_written[nan]",
    ),
    TritonFault(
        "a negative inv_scale makes a negative norm",
        NORM,
        "tl.abs(inv_scale_in(call_ptr, tl.float64))",
        "inv_scale_in(call_ptr, tl.float64)",
        "triton/test_triton.py::test_found_inf_is_set_and_nothing_written[3-None-fused]",
    ),
    TritonFault(
        "gradients are not multiplied by inv_scale",
        NORM,
        "(clip_coef * inv_scale).to(tl.float64)",
        "clip_coef.to(tl.float64)",
        "triton/test_triton.py::test_found_inf_is_set_and_nothing_written[3-None-fused]",
    ),
    TritonFault(
        "found_inf of before the call does not protect the gradients",
        NORM,
        "not is_stopped(call_ptr)",
        "norm < INF",
        "triton/test_triton.py::test_found_inf_is_set_and_nothing_written[3-None-fused]",
    ),
    TritonFault(
        "found_inf is cleared by a group without an inf",
        NORM,
        "if FINDS_INF:\n",
        "if FINDS_INF:\n            found_ptr = field(call_ptr, FOUND_INF)\n"
        "            tl.store(found_ptr.to(tl.pointer_type(tl.float32)), 0.0)\n",
        "triton/test_triton.py::test_found_inf_is_set_and_nothing_written[3-inf-fused]",
    ),
    TritonFault(
        "the look for an inf overwrites the sums",
        NORM,
        "group, 0, norm_type, MIX, ABS_MAX",
        "group, sums, norm_type, MIX, ABS_MAX",
        "triton/test_triton.py::test_an_overflow_of_powers_is_no_inf",
    ),
    TritonFault(
        "a rescale's tail writes a whole vector",
        SCALE,
        "rest // PER_VECTOR * PER_VECTOR",
        "(rest + PER_VECTOR - 1) // PER_VECTOR * PER_VECTOR",
        "triton/test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "a clamp writes every vector",
        SCALE,
        "keep_dims=True) > 0",
        "keep_dims=True) >= 0",
        "triton/test_triton.py::test_a_clamp_writes_only_vectors_that_change",
    ),
    TritonFault(
        "a clamp writes every element beside the vectors",
        SCALE,
        "tl.store(target.to(tl.pointer_type(T)) + offsets, new, mask=mask & is_changed)",
        "tl.store(target.to(tl.pointer_type(T)) + offsets, new, mask=mask)",
        "triton/test_triton.py::test_a_clamp_writes_only_vectors_that_change",
    ),
    TritonFault(
        "a clamp's limit is not rounded to the dtype",
        SCALE,
        "value.to(wide.dtype).to(x.dtype).to(wide.dtype)",
        "value.to(wide.dtype)",
        "triton/test_triton_hazards.py::test_a_clamp_compares_with_its_limit_as_the_dtype_holds_it[dtype1]",
    ),
    TritonFault(
        "a clamp replaces NaN",
        SCALE,
        "is_above, is_below = wide > limit,",
        "is_above, is_below = ~(wide <= limit),",
        "triton/test_triton_hazards.py::test_a_clamp_keeps_nan[dtype2]",
    ),
    TritonFault(
        "the targets of large tensors are ignored",
        SCALE,
        "tl.load(targets(call_ptr, tensors) + tensor) + skipped",
        "source",
        "triton/test_triton.py::test_scaled_into_other_tensors[shifts0-0.37]",
    ),
    TritonFault(
        "a target at another address is written in vectors",
        SCALE,
        "((source ^ target) & (VECTOR_BYTES - 1)) == 0",
        "((source ^ target) & 3) == 0",
        "triton/test_triton.py::test_scaled_into_other_tensors[shifts1-0.37]",
    ),
    TritonFault(
        "a product that is NaN is not written to its target",
        SCALE,
        "return multiplied(x, value), tl.full(x.shape, 1, tl.int1)",
        "return multiplied(x, value), x == x",
        "triton/test_triton_hazards.py::test_nan_reaches_a_target[dtype0-shifts0]",
    ),
    TritonFault(
        "a tensor's coefficient of 1 is written",
        SCALE,
        "should_write = mask & should_write if FORM == WHERE_NEEDED else mask",
        "should_write = mask",
        "triton/test_triton.py::test_a_coefficient_for_each_tensor[dtype0]",
    ),
    TritonFault(
        "programs leave groups of the last round as they were",
        SCALE,
        "tl.cdiv(field(call_ptr, GROUPS) - tl.program_id(0), programs)",
        "field(call_ptr, GROUPS) // programs",
        "triton/test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[split-2.0]",
    ),
    TritonFault(
        "a clip is fused that nobody asked for",
        LAUNCHES,
        "request.writes and is_fused()",
        "request.writes and not is_fused()",
        "triton/test_triton_launches.py::test_a_clip_is_two_launches",
    ),
    TritonFault(
        "a program for every second group",
        CALL,
        "_resident_programs(self.device.index), self.packed.groups)",
        "_resident_programs(self.device.index), self.packed.groups // 2)",
        "triton/test_triton_launches.py::test_a_clip_is_two_launches",
    ),
    TritonFault(
        "a fused clip that was refused is not tried again",
        CALL,
        "if not is_cooperative and not is_transient(error):",
        "if not is_transient(error):",
        "triton/test_triton_launches.py::test_a_fused_clip_that_is_refused_raises_and_is_tried_again",
    ),
    TritonFault(
        "a scale is written though found_inf is set",
        KERNELS,
        "if should_write and not is_stopped(call_ptr):",
        "if should_write:",
        "triton/test_triton_operations.py::test_scale_by_a_number_is_a_float64_product[all]",
    ),
    TritonFault(
        "a clamp is written though found_inf is set",
        KERNELS,
        "    if not is_stopped(call_ptr):\n        limit",
        "    if call != 0:\n        limit",
        "triton/test_triton_operations.py::test_clamp_is_one_of_products[all]",
    ),
    TritonFault(
        "targets are not written where found_inf is set",
        KERNELS,
        "    change_groups(call_ptr, factor, inv_scale, MIX, MULTIPLY, INTO_TARGETS)",
        "    if not is_stopped(call_ptr):\n"
        "        change_groups(call_ptr, factor, inv_scale, MIX, MULTIPLY, INTO_TARGETS)",
        "triton/test_triton_operations.py::test_scale_into_writes_whatever_is_found[True-all]",
    ),
    TritonFault(
        "a scale does not multiply by inv_scale",
        KERNELS,
        "factor, should_write = rounded_factor_of(call_ptr, clip_coef, inv_scale)",
        "factor, should_write = rounded_factor_of(call_ptr, clip_coef, inv_scale * 0 + 1)",
        "triton/test_triton_operations.py::test_scale_by_a_number_is_a_float64_product[all]",
    ),
    TritonFault(
        "a float32 coefficient is multiplied in float64",
        SCALE,
        "factor = factor.to(tl.float32).to(tl.float64)",
        "factor = factor * 1.0",
        "triton/test_triton_operations.py::test_scale_by_a_tensor_is_a_product_of_its_dtype[dtype0-all]",
    ),
    TritonFault(
        "coefficients of tensors are not multiplied by inv_scale",
        SCALE,
        "rounded_factor_of(call_ptr, values, inv_scale)",
        "rounded_factor_of(call_ptr, values, inv_scale * 0 + 1)",
        "triton/test_triton_operations.py::test_scale_by_a_coefficient_for_each[dtype0-all]",
    ),
    TritonFault(
        "a clamp compares before it multiplies",
        SCALE,
        "new, _ = clamped(multiplied(x, inv_scale), value)",
        "new = multiplied(clamped(x, value)[0], inv_scale)",
        "triton/test_triton_operations.py::test_clamp_is_one_of_products[all]",
    ),
    TritonFault(
        "a clamp of products writes only what was out of range",
        SCALE,
        "new, _ = clamped(multiplied(x, inv_scale), value)\n"
        "        return new, tl.full(x.shape, 1, tl.int1)",
        "return clamped(multiplied(x, inv_scale), value)",
        "triton/test_triton_operations.py::test_clamp_is_one_of_products[all]",
    ),
    TritonFault(
        "a maximum that is not finite is taken again",
        NORM,
        "if KIND != ABS_MAX:",
        "if KIND != SUM_SQ:",
        "triton/test_triton_lists.py"
        "::test_a_held_list_that_was_checked_is_not_read_for_the_flag_again[scale-reduce]",
    ),
    TritonFault(
        "a list checked for one found_inf counts as checked for all",
        BACKEND,
        "found_inf is not None and found_inf is self._checked",
        "found_inf is not None and self._checked is not None",
        "triton/test_triton_lists.py"
        "::test_a_held_list_that_was_checked_is_not_read_for_the_flag_again[scale-reduce]",
    ),
    TritonFault(
        "a list that was written counts as checked",
        BACKEND,
        "packed.bump_versions()\n        self._checked = None",
        "packed.bump_versions()",
        "triton/test_triton_lists.py::test_what_was_written_is_checked_again[scale]",
    ),
    TritonFault(
        "a list that is not held counts as checked",
        BACKEND,
        "if self._is_held and found_inf is not None:",
        "if found_inf is not None:",
        "triton/test_triton_lists.py::test_a_list_that_is_not_held_is_checked_at_each_operation",
    ),
    TritonFault(
        "versions stay as they were",
        BACKEND,
        "packed.bump_versions()\n        self._checked = None",
        "self._checked = None",
        "triton/test_triton_operations.py::test_scale_by_a_number_is_a_float64_product[float32]",
    ),
    TritonFault(
        "a given total is not among the partials",
        LAUNCHES,
        "            call.set(words.GROUPS, 1)\n",
        "",
        "triton/test_triton_lists.py::test_a_total_of_several_lists[dtype0-2.0]",
    ),
    TritonFault(
        "the coefficient is left where the total is",
        CALL,
        "self.set(words.CLIP_COEF, self._total_at + WORD_BYTES)",
        "self.set(words.CLIP_COEF, self._total_at)",
        "triton/test_triton_operations.py::test_clip[0.7-float32]",
    ),
    TritonFault(
        "inv_scale is read while a gradient that holds it is written",
        ARGUMENTS,
        "inv_scale = _copy_if_held(inv_scale, packed)",
        "inv_scale = inv_scale.detach()",
        "triton/test_triton_arguments.py::test_scalars_within_a_gradient_are_read_before_that_is_written[0]",
    ),
    TritonFault(
        "a float32 tensor on the CPU is a float64 number for a GPU",
        ARGUMENTS,
        "return Multiplier(number=float(by.detach()), is_float64=is_float64)",
        "return Multiplier(number=float(by.detach()))",
        "triton/test_triton_arguments.py::test_what_lies_on_the_cpu_is_a_number_for_a_gpu[None-float32]",
    ),
)
