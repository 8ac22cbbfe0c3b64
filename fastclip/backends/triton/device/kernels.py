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
    WHERE_BELOW_ONE,
    change_groups,
    coefficient_in,
)
from .words import BARRIER, IS_FLOAT64, VALUE, field, number


@triton.jit
def words_at(call):
    """Make a pointer of the words' address."""
    return call.to(tl.pointer_type(tl.int64))


@triton.jit
def sync_grid(call_ptr):
    """Wait for all programs: what any wrote before it, every one sees after it.

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
    """The second phase: the factor, the sums, and where it is due the rescale."""
    factor, is_due = finish_norm(call_ptr, KIND)
    write_sums(call_ptr, KIND)
    if is_due:
        change_groups(call_ptr, factor, MIX, MULTIPLY, ALL)


@triton.jit(do_not_specialize=["call"])
def clip_kernel(call: tl.int64, MIX: tl.constexpr, KIND: tl.constexpr, FINDS_INF: tl.constexpr):
    """The fused clip, on a cooperative grid: both phases and a barrier between them."""
    call_ptr = words_at(call)
    reduce_groups(call_ptr, MIX, KIND, FINDS_INF)
    sync_grid(call_ptr)
    finish_and_change(call_ptr, MIX, KIND)


@triton.jit(do_not_specialize=["call"])
def reduce_kernel(call: tl.int64, MIX: tl.constexpr, KIND: tl.constexpr, FINDS_INF: tl.constexpr):
    """The first phase alone."""
    reduce_groups(words_at(call), MIX, KIND, FINDS_INF)


@triton.jit(do_not_specialize=["call"])
def finish_kernel(call: tl.int64, KIND: tl.constexpr):
    """The second phase of a norm without a rescale."""
    call_ptr = words_at(call)
    finish_norm(call_ptr, KIND)
    write_sums(call_ptr, KIND)


@triton.jit(do_not_specialize=["call"])
def finish_and_scale_kernel(call: tl.int64, MIX: tl.constexpr, KIND: tl.constexpr):
    """The second phase alone."""
    finish_and_change(words_at(call), MIX, KIND)


@triton.jit
def scale_by(call_ptr, MIX: tl.constexpr, FORM: tl.constexpr):
    """Multiply by what coefficient_in() finds, or by a coefficient for each tensor."""
    if field(call_ptr, IS_FLOAT64) != 0:
        clip_coef = coefficient_in(call_ptr, tl.float64)
    else:
        clip_coef = coefficient_in(call_ptr, tl.float32)
    change_groups(call_ptr, clip_coef, MIX, MULTIPLY, FORM)


@triton.jit(do_not_specialize=["call"])
def scale_kernel(call: tl.int64, MIX: tl.constexpr):
    """Multiply in place, except by a coefficient of 1 or more."""
    scale_by(words_at(call), MIX, WHERE_BELOW_ONE)


@triton.jit(do_not_specialize=["call"])
def scale_into_kernel(call: tl.int64, MIX: tl.constexpr):
    """Multiply into the targets."""
    scale_by(words_at(call), MIX, INTO_TARGETS)


@triton.jit(do_not_specialize=["call"])
def clamp_kernel(call: tl.int64, MIX: tl.constexpr):
    """Clamp in place."""
    call_ptr = words_at(call)
    change_groups(call_ptr, number(call_ptr, VALUE), MIX, CLAMP, ALL)
