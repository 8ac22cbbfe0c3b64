"""Multiplying and clamping gradients, in place or into other tensors, as Triton functions."""

from __future__ import annotations

import triton
import triton.language as tl

from .norm import clip_coefficient, factor_of
from .reduce import COLUMNS, LOADS, THREADS, edges_of, load_four, pointer_to
from .words import (
    CLIP_COEF,
    CODES,
    COEFS,
    GROUPS,
    IS_FLOAT64,
    MAX_NORM,
    MAX_NORM_TENSOR,
    SLOTS,
    TENSORS,
    TOTAL_NORM,
    VALUE,
    VECTOR_BYTES,
    addresses,
    bytes_of,
    chunk_of,
    code_of,
    count_of,
    field,
    find_tensor,
    float32_at,
    float64_at,
    head_of,
    is_small,
    number,
    packed_counts,
    targets,
    tensors_of,
    type_of,
)

# What is done to an element.
MULTIPLY = tl.constexpr(0)  # by a coefficient: float32 for 16- and 32-bit elements, one rounding
CLAMP = tl.constexpr(1)  # to [-limit, limit]; NaN stays
SCALE_AND_CLAMP = tl.constexpr(2)  # the product with inv_scale, rounded to the dtype

UNALIGNED_BLOCK = tl.constexpr(1024)

# Which tensors are changed, and where results go.
ALL = tl.constexpr(0)  # in place
WHERE_NEEDED = tl.constexpr(1)  # in place, except by coefficients of 1 and more
INTO_TARGETS = tl.constexpr(2)  # new memory: written whatever the coefficient


@triton.jit
def multiplied(x, value):
    """Return the products, rounded once."""
    wide = x if x.dtype == tl.float64 else x.to(tl.float32)
    return (wide * value.to(wide.dtype)).to(x.dtype)


@triton.jit
def clamped(x, value):
    """Return the elements within the limit, and which of them were outside."""
    wide = x if x.dtype == tl.float64 else x.to(tl.float32)
    limit = value.to(wide.dtype).to(x.dtype).to(wide.dtype)  # as the dtype holds it
    is_above, is_below = wide > limit, wide < -limit
    new = tl.where(is_above, limit, tl.where(is_below, -limit, wide))
    return new.to(x.dtype), is_above | is_below


@triton.jit
def changed(x, value, inv_scale, CHANGE: tl.constexpr):
    """Return the new elements, and which of them differ from the old."""
    if CHANGE == MULTIPLY:
        # All elements count, also NaN: a target holds nothing yet.
        return multiplied(x, value), tl.full(x.shape, 1, tl.int1)
    elif CHANGE == CLAMP:
        return clamped(x, value)
    else:
        new, _ = clamped(multiplied(x, inv_scale), value)
        return new, tl.full(x.shape, 1, tl.int1)


@triton.jit
def change_block(
    x, target_ptr, offsets, count, value, inv_scale, CHANGE: tl.constexpr, IS_WHOLE: tl.constexpr
):
    """Write a block's new elements; a clamp writes only vectors in which one was out of range."""
    new, is_changed = changed(x, value, inv_scale, CHANGE)
    if CHANGE == CLAMP:
        mask = tl.broadcast_to(
            tl.max(is_changed.to(tl.int32), 1, keep_dims=True) > 0, offsets.shape
        )
        if not IS_WHOLE:
            mask = mask & (offsets < count)
        tl.store(target_ptr + offsets, new, mask=mask)
    elif IS_WHOLE:
        tl.store(target_ptr + offsets, new)
    else:
        tl.store(target_ptr + offsets, new, mask=offsets < count)


