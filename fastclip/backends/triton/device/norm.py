"""The norm in two phases, as Triton functions: a partial for each group; then their results.

The fused kernel runs both with a barrier between them, the split kernels run one each. The list
fixes the order of every addition, so that equal inputs give equal bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .reduce import (
    ABS_MAX,
    INF,
    POWER_SUM,
    SUM_SQ,
    SUM_SQ_WIDE,
    join,
    join_all,
    reduce_rescued,
    reduce_rows,
)
from .words import (
    CHUNK_SIZE,
    CLIP_COEF,
    CODES,
    ERROR_IF_NONFINITE,
    FOUND_INF,
    GROUPS,
    IS_FLOAT64,
    MAX_NORM,
    MAX_NORM_TENSOR,
    NORM_TYPE,
    PARTIALS,
    SLOTS,
    SUMS,
    TENSORS,
    TOTAL,
    TOTAL_NORM,
    addresses,
    chunk_of,
    chunks_of,
    code_of,
    count_of,
    field,
    find_tensor,
    first_slots,
    float64_at,
    inv_scale_in,
    is_small,
    is_stopped,
    number,
    packed_counts,
    tensors_of,
    type_of,
)

PARTIALS_BLOCK = tl.constexpr(512)
CHUNKS_BLOCK = tl.constexpr(32)
EPS = tl.constexpr(1e-6)  # torch's: keeps the coefficient finite when every gradient is 0
ONE_BITS = tl.constexpr(0x3F800000)  # of a float32 1


@triton.jit
def reduce_small(
    call_ptr, tensors, tensor, slot, sums, norm_type, MIX: tl.constexpr, KIND: tl.constexpr
):
    """Reduce a group of small tensors and write the sum of each."""
    mine, is_mine = tensors_of(call_ptr, tensors, tensor, slot)
    address = tl.load(addresses(call_ptr) + mine, mask=is_mine, other=0)
    packed = tl.load(packed_counts(call_ptr, tensors) + mine, mask=is_mine, other=0)
    values = tl.zeros([SLOTS], tl.float64)
    for CODE in tl.static_range(CODES):
        if MIX & (1 << CODE):
            counts = tl.where(code_of(packed) == CODE, count_of(packed), 0)
            found = reduce_rows(address, counts, norm_type, type_of(CODE), KIND)
            values = join(values, found, KIND)
    if sums != 0:
        tl.store(float64_at(sums) + mine, values, mask=is_mine)
    return join_all(values, KIND)


@triton.jit
def reduce_large(
    call_ptr, tensors, tensor, slot, sums, norm_type, MIX: tl.constexpr, KIND: tl.constexpr
):
    """Reduce a chunk; write the tensor's sum if the chunk is all of it."""
    address, packed, skipped, count = chunk_of(call_ptr, tensors, tensor, slot)
    value = tl.zeros([], tl.float64)
    for CODE in tl.static_range(CODES):
        if MIX & (1 << CODE):
            if code_of(packed) == CODE:
                value = reduce_rescued(address + skipped, count, norm_type, type_of(CODE), KIND)
    if sums != 0 and chunks_of(address, packed, field(call_ptr, CHUNK_SIZE)) == 1:
        tl.store(float64_at(sums) + tensor, value)
    return value


@triton.jit
def reduce_group(call_ptr, tensors, group, sums, norm_type, MIX: tl.constexpr, KIND: tl.constexpr):
    """Return the value of a group of slots."""
    slot = group * SLOTS
    tensor = find_tensor(call_ptr, tensors, slot)
    if is_small(tl.load(packed_counts(call_ptr, tensors) + tensor)):
        value = reduce_small(call_ptr, tensors, tensor, slot, sums, norm_type, MIX, KIND)
    else:
        value = reduce_large(call_ptr, tensors, tensor, slot, sums, norm_type, MIX, KIND)
    return value


@triton.jit
def reduce_groups(call_ptr, MIX: tl.constexpr, KIND: tl.constexpr, FINDS_INF: tl.constexpr):
    """Run the first phase: program b takes groups b, b + G, ...; each partial has one writer."""
    tensors = field(call_ptr, TENSORS)
    sums = field(call_ptr, SUMS)
    norm_type = number(call_ptr, NORM_TYPE)
    partials_ptr = float64_at(field(call_ptr, PARTIALS))
    begin, end = tl.program_id(0).to(tl.int64), field(call_ptr, GROUPS)
    # Values hoisted out of the loop over groups would take registers in the loops over elements.
    for group in tl.range(begin, end, tl.num_programs(0), disable_licm=True):
        value = reduce_group(call_ptr, tensors, group, sums, norm_type, MIX, KIND)
        tl.store(partials_ptr + group, value)
        if FINDS_INF:
            if not (value < INF):
                if KIND != ABS_MAX:
                    # A sum may have overflowed without an inf among its elements.
                    value = reduce_group(call_ptr, tensors, group, 0, norm_type, MIX, ABS_MAX)
                if not (value < INF):
                    # An exchange, not a store: several programs may find one at the same time.
                    found_ptr = field(call_ptr, FOUND_INF).to(tl.pointer_type(tl.int32))
                    tl.atomic_xchg(found_ptr, ONE_BITS)


