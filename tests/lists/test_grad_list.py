"""Clips, sums and norms of lists, which every backend has: values, flags, versions, errors."""

from __future__ import annotations

import itertools
import math

import oracle
import pytest
import torch
from engine_lists import (
    DTYPES,
    INV_SCALES,
    assert_unchanged,
    assert_written,
    list_of,
    lists_of,
    mixed,
    norm_dtype,
    some,
)
from list_cases import flag, scalar
from samples import copies, dense_gradients, gradient, parameters, versions

from fastclip.backends import REFERENCE
from fastclip.backends.base import Backend, NonFiniteError
from fastclip.backends.request import (
    PARAMETERS,
    READ_ONLY,
    TENSORS,
    ClipRequest,
    clip_request,
)

NORM_TYPES = (2.0, 1.0, math.inf, 3.0)


@pytest.mark.parametrize("inv_scale", INV_SCALES)
def test_a_clip_unscales_measures_and_rescales(engine: Backend, inv_scale: float | None) -> None:
    for norm_type, make in itertools.product(NORM_TYPES, lists_of(engine).values()):
        for share in (0.25, 4.0):
            grads = make()
            before = copies(grads)
            expected = oracle.total_norm(before, norm_type) * abs(inv_scale or 1.0)
            found_inf = flag()
            request = clip_request(
                share * expected,
                norm_type,
                inv_scale=scalar(inv_scale),
                found_inf=found_inf,
                keeps_norms=True,
            )
            norms = list_of(engine, grads).clip(request)
            total_norm = norms.total_norm
            assert total_norm is not None and total_norm.dtype == norm_dtype(before)
            assert oracle.is_norm(total_norm.item(), expected, total_norm.dtype)
            coef = oracle.clip_coef(share * expected, total_norm)
            assert norms.clip_coef.item() == coef and norms.clip_coef.dtype == total_norm.dtype
            assert_written(grads, before, coef, inv_scale)
            assert found_inf.item() == 0
            assert versions(grads) == [1] * len(grads)
            for actual, old in zip(norms.parameter_norms(), before, strict=True):
                wanted = oracle.tensor_norm(old, norm_type) * abs(inv_scale or 1.0)
                rounding = 2.0**-23 if actual.dtype == torch.float32 else 2.0**-40
                assert actual.item() == pytest.approx(wanted, rel=rounding, abs=1e-44)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", (math.inf, -math.inf, math.nan))
def test_found_inf_is_set_and_nothing_is_written(
    engine: Backend, special: float, dtype: torch.dtype
) -> None:
    for place, position in ((1, 2), (3, 16999)):
        grads = some(dtype)
        grads[place][position] = special
        before = copies(grads)
        found_inf = flag()
        request = clip_request(1.0, inv_scale=torch.tensor(0.5), found_inf=found_inf)
        total_norm = list_of(engine, grads).clip(request).total_norm
        assert total_norm is not None and not total_norm.isfinite()
        assert found_inf.item() == 1
        assert_unchanged(grads, before)


def test_a_sum_that_overflows_sets_no_flag(engine: Backend) -> None:
    for value, dtype in ((3e38, torch.float32), (1e200, torch.float64)):
        grads = [torch.full((2000,), value, dtype=dtype), torch.ones(3)]
        found_inf = flag()
        norms = list_of(engine, grads).clip(clip_request(1.0, found_inf=found_inf))
        assert norms.total_norm == math.inf and found_inf.item() == 0
        assert all(grad.eq(0).all() for grad in grads)


@pytest.mark.parametrize("norm_type", (*NORM_TYPES, 2.5))
def test_sums_are_of_each_gradient_and_of_all(engine: Backend, norm_type: float) -> None:
    for make in lists_of(engine).values():
        grads = make()
        sums = list_of(engine, grads, READ_ONLY).reduce(norm_type)
        (part,) = sums.parts
        power = 1.0 if math.isinf(norm_type) else norm_type
        assert part.dtype == sums.total.dtype == torch.float64 and part.shape == (len(grads),)
        assert sums.places is None and sums.dtype == norm_dtype(grads)
        for actual, grad in zip(part.tolist(), grads, strict=True):
            wanted = oracle.tensor_norm(grad, norm_type) ** power
            assert actual == pytest.approx(wanted, rel=2.0**-22, abs=1e-300)
        wanted = oracle.total_norm(grads, norm_type) ** power
        assert sums.total.dim() == 0 and sums.total.item() == pytest.approx(wanted, rel=2.0**-22)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("inv_scale", INV_SCALES)
