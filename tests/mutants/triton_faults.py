"""The faults that triton_run.py plants in the Triton kernels, and the test that must notice."""

from dataclasses import dataclass

FOLDER = "fastclip/backends/triton"
CALL = f"{FOLDER}/call.py"
LAUNCHES = f"{FOLDER}/launches.py"
NORM = f"{FOLDER}/device/norm.py"
REDUCE = f"{FOLDER}/device/reduce.py"
SCALE = f"{FOLDER}/device/scale.py"
WORDS = f"{FOLDER}/device/words.py"


@dataclass(frozen=True)
class TritonFault:
    """One planted fault.

    Attributes:
        name: what goes wrong, in words.
        file: the source, from the root of the tree.
        old: the text to replace; it must stand in the file exactly once.
        new: what replaces it.
        test: ``file.py::test_name[parameters]``, in tests/; an assertion of it must fail.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


FAULTS = (
    TritonFault(
        "later chunks begin where they would without a head",
        WORDS,
        "tl.where(chunk == 0, 0, head + chunk * chunk_size)",
        "tl.where(chunk == 0, 0, chunk * chunk_size)",
        "test_triton.py::test_every_misalignment[dtype2]",
    ),
    TritonFault(
        "a chunk ends one element too late",
        WORDS,
        "head + (chunk + 1) * chunk_size)",
        "head + (chunk + 1) * chunk_size + 1)",
        "test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "the search misses a tensor that begins at the slot",
        WORDS,
        "tl.load(slots_ptr + middle) <= slot",
        "tl.load(slots_ptr + middle) < slot",
        "test_triton.py::test_many_small_tensors_between_large_ones",
    ),
    TritonFault(
        "the last element before the first vector is forgotten",
        REDUCE,
        "(lane >= EDGE) | (lane < head)",
        "(lane >= EDGE) | (lane + 1 < head)",
        "test_triton.py::test_every_misalignment[dtype2]",
    ),
    TritonFault(
        "vectors begin at the head, which counts twice",
        REDUCE,
        "pointer_to(data + head * SIZE,",
        "pointer_to(data,",
        "test_triton.py::test_every_misalignment[dtype2]",
    ),
    TritonFault(
        "a mask lets a vector too many through",
        REDUCE,
        "mask=offsets + BLOCK < count,",
        "mask=offsets + BLOCK < count + VECTOR_BYTES // 4,",
        "test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "squares that lost digits are not summed again",
        REDUCE,
        "tl.constexpr(2.0**-102)",
        "tl.constexpr(2.0**-140)",
        "test_triton.py::test_squares_out_of_range_are_rescued_chunk_by_chunk[3e-20-dtype0]",
    ),
    TritonFault(
        "squares that overflowed are not summed again",
        REDUCE,
        "if not (value < INF) or (seen != 0",
        "if (seen != 0",
        "test_triton.py::test_squares_out_of_range_are_rescued_chunk_by_chunk[1e+20-dtype0]",
    ),
    TritonFault(
        "chunks of zeros are summed again",
        REDUCE,
        "(seen != 0 and value < count * LOST)",
        "value < count * LOST",
        "test_triton.py::test_only_chunks_out_of_range_are_read_again",
    ),
    TritonFault(
        "a negative zero counts as a small number",
        REDUCE,
        "& 0x7FFF7FFF",
        "& -1",
        "test_triton.py::test_only_chunks_out_of_range_are_read_again",
    ),
    TritonFault(
        "what the second of two halves holds is not seen",
        REDUCE,
        "& 0x7FFF7FFF",
        "& 0x7FFF",
        "test_triton_hazards.py::test_a_tiny_element_among_zeros_is_rescued_wherever_it_stands[dtype1]",
    ),
    TritonFault(
        "the first of two bfloat16 adds bits to the second",
        REDUCE,
        "(words & -65536)",
        "words",
        "test_triton.py::test_parameter_norms[2.0]",
    ),
    TritonFault(
        "the second of two float16 is the first",
        REDUCE,
        "(words >> 16).to(tl.int16)",
        "words.to(tl.int16)",
        "test_triton.py::test_parameter_norms[2.0]",
    ),
    TritonFault(
        "what rounded squares dropped is not added",
        REDUCE,
        "        squares += dropped.to(tl.float64)\n",
        "",
        "test_triton_hazards.py::test_four_squares_added_in_float32[unlucky-dtype2]",
    ),
    TritonFault(
        "a maximum over blocks drops NaN",
        REDUCE,
        "seen = tl.maximum(seen, magnitude(words))",
        "seen = tl.maximum(seen, magnitude(words) * (words == words))",
        "test_triton_hazards.py::test_nan_is_kept_wherever_it_stands[inf-dtype2]",
    ),
    TritonFault(
        "a maximum of partials drops NaN",
        REDUCE,
        "tl.max(values.to(tl.int64, bitcast=True), axis)",
        "tl.max(values, axis)",
        "test_triton.py::test_found_inf_is_set_and_nothing_written[13-nan-fused]",
    ),
    TritonFault(
        "a group of small tensors takes those of the next",
        WORDS,
        "return mine, first_slot == slot + row",
        "return mine, mine < tensors",
        "test_triton.py::test_many_small_tensors_between_large_ones",
    ),
    TritonFault(
        "the sums of tensors of two chunks are not written",
        NORM,
        "mask=chunks > 1",
        "mask=chunks > 2",
        "test_triton.py::test_parameter_norms[2.0]",
    ),
    TritonFault(
        "chunks are counted as if there were no head",
        NORM,
        "chunks_of(address, packed, chunk_size))",
        "chunks_of(address * 0, packed, chunk_size))",
        "test_triton.py::test_parameter_norms[2.0]",
    ),
    TritonFault(
        "partials beyond a block of them are forgotten",
        NORM,
        "for start in range(0, groups, PARTIALS_BLOCK):",
        "for start in range(0, 1, PARTIALS_BLOCK):",
        "test_triton_hazards.py::test_more_groups_than_a_block_of_partials",
    ),
    TritonFault(
        "a tensor's chunks beyond a block of them are forgotten",
        NORM,
        "range(0, tl.max(chunks), CHUNKS_BLOCK)",
        "range(0, 1, CHUNKS_BLOCK)",
        "test_triton_hazards.py::test_more_chunks_in_a_tensor_than_a_block_of_them",
    ),
    TritonFault(
        "the coefficient follows from the norm before it is rounded",
        NORM,
        "clip_coef = clip_coefficient(total_norm, max_norm)\n    if",
        "clip_coef = clip_coefficient(norm, max_norm.to(tl.float64)).to(T)\n    if",
        "test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "a coefficient of 1 is written",
        NORM,
        "not (clip_coef >= 1.0 and",
        "not (clip_coef > 1.0 and",
        "test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "a NaN coefficient is not written",
        NORM,
        "not (clip_coef >= 1.0 and inv_scale == 1.0)",
        "clip_coef < 1.0 or inv_scale != 1.0",
        "test_triton_hazards.py::test_the_coefficient_of_a_norm_that_is_not_finite_is_written[nan]",
    ),
    TritonFault(
        "a negative inv_scale makes a negative norm",
        NORM,
        "tl.abs(tl.load(float32_at(inv_scale_address)).to(tl.float64))",
        "tl.load(float32_at(inv_scale_address)).to(tl.float64)",
        "test_triton.py::test_found_inf_is_set_and_nothing_written[3-None-fused]",
    ),
    TritonFault(
        "gradients are not multiplied by inv_scale",
        NORM,
        "(clip_coef * inv_scale).to(tl.float64)",
        "clip_coef.to(tl.float64)",
        "test_triton.py::test_found_inf_is_set_and_nothing_written[3-None-fused]",
    ),
    TritonFault(
        "found_inf of before the call does not protect the gradients",
        NORM,
        "tl.load(float32_at(found_inf)) == 0.0",
        "norm < INF",
        "test_triton.py::test_found_inf_is_set_and_nothing_written[3-None-fused]",
    ),
    TritonFault(
        "found_inf is cleared by a group without an inf",
        NORM,
        "if FINDS_INF:\n",
        "if FINDS_INF:\n            tl.store(float32_at(field(call_ptr, FOUND_INF)), 0.0)\n",
        "test_triton.py::test_found_inf_is_set_and_nothing_written[3-inf-fused]",
    ),
    TritonFault(
        "the look for an inf overwrites the sums",
        NORM,
        "group, 0, norm_type, MIX, ABS_MAX",
        "group, sums, norm_type, MIX, ABS_MAX",
        "test_triton.py::test_an_overflow_of_powers_is_no_inf",
    ),
    TritonFault(
        "a rescale's tail writes a whole vector",
        SCALE,
        "rest // PER_VECTOR * PER_VECTOR",
        "(rest + PER_VECTOR - 1) // PER_VECTOR * PER_VECTOR",
        "test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[fused-2.0]",
    ),
    TritonFault(
        "a clamp writes every vector",
        SCALE,
        "keep_dims=True) > 0",
        "keep_dims=True) >= 0",
        "test_triton.py::test_a_clamp_writes_only_vectors_that_change",
    ),
    TritonFault(
        "a clamp writes every element beside the vectors",
        SCALE,
        "tl.store(target.to(tl.pointer_type(T)) + offsets, new, mask=mask & is_changed)",
        "tl.store(target.to(tl.pointer_type(T)) + offsets, new, mask=mask)",
        "test_triton.py::test_a_clamp_writes_only_vectors_that_change",
    ),
    TritonFault(
        "a clamp's limit is not rounded to the dtype",
        SCALE,
        "value.to(wide.dtype).to(x.dtype).to(wide.dtype)",
        "value.to(wide.dtype)",
        "test_triton_hazards.py::test_a_clamp_compares_with_its_limit_as_the_dtype_holds_it[dtype1]",
    ),
    TritonFault(
        "a clamp replaces NaN",
        SCALE,
        "is_above, is_below = wide > limit,",
        "is_above, is_below = ~(wide <= limit),",
        "test_triton_hazards.py::test_a_clamp_keeps_nan[dtype2]",
    ),
    TritonFault(
        "the targets of large tensors are ignored",
        SCALE,
        "tl.load(targets(call_ptr, tensors) + tensor) + skipped",
        "source",
        "test_triton.py::test_scaled_into_other_tensors[shifts0-0.37]",
    ),
    TritonFault(
        "a target at another address is written in vectors",
        SCALE,
        "((source ^ target) & (VECTOR_BYTES - 1)) == 0",
        "((source ^ target) & 3) == 0",
        "test_triton.py::test_scaled_into_other_tensors[shifts1-0.37]",
    ),
    TritonFault(
        "a product that is NaN is not written to its target",
        SCALE,
        "tl.full(wide.shape, 1, tl.int1)",
        "wide == wide",
        "test_triton_hazards.py::test_nan_reaches_a_target[dtype0-shifts0]",
    ),
    TritonFault(
        "a tensor's coefficient of 1 is written",
        SCALE,
        "~(values >= 1.0)",
        "~(values > 1.0)",
        "test_triton.py::test_a_coefficient_for_each_tensor[dtype0]",
    ),
    TritonFault(
        "programs leave groups of the last round as they were",
        SCALE,
        "tl.cdiv(field(call_ptr, GROUPS) - tl.program_id(0), programs)",
        "field(call_ptr, GROUPS) // programs",
        "test_triton.py::test_gradients_are_read_once_and_nothing_beside_them[split-2.0]",
    ),
    TritonFault(
        "a clip is fused that nobody asked for",
        LAUNCHES,
        "if clip_mode() != FUSED:",
        'if clip_mode() == "split":',
        "test_triton_launches.py::test_a_clip_is_two_launches",
    ),
    TritonFault(
        "a program for every second group",
        CALL,
        "_resident_programs(self.device.index), self.packed.groups)",
        "_resident_programs(self.device.index), self.packed.groups // 2)",
        "test_triton_launches.py::test_a_clip_is_two_launches",
    ),
    TritonFault(
        "a fused clip that was refused is not tried again",
        CALL,
        "if not is_cooperative and not is_passing(error):",
        "if not is_passing(error):",
        "test_triton_launches.py::test_a_fused_clip_that_is_refused_raises_and_is_tried_again",
    ),
)
