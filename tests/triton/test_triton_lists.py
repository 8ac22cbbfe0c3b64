"""Triton's lists: what they hold, read again and report, in Triton's interpreter."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable

import oracle
import pytest
import torch
from interpreted_triton import pack_by_torch
from samples import assert_clipped, copies, gradient, parameters, versions
from torch import Tensor
from triton_arena import Arena, watched

from fastclip.backends import TRITON
from fastclip.backends.base import GradList, NonFiniteError, RefusedError
from fastclip.backends.request import PARAMETERS, TENSORS, ClipRequest, Sums
from fastclip.backends.triton import loading, torch_list

pytestmark = pytest.mark.usefixtures("interpreted")

SIZES = (7, 5000, 33)


def gradients(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [gradient(size, dtype, seed=size) for size in SIZES]


def flag(value: float = 0.0) -> Tensor:
    return torch.tensor(value)


def held_list(arena: Arena) -> GradList:
    return TRITON.gather(parameters(arena.tensors), PARAMETERS).hold()


def reads_of(arena: Arena, operation: Callable[[], object]) -> set[int]:
    """Return how many times an operation reads a gradient's bytes, and check that none stays."""
    arena.clear()
    with watched(arena):
        operation()
    counts = set[int]()
    for i in range(len(SIZES)):
        counts |= arena.counts(i)[0]
    return counts