def test_the_steps_of_a_clip_have_its_bits(
    engine: Backend, inv_scale: float | None, norm_type: float
) -> None:
    for make in lists_of(engine).values():
        grads, again = make(), make()
        max_norm = 0.3 * oracle.total_norm(grads, norm_type)
        request = clip_request(max_norm, norm_type, inv_scale=scalar(inv_scale), keeps_norms=True)
        norms = list_of(engine, grads).clip(request)
        held = list_of(engine, again).hold()
        found_inf = flag()
        sums = held.reduce(norm_type, found_inf=found_inf)
        steps = held.finish(sums, request)
        held.scale(steps.clip_coef, inv_scale=scalar(inv_scale), found_inf=found_inf)
        if engine is not REFERENCE:  # whose clip adds up in another order
            assert torch.equal(steps.sums.total, norms.sums.total)
        assert norms.total_norm is not None and steps.total_norm is not None
        rtol = 2.0**-36 if engine is REFERENCE and norms.total_norm.dtype == torch.float64 else 0.0
        torch.testing.assert_close(
            [steps.total_norm, steps.clip_coef, steps.parameter_norms(), *again],
            [norms.total_norm, norms.clip_coef, norms.parameter_norms(), *grads],
            rtol=rtol,
            atol=0.0,
        )
        assert versions(again) == [1] * len(again)


def test_a_total_may_be_that_of_more_lists(engine: Backend) -> None:
    grads = some(torch.float32)
    grad_list = list_of(engine, grads, TENSORS)
    for norm_type in NORM_TYPES:
        sums = grad_list.reduce(norm_type)
        more = sums.with_total(sums.total * 9)
        factor = 9 if math.isinf(norm_type) else 9 ** (1 / norm_type)
        norms = grad_list.finish(more, clip_request(1.0, norm_type))
        expected = oracle.total_norm(grads, norm_type) * factor
        assert norms.total_norm is not None
        assert oracle.is_norm(norms.total_norm.item(), expected, torch.float32)
        assert norms.clip_coef.item() == oracle.clip_coef(1.0, norms.total_norm)


def test_equal_gradients_count_once_unless_they_are_only_read(engine: Backend) -> None:
    shared = gradient(300, torch.float32)
    other = gradient(40, torch.bfloat16)
    for kind, count in ((TENSORS, 1), (PARAMETERS, 1), (READ_ONLY, 2)):
        grads = [shared.clone(), other.clone()]
        before = copies(grads)
        sources = [grads[0], grads[1], grads[0]]
        grad_list = list_of(engine, sources, kind)
        sums = grad_list.reduce(2.0)
        wanted = [before[0]] * count + [before[1]]
        assert sums.total.item() == pytest.approx(oracle.total_norm(wanted, 2.0) ** 2)
        places = None if sums.places is None else sums.places.tolist()
        assert places == (None if count == 2 else [0, 1, 0])
        if kind is READ_ONLY:
            with pytest.raises(ValueError, match="read only"):
                grad_list.scale(0.5)
            with pytest.raises(ValueError, match="read only"):
                grad_list.clamp(0.5)
            with pytest.raises(ValueError, match="read only"):
                grad_list.clip(clip_request(0.5))
        else:
            grad_list.scale(0.5)
            assert_written(grads, before, 0.5)


def test_a_held_list_keeps_the_gradients_that_it_has_read(engine: Backend) -> None:
    held = parameters([gradient(50, torch.float32)])
    old = held[0].grad
    grad_list = engine.gather(held, PARAMETERS)
    kept = grad_list.hold()
    held[0].grad = torch.ones(50)
    assert grad_list.reduce(1.0).total.item() == 50
    assert old is not None
    assert kept.reduce(1.0).total.item() == pytest.approx(oracle.total_norm([old], 1.0))
    held[0].grad = None
    assert not grad_list.scale(0.5) and kept.scale(0.5)


def test_a_list_without_gradients_has_no_norm_and_no_coefficient(engine: Backend) -> None:
    norms = engine.gather(parameters([None, None]), PARAMETERS).clip(
        ClipRequest(1.0, keeps_norms=True)
    )
    assert norms.total_norm is None and norms.parameter_norms().tolist() == [0.0, 0.0]
    with pytest.raises(RuntimeError, match="no gradients"):
        _ = norms.clip_coef


