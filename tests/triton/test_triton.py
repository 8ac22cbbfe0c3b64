"""The Triton kernels in Triton's interpreter: every access, every form, every order of programs.

The tests of the public functions also run over them (the fixture "backend");
tests/triton/test_triton_operations.py has every operation with ``inv_scale`` and ``found_inf``.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import oracle
import pytest
import torch
from samples import FLOAT_DTYPES, assert_clipped, assert_scaled, copies, gradient, parameters
from torch import Tensor
from triton_arena import Arena, watched

import fastclip
from fastclip.backends import TRITON
from fastclip.backends.clip_mode import FUSED, SPLIT, set_clip_mode
from fastclip.backends.request import PARAMETERS, READ_ONLY, ClipRequest
from fastclip.backends.triton.arguments import Multiplier, Scalars
from fastclip.backends.triton.packing import PackedList, pack_of

if TYPE_CHECKING:
    from fastclip.backends.triton.launches import Launches

NORM_TYPES = (2.0, 1.0, math.inf, 3.0, 0.5)
# Sizes around vectors, small tensors, batches of 8 and of 1 blocks, chunks of 16 Ki elements.
SIZES = (0, 1, 5, 31, 1023, 1024, 1025, 2049, 4097, 8192, 8195, 16383, 16385, 32771, 40000)
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.fixture(autouse=True)
def mode_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a test chooses."""
    from fastclip.backends import clip_mode

    monkeypatch.setattr(clip_mode, "_state", dict(clip_mode._state))


def launches() -> Launches:
    """Return what launches the kernels: it imports triton."""
    from fastclip.backends.triton.launches import Launches

    return Launches(torch.device("cpu"))


def packed(held: list[Tensor]) -> PackedList:
    """Pack the gradients of parameters."""
    return pack_of(held, PARAMETERS, True)(True)


def mixed_gradients(dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Tensor]:
    return [gradient(size, dtypes[i % len(dtypes)], seed=i) for i, size in enumerate(SIZES)]


def narrow_gradients() -> list[Tensor]:
    return mixed_gradients((torch.float32, torch.bfloat16, torch.float16))


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("mode", (FUSED, SPLIT))
def test_gradients_are_read_once_and_nothing_beside_them(mode: str, norm_type: float) -> None:
    set_clip_mode(mode)
    for grads in (mixed_gradients(), narrow_gradients()):
        arena = Arena(grads, misalignments=(0, 8, 16, 24))
        held = parameters(arena.tensors)
        with watched(arena):
            norm = fastclip.clip_grad_norm_(held, 1e30, norm_type, backend="triton")
        for i, grad in enumerate(grads):
            assert arena.counts(i) == (({1}, {0}) if grad.numel() else (set(), set()))
        assert_clipped(held, grads, 1e30, norm, norm_type)
        arena.clear()
        with watched(arena):
            norm = fastclip.clip_grad_norm_(held, 0.5, norm_type, backend="triton")
        for i, grad in enumerate(grads):
            assert arena.counts(i) == (({2}, {1}) if grad.numel() else (set(), set()))
        assert_clipped(held, grads, 0.5, norm, norm_type)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_every_misalignment(dtype: torch.dtype) -> None:
    shifts = range(0, 16, dtype.itemsize)
    grads = [gradient(size, dtype, seed=size) for size in (3, 1100, 17000) for _ in shifts]
    arena = Arena(grads, list(shifts))
    held = parameters(arena.tensors)
    with watched(arena):
        norm = fastclip.clip_grad_norm_(held, 0.5, backend="triton")
        assert_clipped(held, grads, 0.5, norm)
        before = copies(arena.tensors)
        fastclip.clip_grad_value_(held, 1e-3, backend="triton")
    for grad, old in zip(arena.tensors, before, strict=True):
        assert oracle.equal(grad, oracle.clamped(old, 1e-3))