OPERATIONS: dict[str, Callable[[GradList, Tensor], object]] = {
    "scale": lambda listed, found: listed.scale(0.5, found_inf=found),
    "clamp": lambda listed, found: listed.clamp(0.5, found_inf=found),
}
CHECKS: dict[str, Callable[[GradList, Tensor], object]] = {
    "reduce": lambda listed, found: listed.reduce(2.0, found_inf=found),
    "clip": lambda listed, found: listed.clip(ClipRequest(1.0, found_inf=found, writes=False)),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_held_list_that_was_checked_is_not_read_for_the_flag_again(
    check: str, operation: str
) -> None:
    run = OPERATIONS[operation]
    grads = gradients()
    grads[1][4321] = math.inf
    arena = Arena(grads)
    listed, found = held_list(arena), flag()
    assert reads_of(arena, lambda: run(listed, found)) == {1}  # for the flag, which it sets
    assert found == 1
    found.zero_()
    assert reads_of(arena, lambda: CHECKS[check](listed, found)) >= {1}
    assert found == 1
    another = flag()
    assert reads_of(arena, lambda: run(listed, another)) == {1} and another == 1
    CHECKS[check](listed, found)
    assert reads_of(arena, lambda: run(listed, found)) == {0}
    assert all(map(oracle.equal, arena.tensors, map(oracle.values_of, grads)))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_was_written_is_checked_again(operation: str) -> None:
    arena = Arena(gradients())
    listed, found = held_list(arena), flag()
    listed.reduce(2.0, found_inf=found)
    assert reads_of(arena, lambda: OPERATIONS[operation](listed, found)) == {1}  # to change it
    assert reads_of(arena, lambda: OPERATIONS[operation](listed, found)) == {2}
    listed.clip(ClipRequest(1.0, found_inf=found))
    assert reads_of(arena, lambda: OPERATIONS[operation](listed, found)) == {2}


def test_a_list_that_is_not_held_is_checked_at_each_operation() -> None:
    arena = Arena(gradients())
    listed, found = TRITON.gather(arena.tensors, TENSORS), flag()
    listed.reduce(2.0, found_inf=found)
    assert reads_of(arena, lambda: listed.scale(0.5, found_inf=found)) == {2}


def test_scale_into_needs_no_check_to_write() -> None:
    arena = Arena(gradients())
    listed, found = held_list(arena), flag()
    targets = [torch.empty_like(grad) for grad in arena.tensors]
    assert reads_of(arena, lambda: listed.scale_into(targets, 0.5, found_inf=found)) == {2}
    listed.reduce(2.0, found_inf=found)
    assert reads_of(arena, lambda: listed.scale_into(targets, 0.5, found_inf=found)) == {1}
    assert reads_of(arena, lambda: listed.scale(0.5, found_inf=found)) == {1}


def test_a_held_list_keeps_its_gradients_and_others_read_them_anew() -> None:
    grads = gradients()
    held = parameters(copies(grads))
    listed = TRITON.gather(held, PARAMETERS)
    owned = listed.hold()
    before = [p.grad for p in held if p.grad is not None]
    for p in held:
        p.grad = torch.ones_like(p)
    assert owned.scale(0.5) and listed.scale(0.25)
    for grad, old, p in zip(grads, before, held, strict=True):
        assert oracle.equal(old, oracle.scaled(grad, 0.5))
        assert p.grad is not None and p.grad.eq(0.25).all()


def test_what_a_clip_leaves_behind_holds_no_gradient() -> None:
    held = parameters(gradients())
    kept = weakref.ref(held[1].grad)
    norms = TRITON.gather(held, PARAMETERS).clip(ClipRequest(0.5, keeps_norms=True))
    held.clear()
    gc.collect()
    assert kept() is None
    assert norms.total_norm is not None and norms.sums.total.sqrt().isclose(
        norms.total_norm.double()
    )


def test_nothing_is_kept_of_a_clip_that_nobody_asks() -> None:
    norms = TRITON.gather(gradients(), TENSORS).clip(ClipRequest(0.5))
    for ask in (lambda: norms.clip_coef, lambda: norms.sums, norms.parameter_norms):
        with pytest.raises(RuntimeError, match="the request must say keeps_norms"):
            ask()


@pytest.mark.parametrize("norm_type", (2.0, 1.0, math.inf, 3.0))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_total_of_several_lists(norm_type: float, dtype: torch.dtype) -> None:
    grads, others = gradients(), gradients(torch.bfloat16)
    used, inv_scale = copies(grads), torch.tensor(-0.25)
    listed = TRITON.gather(used, TENSORS).hold()
    sums, more = (
        each.reduce(norm_type, dtype=dtype) for each in (listed, TRITON.gather(others, TENSORS))
    )
    join = torch.maximum if math.isinf(norm_type) else torch.add
    whole = sums.with_total(join(sums.total, more.total))
    norms = listed.finish(whole, ClipRequest(0.5, inv_scale=inv_scale))
    norm, coef = norms.total_norm, norms.clip_coef
    assert norm is not None and norm.dtype == coef.dtype == dtype
    wanted = 0.25 * oracle.total_norm([*grads, *others], norm_type)
    assert oracle.is_norm(norm.item(), wanted, torch.float32)
    assert coef.item() == oracle.clip_coef(0.5, norm)
    assert norms.sums is whole
    assert listed.scale(coef, inv_scale=inv_scale)
    factor = coef.item() * -0.25  # by a power of two: exact
    for grad, result in zip(grads, used, strict=True):
        assert oracle.equal(result, oracle.scaled(grad, factor))


def test_a_total_on_the_cpu_of_a_list_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    # This is the total of a rank without gradients, whose list has no device.
    listed = TRITON.gather([], PARAMETERS)
    sums = listed.reduce(3.0)
    whole = sums.with_total(torch.tensor(27.0, dtype=torch.float64))
    request = ClipRequest(0.5, inv_scale=torch.tensor([-2.0]))
    by_kernel = listed.finish(whole, request)
    monkeypatch.setattr(loading, "supported_device", lambda: "cuda")
    monkeypatch.setattr(loading, "launches_on", lambda _: pytest.fail("no kernel runs there"))
    for norms in (by_kernel, listed.finish(whole, request)):
        assert norms.total_norm is not None and oracle.is_norm(
            norms.total_norm.item(), 6.0, torch.float32
        )
        assert norms.clip_coef.item() == oracle.clip_coef(0.5, norms.total_norm)


@pytest.mark.parametrize(
    ("total", "error", "text"),
    [
        (torch.tensor(4.0), ValueError, "total must be a 0-dim float64 tensor"),
        (torch.ones(1, dtype=torch.float64), ValueError, "total must be a 0-dim float64 tensor"),
        (
            torch.ones((), dtype=torch.float64, device="meta"),
            RefusedError,
            "total is on device meta",
        ),
    ],
)
def test_a_total_that_kernels_cannot_read_is_refused(
    total: Tensor, error: type[Exception], text: str
) -> None:
    sums = Sums([], total, None, 2.0, torch.float32)
    with pytest.raises(error, match=text):
        TRITON.gather([], TENSORS).finish(sums, ClipRequest(1.0))


@pytest.mark.parametrize("sources", ([], [None, None]))
def test_lists_without_gradients(sources: list[Tensor | None]) -> None:
    listed, found = TRITON.gather(parameters(sources), PARAMETERS), flag()
    for each in (listed, listed.hold()):
        norms = each.clip(ClipRequest(0.5, found_inf=found, keeps_norms=True))
        assert norms.total_norm is None
        assert norms.parameter_norms().tolist() == [0.0] * len(sources)
        sums = each.reduce(2.0, dtype=torch.float64)
        assert (list(sums.parts), sums.total, sums.dtype) == ([], 0.0, torch.float64)
        assert not each.scale(0.5, found_inf=found) and not each.clamp(0.5)
        each.scale_into([], 0.5)
    assert found == 0


def test_an_overflow_of_powers_sets_no_flag() -> None:
    found = flag()
    listed = TRITON.gather([torch.full((5000,), 1e38), torch.full((9,), 1e38)], TENSORS).hold()
    sums = listed.reduce(10.0, found_inf=found)
    assert sums.total.isinf() and sums.parts[0].isinf().all() and found == 0
    assert listed.scale(0.5, found_inf=found) and found == 0


@pytest.mark.parametrize("is_held", (False, True))
def test_a_norm_that_is_not_finite_is_told_before_anything_is_written(is_held: bool) -> None:
    grads = [*gradients(), torch.full((3,), 1e30, dtype=torch.float64)]
    grads[1][17], grads[2][3] = math.nan, math.inf
    used = copies(grads)
    before = versions(used)
    listed = TRITON.gather(parameters([None, *used]), PARAMETERS)
    listed = listed.hold() if is_held else listed
    for request in (
        ClipRequest(0.5, error_if_nonfinite=True, keeps_norms=True),
        ClipRequest(0.5, error_if_nonfinite=True, keeps_norms=True, writes=False),
    ):
        with pytest.raises(NonFiniteError) as caught:
            listed.clip(request)
        assert caught.value.positions == [2, 3]
        norms = caught.value.norms.parameter_norms().tolist()
        assert norms[0] == 0 and math.isnan(norms[2]) and norms[3] == math.inf
    assert versions(used) == before
    assert all(map(oracle.equal, used, map(oracle.values_of, grads)))


def test_an_overflow_in_float32_names_no_gradient() -> None:
    grads = [torch.full((9,), 3e38) for _ in range(2)]
    with pytest.raises(NonFiniteError) as caught:
        TRITON.gather(grads, TENSORS).clip(ClipRequest(0.5, error_if_nonfinite=True))
    assert caught.value.positions == []


def test_a_float64_norm_of_float32_gradients() -> None:
    grads = gradients()
    held = parameters(copies(grads))
    request = ClipRequest(0.5, dtype=torch.float64)
    norm = TRITON.gather(held, PARAMETERS).clip(request).total_norm
    assert norm is not None and norm.dtype == torch.float64
    assert_clipped(held, grads, 0.5, norm)


def test_the_ranks_of_a_mesh_are_asked_where_a_norm_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack_by_torch(monkeypatch)
    monkeypatch.setattr(torch_list.tensors, "is_sharded", lambda *_: True)
    grads = gradients()
    listed = TRITON.gather(parameters(copies(grads)), PARAMETERS)
    refusal = "a DTensor, whose ranks clip together"
    with pytest.raises(RefusedError, match=refusal):
        listed.clip(ClipRequest(0.5))
    with pytest.raises(RefusedError, match=refusal):
        listed.reduce(2.0)
    with pytest.raises(RefusedError, match=refusal):
        listed.hold()
    assert listed.scale(0.5) and listed.clamp(0.5)
    assert listed.hold(takes_norm=False).scale(0.5)
    listed.scale_into([torch.empty_like(grad) for grad in grads], 0.5)