def test_missing_gradients_have_no_place(engine: Backend) -> None:
    held = parameters([None, gradient(5, torch.float32), None])
    grad_list = engine.gather(held, PARAMETERS)
    sums = grad_list.reduce(2.0)
    assert sums.places is not None and sums.places.tolist() == [-1, 0, -1]
    norms = grad_list.clip(ClipRequest(1.0, keeps_norms=True)).parameter_norms()
    assert norms[0] == norms[2] == 0 and norms[1] > 0


@pytest.mark.parametrize("writes", (True, False))
def test_errors_name_the_gradients_and_nothing_is_written(engine: Backend, writes: bool) -> None:
    grads = mixed()
    grads[2][3], grads[6][16000] = math.nan, math.inf
    before, old = copies(grads), versions(grads)
    request = clip_request(1.0, error_if_nonfinite=True, writes=writes, keeps_norms=True)
    with pytest.raises(NonFiniteError) as raised:
        list_of(engine, grads).clip(request)
    assert raised.value.positions == [2, 6]
    assert raised.value.norms.parameter_norms().isfinite().tolist() == [
        i not in (2, 6) for i in range(len(grads))
    ]
    assert_unchanged(grads, before)
    assert versions(grads) == old


def test_a_norm_alone_writes_nothing(engine: Backend) -> None:
    grads = mixed()
    before = copies(grads)
    request = clip_request(0.5, writes=False, dtype=torch.float32, keeps_norms=True)
    norms = list_of(engine, grads).clip(request)
    assert norms.total_norm is not None and norms.total_norm.dtype == torch.float32
    assert norms.clip_coef.item() == oracle.clip_coef(0.5, norms.total_norm)
    assert_unchanged(grads, before)
    assert versions(grads) == [0] * len(grads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_awkward_layouts(engine: Backend, dtype: torch.dtype) -> None:
    grads = dense_gradients(dtype)
    before = copies(grads)
    held = list_of(engine, grads, TENSORS).hold()
    sums = held.reduce(2.0)
    norms = held.finish(sums, clip_request(0.25))
    assert norms.total_norm is not None
    expected = oracle.total_norm(before, 2.0)
    assert oracle.is_norm(norms.total_norm.item(), expected, norms.total_norm.dtype)
    held.scale(norms.clip_coef, inv_scale=torch.tensor(0.5))
    assert_written(grads, before, oracle.clip_coef(0.25, norms.total_norm), 0.5)


@pytest.mark.parametrize("way", ("data", "set_", "dtype"))
def test_a_held_gradient_may_be_given_other_memory(engine: Backend, way: str) -> None:
    """Optimizers and offloading do this; the old memory may be gone."""
    held = parameters([gradient(200_000, torch.float32), gradient(7, torch.float32)])
    grad = held[0].grad
    assert grad is not None
    kept = engine.gather(held, PARAMETERS).hold()
    new = torch.full((90_000,), 2.0, dtype=torch.float64 if way == "dtype" else torch.float32)
    if way == "set_":
        grad.set_(new.untyped_storage(), 0, new.shape, new.stride())
    else:
        grad.data = new
    other = held[1].grad
    assert other is not None
    wanted = 2 * 90_000 + oracle.total_norm([other], 1.0)
    assert kept.reduce(1.0).total.item() == pytest.approx(wanted, rel=2.0**-22)
    kept.scale(0.5)
    assert bool(grad.eq(1.0).all()) and grad.shape == (90_000,)


def test_a_list_held_again_looks_for_inf_again(engine: Backend) -> None:
    grads = [gradient(50, torch.float32)]
    held = list_of(engine, grads).hold()
    found_inf = flag()
    held.reduce(2.0, found_inf=found_inf)
    grads[0][3] = math.inf
    before = copies(grads)
    held.hold().scale(0.5, found_inf=found_inf)
    assert found_inf.item() == 1
    assert_unchanged(grads, before)


def test_an_inv_scale_that_is_a_gradients_element(engine: Backend) -> None:
    grads = [torch.full((3,), 4.0), torch.tensor([[0.5]])]
    before = copies(grads)
    request = clip_request(0.25, inv_scale=grads[1], keeps_norms=True)
    norms = list_of(engine, grads).clip(request)
    assert norms.total_norm is not None
    wanted = [oracle.tensor_norm(grad, 2.0) * 0.5 for grad in before]
    assert norms.parameter_norms().tolist() == pytest.approx(wanted)
    assert_written(grads, before, oracle.clip_coef(0.25, norms.total_norm), 0.5)