def test_a_clamp_writes_only_vectors_that_change() -> None:
    grads = [torch.zeros(9003), torch.zeros(9003, dtype=torch.bfloat16), torch.zeros(100)]
    places = (5000, 4097, 50)
    for grad, place in zip(grads, places, strict=True):
        grad[place] = 3.0
    arena = Arena(grads)
    with watched(arena):
        fastclip.clip_grad_value_(parameters(arena.tensors), 0.5, backend="triton")
    for i, (grad, place) in enumerate(zip(arena.tensors, places, strict=True)):
        assert grad[place] == 0.5 and grad.count_nonzero() == 1
        written = arena.writes[arena._spans[i]]
        per_vector = 16 // grad.element_size() if i < 2 else 1
        assert written.sum() == per_vector * grad.element_size()


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_every_form_and_any_number_of_programs_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, norm_type: float
) -> None:
    results = set()
    for mode, programs in ((FUSED, 1), (SPLIT, 1), (SPLIT, 2), (SPLIT, 7), (SPLIT, 1000)):
        monkeypatch.setattr("fastclip.backends.triton.call.INTERPRETED_PROGRAMS", programs)
        set_clip_mode(mode)
        arena = Arena(narrow_gradients())
        clipper = fastclip.GradClipper(parameters(arena.tensors), 0.5, norm_type, backend="triton")
        norm = clipper.clip_()
        grads = tuple(grad.view(torch.uint8).numpy().tobytes() for grad in arena.tensors)
        results.add((norm.item(), tuple(clipper.parameter_norms.tolist()), grads))
    assert len(results) == 1


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_parameter_norms(norm_type: float) -> None:
    # 12 bytes past a boundary, 16,385 float32 are a head of 1 and a single chunk.
    shifted = Arena(narrow_gradients(), (12,)).tensors
    for grads in (mixed_gradients(), narrow_gradients(), shifted):
        held = parameters([*grads, None])
        held.append(held[3])
        clipper = fastclip.GradClipper(held, 1e30, norm_type, backend="triton")
        clipper.clip_()
        norms = clipper.parameter_norms
        for p, actual in zip(held, norms.tolist(), strict=True):
            wanted = 0.0 if p.grad is None else oracle.total_norm([p.grad], norm_type)
            assert oracle.is_norm(actual, wanted, norms.dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("value", (1e20, -3e30, 3e-20, 1e-25, 1e-38, 0.0))
def test_squares_out_of_range_are_rescued_chunk_by_chunk(dtype: torch.dtype, value: float) -> None:
    grads = [gradient(50_000, dtype, seed=i) for i in range(3)]
    grads[1].fill_(value)
    held = parameters(copies(grads))
    clipper = fastclip.GradClipper(held, 1e30, backend="triton")
    clipper.clip_()
    for actual, grad in zip(clipper.parameter_norms.tolist(), grads, strict=True):
        assert oracle.is_norm(actual, oracle.total_norm([grad], 2.0), torch.float32)


def test_only_chunks_out_of_range_are_read_again() -> None:
    values = (0.0, -0.0, 1e-25, 1.0)
    dtypes = (torch.float32, torch.bfloat16)
    grads = [torch.full((20_000,), value, dtype=dtype) for value in values for dtype in dtypes]
    arena = Arena(grads)
    with watched(arena):
        fastclip.get_total_norm(arena.tensors, backend="triton")
    assert [arena.counts(i)[0] for i in range(8)] == [{1}] * 4 + [{2}] * 2 + [{1}] * 2


@pytest.mark.parametrize("mode", (FUSED, SPLIT))
@pytest.mark.parametrize("bad", (math.inf, -math.inf, math.nan, None))
@pytest.mark.parametrize("position", (3, 13))
def test_found_inf_is_set_and_nothing_written(mode: str, bad: float | None, position: int) -> None:
    set_clip_mode(mode)
    grads = narrow_gradients()
    if bad is not None:
        grads[position][-1] = bad
    for already, inverse in ((0.0, 0.25), (0.0, -0.25), (1.0, 0.25)):
        held = parameters(copies(grads))
        found_inf = torch.tensor(already)
        inv_scale = torch.tensor(inverse)
        request = ClipRequest(0.5, 2.0, found_inf=found_inf, inv_scale=inv_scale)
        norm = TRITON.gather(held, PARAMETERS).clip(request)
        assert found_inf.item() == (1.0 if bad is not None else already)
        if bad is not None or already:
            for p, grad in zip(held, grads, strict=True):
                assert p.grad is not None
                assert oracle.equal(p.grad, oracle.values_of(grad))
        else:
            scaled = [grad.double() * inverse for grad in grads]
            total_norm = norm.total_norm
            assert total_norm is not None
            assert oracle.is_norm(total_norm.item(), oracle.total_norm(scaled, 2.0), torch.float32)
            coef = torch.tensor(oracle.clip_coef(0.5, total_norm)).float() * inverse
            for p, grad in zip(held, grads, strict=True):
                assert p.grad is not None
                assert oracle.equal(p.grad, oracle.scaled(grad, coef.item()))


def test_an_overflow_of_powers_is_no_inf() -> None:
    grads = [torch.full((5000,), 1e38), torch.full((9,), 1e38)]
    held = parameters(copies(grads))
    found_inf = torch.tensor(0.0)
    request = ClipRequest(0.5, 10.0, found_inf=found_inf, keeps_norms=True)
    norm = TRITON.gather(held, PARAMETERS).clip(request)
    assert norm.total_norm is not None
    assert norm.total_norm.isinf() and found_inf.item() == 0.0
    assert norm.sums.parts[0].isinf().all()


def test_a_norm_within_a_gradient_is_read_before_that_is_written() -> None:
    grads = [torch.full((20_000,), 2.0) for _ in range(3)]
    for place in (0, 19_999):
        held = parameters(copies(grads))
        assert held[1].grad is not None
        fastclip.clip_grads_with_norm_(held, 1.0, held[1].grad[place], backend="triton")
        assert_scaled(held, grads, 1.0, torch.tensor(2.0))


@pytest.mark.parametrize("mode", (FUSED, SPLIT))
def test_the_sum_before_the_root_and_the_coefficient_are_written(mode: str) -> None:
    set_clip_mode(mode)
    grads = narrow_gradients()
    request = ClipRequest(1e9, 2.0, keeps_norms=True)
    found = TRITON.gather(parameters(grads), PARAMETERS).clip(request)
    total, coef, norm = found.sums.total, found.clip_coef, found.total_norm
    assert norm is not None
    assert oracle.is_norm(math.sqrt(total), oracle.total_norm(grads, 2.0), torch.float32)
    assert math.sqrt(total) != norm.item()  # not rounded
    assert coef.item() == oracle.clip_coef(1e9, norm) == 1.0


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_limit_in_memory(dtype: torch.dtype) -> None:
    grads = mixed_gradients() if dtype == torch.float64 else narrow_gradients()
    held = parameters(copies(grads))
    # A list would read a tensor on the CPU immediately.
    limit = torch.tensor(0.5, dtype=torch.float64)
    norm = launches().clip(packed(held), ClipRequest(limit, 2.0)).total_norm
    assert norm is not None and norm.dtype == dtype
    assert_clipped(held, grads, 0.5, norm)
    again = parameters(copies(grads))
    by = Multiplier(total_norm=norm, max_norm=torch.tensor(0.5), is_float64=dtype == torch.float64)
    launches().scale(packed(again), by, Scalars(None, None), is_checked=False)
    assert_clipped(again, grads, 0.5, norm)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_coefficient_for_each_tensor(dtype: torch.dtype) -> None:
    grads = mixed_gradients()
    coefs = torch.tensor([0.5, 1.0, math.nan, 2.0, 0.3] * 3, dtype=dtype)
    arena = Arena(grads)
    with watched(arena):
        TRITON.gather(parameters(arena.tensors), PARAMETERS).scale([coefs])
    for i, (grad, coef) in enumerate(zip(grads, coefs.tolist(), strict=True)):
        if coef >= 1:
            assert arena.counts(i) == ((set(), set()) if not grad.numel() else ({0}, {0}))
        else:
            assert oracle.equal(arena.tensors[i], oracle.scaled(grad, coef))


@pytest.mark.parametrize("coef", (0.37, 1.0, 2.5))
@pytest.mark.parametrize("shifts", ((0,), (0, 8), (4, 12, 2)))
def test_scaled_into_other_tensors(coef: float, shifts: tuple[int, ...]) -> None:
    dtypes = DTYPES if 4 not in shifts else (torch.float32, torch.float32, torch.bfloat16)
    grads = mixed_gradients(dtypes)
    sources, targets = Arena(grads), Arena([torch.zeros_like(grad) for grad in grads], shifts)
    with watched(sources), watched(targets):
        TRITON.gather(parameters(sources.tensors), PARAMETERS).scale_into(targets.tensors, coef)
    for source, target, grad in zip(sources.tensors, targets.tensors, grads, strict=True):
        assert oracle.equal(source, oracle.values_of(grad))
        assert oracle.equal(target, oracle.scaled(grad, coef))


def test_scaled_into_new_tensors() -> None:
    grads = [gradient((37, 41), torch.float32).t(), *narrow_gradients()]
    results = [torch.empty_like(grad) for grad in grads]
    TRITON.gather(grads, READ_ONLY).scale_into(results, 0.5)
    for grad, result in zip(grads, results, strict=True):
        assert result.stride() == grad.stride()
        assert oracle.equal(result, oracle.scaled(grad, 0.5))


def test_many_small_tensors_between_large_ones() -> None:
    sizes = [1, 2, 3, 5000, *range(20), 5000, *range(7), 5000, *range(8), 5000, 9]
    grads = [gradient(size, DTYPES[i % 3], seed=i) for i, size in enumerate(sizes)]
    arena = Arena(grads, (0, 8))
    held = parameters(arena.tensors)
    with watched(arena):
        norm = fastclip.clip_grad_norm_(held, 0.5, backend="triton")
    assert_clipped(held, grads, 0.5, norm)


def test_the_error_of_a_norm_that_is_not_finite_writes_nothing() -> None:
    grads = narrow_gradients()
    grads[4][7] = math.inf
    arena = Arena(grads)
    with watched(arena), pytest.raises(RuntimeError, match=r"non-finite gradients: 4 \(1023,\)$"):
        held = parameters(arena.tensors)
        fastclip.clip_grad_norm_(held, 0.5, error_if_nonfinite=True, backend="triton")
    assert all(arena.counts(i)[1] <= {0} for i in range(len(grads)))


def test_norms_of_every_kind_with_a_dtype() -> None:
    grads = narrow_gradients()
    for norm_type, dtype in itertools.product(NORM_TYPES, (torch.float32, torch.float64)):
        norm = fastclip.get_total_norm(grads, norm_type, dtype=dtype, backend="triton")
        assert norm.dtype == dtype
        assert oracle.is_norm(norm.item(), oracle.total_norm(grads, norm_type), dtype)


def test_a_norm_that_is_known() -> None:
    grads = narrow_gradients()
    for norm in (torch.tensor(3.0), torch.tensor(3.0, dtype=torch.float64)):
        held = parameters(copies(grads))
        fastclip.clip_grads_with_norm_(held, 0.5, norm, backend="triton")
        assert_scaled(held, grads, 0.5, norm)
