"""The Triton kernels. Each takes the address of a call's words (words.py) and nothing else."""

from __future__ import annotations

import triton
import triton.language as tl

from .norm import finish_norm, reduce_groups, write_sums
from .scale import (
    ALL,
    CLAMP,
    INTO_TARGETS,
    MULTIPLY,
    SCALE_AND_CLAMP,
    WHERE_NEEDED,
    change_groups,
    coefficient_in,
    rounded_factor_of,
)
from .words import BARRIER, IS_FLOAT64, VALUE, field, inv_scale_in, is_stopped, number


@triton.jit
def words_at(call):
    """Return a pointer to the words at an address."""
    return call.to(tl.pointer_type(tl.int64))


@triton.jit
def sync_grid(call_ptr):
    """Wait for all programs: each sees after it what any wrote before it.

    The counter begins at 0. One thread arrives for a program, after all of its threads have
    written; acq_rel, because the last to arrive reads no counter again.
    """
    counter_ptr = (call_ptr + BARRIER).to(tl.pointer_type(tl.int32))
    programs = tl.num_programs(0)
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel") + 1
    while arrived < programs:
        arrived = tl.atomic_add(counter_ptr, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def finish_and_change(call_ptr, MIX: tl.constexpr, KIND: tl.constexpr):
    """Run the second phase: the factor, the sums and, where it is needed, the rescale."""
    factor, should_write = finish_norm(call_ptr, KIND)
    write_sums(call_ptr, KIND)
    if should_write:
        change_groups(call_ptr, factor, 1.0, MIX, MULTIPLY, ALL)


@triton.jit(do_not_specialize=["call"])
def clip_kernel(call: tl.int64, MIX: tl.constexpr, KIND: tl.constexpr, FINDS_INF: tl.constexpr):
    """Clip in one launch, on a cooperative grid: both phases with a barrier between them."""
    call_ptr = words_at(call)
    reduce_groups(call_ptr, MIX, KIND, FINDS_INF)
    sync_grid(call_ptr)
    finish_and_change(call_ptr, MIX, KIND)


@triton.jit(do_not_specialize=["call"])
def reduce_kernel(call: tl.int64, MIX: tl.constexpr, KIND: tl.constexpr, FINDS_INF: tl.constexpr):
    """Run only the first phase."""
    reduce_groups(words_at(call), MIX, KIND, FINDS_INF)


@triton.jit(do_not_specialize=["call"])
def finish_kernel(call: tl.int64, KIND: tl.constexpr):
    """Run the second phase of a norm, without a rescale."""
    call_ptr = words_at(call)
    finish_norm(call_ptr, KIND)
    write_sums(call_ptr, KIND)


@triton.jit(do_not_specialize=["call"])
def finish_and_scale_kernel(call: tl.int64, MIX: tl.constexpr, KIND: tl.constexpr):
    """Run only the second phase, with the rescale."""
    finish_and_change(words_at(call), MIX, KIND)


@triton.jit
def factors_in(call_ptr):
    """Return the factor of tensors without their own, whether to write them, and inv_scale."""
    if field(call_ptr, IS_FLOAT64) != 0:
        clip_coef = coefficient_in(call_ptr, tl.float64)
    else:
        clip_coef = coefficient_in(call_ptr, tl.float32)
    inv_scale = inv_scale_in(call_ptr, tl.float64)
    factor, should_write = rounded_factor_of(call_ptr, clip_coef, inv_scale)
    return factor, should_write, inv_scale


@triton.jit(do_not_specialize=["call"])
def scale_kernel(call: tl.int64, MIX: tl.constexpr):
    """Multiply in place, except by a coefficient of 1 or more, and unless an inf was found."""
    call_ptr = words_at(call)
    factor, should_write, inv_scale = factors_in(call_ptr)
    if should_write and not is_stopped(call_ptr):
        change_groups(call_ptr, factor, inv_scale, MIX, MULTIPLY, WHERE_NEEDED)


@triton.jit(do_not_specialize=["call"])
def scale_into_kernel(call: tl.int64, MIX: tl.constexpr):
    """Multiply into the targets, whatever was found: they hold nothing yet."""
    call_ptr = words_at(call)
    factor, _, inv_scale = factors_in(call_ptr)
    change_groups(call_ptr, factor, inv_scale, MIX, MULTIPLY, INTO_TARGETS)


@triton.jit(do_not_specialize=["call"])
def clamp_kernel(call: tl.int64, MIX: tl.constexpr, SCALES: tl.constexpr):
    """Clamp in place, or with SCALES the products with inv_scale, unless an inf was found."""
    call_ptr = words_at(call)
    if not is_stopped(call_ptr):
        limit = number(call_ptr, VALUE)
        if SCALES:
            inv_scale = inv_scale_in(call_ptr, tl.float64)
            change_groups(call_ptr, limit, inv_scale, MIX, SCALE_AND_CLAMP, ALL)
        else:
            change_groups(call_ptr, limit, 1.0, MIX, CLAMP, ALL)