@triton.jit
def change_batch(
    source_ptr,
    target_ptr,
    offsets,
    count,
    value,
    inv_scale,
    BLOCK: tl.constexpr,
    CHANGE: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """Load a batch of LOADS blocks, all of it or the first ``count`` elements; then change it."""
    a, b, c, d = load_four(source_ptr, offsets, count, BLOCK, IS_WHOLE)
    e, f, g, h = load_four(source_ptr + 4 * BLOCK, offsets, count - 4 * BLOCK, BLOCK, IS_WHOLE)
    change_block(a, target_ptr, offsets, count, value, inv_scale, CHANGE, IS_WHOLE)
    change_block(b, target_ptr, offsets + BLOCK, count, value, inv_scale, CHANGE, IS_WHOLE)
    change_block(c, target_ptr, offsets + 2 * BLOCK, count, value, inv_scale, CHANGE, IS_WHOLE)
    change_block(d, target_ptr, offsets + 3 * BLOCK, count, value, inv_scale, CHANGE, IS_WHOLE)
    change_block(e, target_ptr, offsets + 4 * BLOCK, count, value, inv_scale, CHANGE, IS_WHOLE)
    change_block(f, target_ptr, offsets + 5 * BLOCK, count, value, inv_scale, CHANGE, IS_WHOLE)
    change_block(g, target_ptr, offsets + 6 * BLOCK, count, value, inv_scale, CHANGE, IS_WHOLE)
    change_block(h, target_ptr, offsets + 7 * BLOCK, count, value, inv_scale, CHANGE, IS_WHOLE)


@triton.jit
def change_chunk(source, target, count, value, inv_scale, T: tl.constexpr, CHANGE: tl.constexpr):
    """Change consecutive elements.

    ``target`` is the source, or other memory with the same offset from a 16-byte boundary.
    """
    SIZE: tl.constexpr = bytes_of(T)
    PER_VECTOR: tl.constexpr = VECTOR_BYTES // SIZE
    BLOCK: tl.constexpr = THREADS * PER_VECTOR
    BATCH: tl.constexpr = LOADS * BLOCK
    head = head_of(source, count, SIZE)
    source_ptr = pointer_to(source + head * SIZE, T)
    target_ptr = pointer_to(target + head * SIZE, T)
    batches = (count - head) // BATCH
    rest = ((count - head) % BATCH).to(tl.int32)
    rest = tl.multiple_of(rest // PER_VECTOR * PER_VECTOR, PER_VECTOR)
    # There is a row for each vector, so that a mask can be the same for a whole vector.
    offsets = tl.arange(0, THREADS)[:, None] * PER_VECTOR + tl.arange(0, PER_VECTOR)[None, :]
    for i in range(batches):
        from_ptr, to_ptr = source_ptr + i * BATCH, target_ptr + i * BATCH
        change_batch(from_ptr, to_ptr, offsets, rest, value, inv_scale, BLOCK, CHANGE, True)
    if rest > 0:
        from_ptr, to_ptr = source_ptr + batches * BATCH, target_ptr + batches * BATCH
        change_batch(from_ptr, to_ptr, offsets, rest, value, inv_scale, BLOCK, CHANGE, False)
    # There is one lane per thread: with fewer lanes Triton replicates them, and every thread would
    # read what one of them writes.
    offsets, mask = edges_of(head, head + batches * BATCH + rest, THREADS)
    mask = mask & (offsets < count)
    x = tl.load(source.to(tl.pointer_type(T)) + offsets, mask=mask, other=0.0)
    new, is_changed = changed(x, value, inv_scale, CHANGE)
    tl.store(target.to(tl.pointer_type(T)) + offsets, new, mask=mask & is_changed)


@triton.jit
def multiply_unaligned(source, target, count, value, T: tl.constexpr):
    """Multiply consecutive elements into memory with a different offset from a 16-byte boundary."""
    offsets = tl.arange(0, UNALIGNED_BLOCK)
    for start in range(0, count, UNALIGNED_BLOCK):
        mask = start + offsets < count
        x = tl.load(source.to(tl.pointer_type(T)) + start + offsets, mask=mask, other=0.0)
        tl.store(target.to(tl.pointer_type(T)) + start + offsets, multiplied(x, value), mask=mask)


@triton.jit
def change_rows(source, target, counts, values, inv_scale, T: tl.constexpr, CHANGE: tl.constexpr):
    """Change up to eight small tensors, one for each row."""
    column = tl.arange(0, COLUMNS)[None, :]
    source_ptr = source.to(tl.pointer_type(T))[:, None]
    target_ptr = target.to(tl.pointer_type(T))[:, None]
    for start in range(0, tl.max(counts).to(tl.int32), COLUMNS):
        mask = start + column < counts[:, None]
        x = tl.load(source_ptr + start + column, mask=mask, other=0.0)
        new, is_changed = changed(x, values[:, None], inv_scale, CHANGE)
        tl.store(target_ptr + start + column, new, mask=mask & is_changed)


@triton.jit
def rounded_factor_of(call_ptr, clip_coef, inv_scale):
    """Return factor_of() two float64, with the product rounded to the coefficient's dtype."""
    factor, should_write = factor_of(clip_coef, inv_scale)
    if field(call_ptr, IS_FLOAT64) == 0:
        factor = factor.to(tl.float32).to(tl.float64)  # one rounding: the product was exact
    return factor, should_write


@triton.jit
def values_of(call_ptr, tensor, mask, value, inv_scale, FORM: tl.constexpr):
    """Return the value that changes a tensor, or each of several, and whether to change it."""
    values = tl.where(mask, value, 1.0)
    should_write = mask
    if FORM != ALL:
        coefs = field(call_ptr, COEFS)
        if coefs != 0:
            if field(call_ptr, IS_FLOAT64) != 0:
                values = tl.load(float64_at(coefs) + tensor, mask=mask, other=1.0)
            else:
                values = tl.load(float32_at(coefs) + tensor, mask=mask, other=1.0).to(tl.float64)
            values, should_write = rounded_factor_of(call_ptr, values, inv_scale)
            should_write = mask & should_write if FORM == WHERE_NEEDED else mask
    return values, should_write


@triton.jit
def change_small(
    call_ptr,
    tensors,
    tensor,
    slot,
    value,
    inv_scale,
    MIX: tl.constexpr,
    CHANGE: tl.constexpr,
    FORM: tl.constexpr,
):
    """Change a group of small tensors."""
    mine, is_mine = tensors_of(call_ptr, tensors, tensor, slot)
    source = tl.load(addresses(call_ptr) + mine, mask=is_mine, other=0)
    target = source
    if FORM == INTO_TARGETS:
        target = tl.load(targets(call_ptr, tensors) + mine, mask=is_mine, other=0)
    values, should_write = values_of(call_ptr, mine, is_mine, value, inv_scale, FORM)
    packed = tl.load(packed_counts(call_ptr, tensors) + mine, mask=should_write, other=0)
    for CODE in tl.static_range(CODES):
        if MIX & (1 << CODE):
            counts = tl.where(code_of(packed) == CODE, count_of(packed), 0)
            change_rows(source, target, counts, values, inv_scale, type_of(CODE), CHANGE)


@triton.jit
def change_large(
    call_ptr,
    tensors,
    tensor,
    slot,
    value,
    inv_scale,
    MIX: tl.constexpr,
    CHANGE: tl.constexpr,
    FORM: tl.constexpr,
):
    """Change a chunk."""
    values, should_write = values_of(call_ptr, tensor, tensor >= 0, value, inv_scale, FORM)
    if should_write:
        address, packed, skipped, count = chunk_of(call_ptr, tensors, tensor, slot)
        source = address + skipped
        if FORM == INTO_TARGETS:
            target = tl.load(targets(call_ptr, tensors) + tensor) + skipped
            has_same_alignment = ((source ^ target) & (VECTOR_BYTES - 1)) == 0
        for CODE in tl.static_range(CODES):
            if MIX & (1 << CODE):
                if code_of(packed) == CODE:
                    if FORM != INTO_TARGETS:
                        change_chunk(
                            source, source, count, values, inv_scale, type_of(CODE), CHANGE
                        )
                    elif has_same_alignment:
                        change_chunk(
                            source, target, count, values, inv_scale, type_of(CODE), CHANGE
                        )
                    else:
                        multiply_unaligned(source, target, count, values, type_of(CODE))


@triton.jit
def change_groups(
    call_ptr, value, inv_scale, MIX: tl.constexpr, CHANGE: tl.constexpr, FORM: tl.constexpr
):
    """Change all tensors. A program goes through its groups backwards.

    What it read last for the norm is most likely still in the cache.
    """
    tensors = field(call_ptr, TENSORS)
    programs = tl.num_programs(0)
    rounds = tl.cdiv(field(call_ptr, GROUPS) - tl.program_id(0), programs)
    for i in tl.range(0, rounds, disable_licm=True):  # as in reduce_groups()
        group = tl.program_id(0) + (rounds - 1 - i) * programs
        slot = group * SLOTS
        tensor = find_tensor(call_ptr, tensors, slot)
        if is_small(tl.load(packed_counts(call_ptr, tensors) + tensor)):
            change_small(call_ptr, tensors, tensor, slot, value, inv_scale, MIX, CHANGE, FORM)
        else:
            change_large(call_ptr, tensors, tensor, slot, value, inv_scale, MIX, CHANGE, FORM)


@triton.jit
def coefficient_in(call_ptr, T: tl.constexpr):
    """Return a scale's coefficient in float64, from a tensor, a norm or the field VALUE."""
    coef_address = field(call_ptr, CLIP_COEF)
    norm_address = field(call_ptr, TOTAL_NORM)
    clip_coef = number(call_ptr, VALUE)
    if coef_address != 0:
        clip_coef = tl.load(coef_address.to(tl.pointer_type(T))).to(tl.float64)
    elif norm_address != 0:
        max_norm = number(call_ptr, MAX_NORM).to(T)
        max_norm_tensor = field(call_ptr, MAX_NORM_TENSOR)
        if max_norm_tensor != 0:
            max_norm = tl.load(max_norm_tensor.to(tl.pointer_type(T)))
        total_norm = tl.load(norm_address.to(tl.pointer_type(T)))
        clip_coef = clip_coefficient(total_norm, max_norm).to(tl.float64)
    return clip_coef