@triton.jit
def combine_partials(call_ptr, KIND: tl.constexpr):
    """Combine all partials in one fixed order."""
    partials_ptr = float64_at(field(call_ptr, PARTIALS))
    groups = field(call_ptr, GROUPS)
    lane = tl.arange(0, PARTIALS_BLOCK)
    values = tl.zeros([PARTIALS_BLOCK], tl.float64)
    for start in range(0, groups, PARTIALS_BLOCK):
        partial = tl.load(partials_ptr + start + lane, mask=start + lane < groups, other=0.0)
        values = join(values, partial, KIND)
    return join_all(values, KIND)


@triton.jit
def write_sums(call_ptr, KIND: tl.constexpr):
    """Write the sums of tensors with several chunks; all other sums are written already."""
    sums = field(call_ptr, SUMS)
    if sums != 0:
        tensors = field(call_ptr, TENSORS)
        chunk_size = field(call_ptr, CHUNK_SIZE)
        partials_ptr = float64_at(field(call_ptr, PARTIALS))
        column = tl.arange(0, CHUNKS_BLOCK)[None, :]
        step = tl.num_programs(0) * SLOTS
        for first in range(tl.program_id(0).to(tl.int64) * SLOTS, tensors, step):
            mine = first + tl.arange(0, SLOTS)
            mask = mine < tensors
            address = tl.load(addresses(call_ptr) + mine, mask=mask, other=0)
            packed = tl.load(packed_counts(call_ptr, tensors) + mine, mask=mask, other=0)
            slot = tl.load(first_slots(call_ptr, tensors) + mine, mask=mask, other=0)
            chunks = tl.where(is_small(packed), 0, chunks_of(address, packed, chunk_size))
            row_ptr = partials_ptr + (slot // SLOTS)[:, None]
            values = tl.zeros([SLOTS, CHUNKS_BLOCK], tl.float64)
            if tl.max(chunks) > 1:
                for start in range(0, tl.max(chunks), CHUNKS_BLOCK):
                    inside = start + column < chunks[:, None]
                    partial = tl.load(row_ptr + start + column, mask=inside, other=0.0)
                    values = join(values, partial, KIND)
                tl.store(float64_at(sums) + mine, join_all(values, KIND, 1), mask=chunks > 1)


@triton.jit
def root(total, norm_type, KIND: tl.constexpr):
    """Return the norm to which a sum belongs."""
    if KIND == POWER_SUM:
        return tl.exp2(tl.log2(total) / norm_type)
    elif KIND == SUM_SQ or KIND == SUM_SQ_WIDE:
        return tl.sqrt(total)
    else:
        return total


@triton.jit
def clip_coefficient(total_norm, max_norm):
    """Return (1 / (total_norm + eps)) * max_norm in the norm's dtype, clamped to 1; NaN stays."""
    one = tl.full([], 1.0, total_norm.dtype)
    eps = tl.full([], EPS, total_norm.dtype)
    if total_norm.dtype == tl.float64:
        clip_coef = (one / (total_norm + eps)) * max_norm
    else:
        clip_coef = tl.div_rn(one, total_norm + eps) * max_norm  # `/` approximates in float32
    return tl.where(clip_coef > 1.0, one, clip_coef)


@triton.jit
def factor_of(clip_coef, inv_scale):
    """Return what to multiply by, in float64, and whether to write.

    Nothing is written for a coefficient of 1 or more without inv_scale.
    """
    # NaN is not >= 1: it is written, as torch writes it.
    should_write = ~(tl.where(inv_scale == 1.0, clip_coef, 0.0) >= 1.0)
    return (clip_coef * inv_scale).to(tl.float64), should_write


@triton.jit
def factor_in(call_ptr, norm, T: tl.constexpr):
    """Round the norm to T, write it and its coefficient, and return what to multiply by."""
    total_norm = norm.to(T)  # the coefficient follows from what is returned
    max_norm = number(call_ptr, MAX_NORM).to(T)
    max_norm_tensor = field(call_ptr, MAX_NORM_TENSOR)
    if max_norm_tensor != 0:
        max_norm = tl.load(max_norm_tensor.to(tl.pointer_type(T)))
    clip_coef = clip_coefficient(total_norm, max_norm)
    if tl.program_id(0) == 0:
        norm_address = field(call_ptr, TOTAL_NORM)
        if norm_address != 0:
            tl.store(norm_address.to(tl.pointer_type(T)), total_norm)
        coef_address = field(call_ptr, CLIP_COEF)
        if coef_address != 0:
            tl.store(coef_address.to(tl.pointer_type(T)), clip_coef)
    factor, should_write = factor_of(clip_coef, inv_scale_in(call_ptr, T))
    is_finite = tl.abs(total_norm) < INF
    return factor, should_write and (is_finite or field(call_ptr, ERROR_IF_NONFINITE) == 0)


@triton.jit
def finish_norm(call_ptr, KIND: tl.constexpr):
    """Run the second phase up to the factor. All compute it; the first program writes results."""
    total = combine_partials(call_ptr, KIND)
    total_address = field(call_ptr, TOTAL)
    if total_address != 0 and tl.program_id(0) == 0:
        tl.store(float64_at(total_address), total)
    norm = root(total, number(call_ptr, NORM_TYPE), KIND)
    norm *= tl.abs(inv_scale_in(call_ptr, tl.float64))
    if field(call_ptr, IS_FLOAT64) != 0:
        factor, should_write = factor_in(call_ptr, norm, tl.float64)
    else:
        factor, should_write = factor_in(call_ptr, norm, tl.float32)
    return factor, should_write and not is_stopped(call_ptr)
