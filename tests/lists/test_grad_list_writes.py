"""Scales and clamps of lists, which every backend has: values, flags, versions, errors."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from engine_lists import (
    INV_SCALES,
    assert_unchanged,
    list_of,
    lists_of,
    mixed,
    some,
)
from list_cases import factor_of, flag, scalar
from samples import copies, versions
from torch import Tensor

from fastclip.backends.base import Backend
from fastclip.backends.request import (
    READ_ONLY,
    TENSORS,
    ClipRequest,
    Coefficient,
    clip_request,
)


def test_a_flag_that_is_set_already_stays_and_stops_every_write(engine: Backend) -> None:
    grads = mixed()
    before = copies(grads)
    found_inf = flag(1.0)
    grad_list = list_of(engine, grads)
    total_norm = grad_list.clip(clip_request(0.5, found_inf=found_inf)).total_norm
    assert total_norm is not None
    assert oracle.is_norm(total_norm.item(), oracle.total_norm(before, 2.0), total_norm.dtype)
    assert grad_list.scale(0.5, found_inf=found_inf)
    assert grad_list.clamp(1e-3, found_inf=found_inf)
    assert found_inf.item() == 1
    assert_unchanged(grads, before)


@pytest.mark.parametrize("inv_scale", INV_SCALES)
@pytest.mark.parametrize("coef", (0.75, 1.0, 2.0, math.nan))
def test_scale_by_a_number_or_a_tensor(
    engine: Backend, coef: float, inv_scale: float | None
) -> None:
    for dtype in (None, torch.float32, torch.float64):
        for make in lists_of(engine).values():
            grads = make()
            before = copies(grads)
            grad_list = list_of(engine, grads, TENSORS)
            chosen = grad_list.hold() if dtype is None else grad_list
            by = coef if dtype is None else torch.tensor(coef, dtype=dtype)
            assert chosen.scale(by, inv_scale=scalar(inv_scale))
            is_idle = coef >= 1 and inv_scale in (None, 1.0)
            factor = factor_of(coef, inv_scale, dtype or torch.float64)
            for grad, old in zip(grads, before, strict=True):
                wanted = oracle.values_of(old) if is_idle else oracle.scaled(old, factor)
                assert oracle.equal(grad, wanted)
            assert versions(grads) == [1] * len(grads)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_scale_by_a_coefficient_for_each_gradient(engine: Backend, dtype: torch.dtype) -> None:
    for inv_scale in (None, 0.5):
        grads = mixed()
        before = copies(grads)
        coefs = torch.linspace(0.25, 1.25, len(grads), dtype=dtype)
        list_of(engine, grads).scale([coefs], inv_scale=scalar(inv_scale))
        for grad, old, coef in zip(grads, before, coefs.tolist(), strict=True):
            is_idle = coef >= 1 and inv_scale is None
            factor = factor_of(coef, inv_scale, dtype)
            wanted = oracle.values_of(old) if is_idle else oracle.scaled(old, factor)
            assert oracle.equal(grad, wanted)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_scale_by_the_coefficient_of_a_norm(engine: Backend, dtype: torch.dtype) -> None:
    for inv_scale in (None, 3.0):
        for max_norm in (1.5, 100.0):
            grads = mixed()
            before = copies(grads)
            norm = torch.tensor(7.3, dtype=dtype)
            list_of(engine, grads).scale(Coefficient(max_norm, norm), inv_scale=scalar(inv_scale))
            coef = oracle.clip_coef(max_norm, norm)
            is_idle = coef >= 1 and inv_scale is None
            for grad, old in zip(grads, before, strict=True):
                factor = factor_of(coef, inv_scale, dtype)
                wanted = oracle.values_of(old) if is_idle else oracle.scaled(old, factor)
                assert oracle.equal(grad, wanted)


@pytest.mark.parametrize("inv_scale", (None, 0.5))
def test_scale_into_writes_targets_whatever_is_found(
    engine: Backend, inv_scale: float | None
) -> None:
    coefs = torch.linspace(0.5, 1.5, len(mixed()), dtype=torch.float64)
    for by in (0.5, 1.0, 3.0, torch.tensor(0.25), [coefs], Coefficient(2.0, torch.tensor(9.0))):
        grads = mixed()
        grads[3][7] = math.nan
        before = copies(grads)
        targets = [torch.full_like(grad, 5.0) for grad in grads]
        fresh = versions(targets)
        found_inf = flag()
        list_of(engine, grads, READ_ONLY).scale_into(
            targets, by, inv_scale=scalar(inv_scale), found_inf=found_inf
        )
        assert found_inf.item() == 1
        assert_unchanged(grads, before)
        assert versions(grads) == [1 if i == 3 else 0 for i in range(len(grads))]
        is_single = isinstance(by, (Tensor, Coefficient))
        assert all(new > old for new, old in zip(versions(targets), fresh, strict=True))
        for i, (target, old) in enumerate(zip(targets, before, strict=True)):
            if isinstance(by, Coefficient):
                coef = oracle.clip_coef(2.0, torch.tensor(9.0))
            else:
                coef = coefs[i].item() if isinstance(by, list) else float(by)
            factor = factor_of(coef, inv_scale, torch.float32 if is_single else torch.float64)
            assert oracle.equal(target, oracle.scaled(old, factor))


@pytest.mark.parametrize("inv_scale", INV_SCALES)
def test_clamp_bounds_the_products(engine: Backend, inv_scale: float | None) -> None:
    for make in lists_of(engine).values():
        for limit in (0.3, 1e4, 0.0):
            grads = make()
            before = copies(grads)
            found_inf = flag()
            grad_list = list_of(engine, grads)
            assert grad_list.clamp(limit, inv_scale=scalar(inv_scale), found_inf=found_inf)
            for grad, old in zip(grads, before, strict=True):
                products = old.clone()
                if inv_scale not in (None, 1.0):
                    products.copy_(torch.from_numpy(oracle.scaled(old, inv_scale)).view(old.shape))
                assert oracle.equal(grad, oracle.clamped(products, limit), any_zero=limit == 0)
            assert found_inf.item() == 0 and versions(grads) == [1] * len(grads)


@pytest.mark.parametrize("is_held", (True, False))
def test_writes_look_for_inf_before_they_write(engine: Backend, is_held: bool) -> None:
    for write in ("scale", "clamp"):
        grads = mixed()
        grads[5][4000] = -math.inf
        before = copies(grads)
        found_inf = flag()
        grad_list = list_of(engine, grads)
        chosen = grad_list.hold() if is_held else grad_list
        if write == "scale":
            chosen.scale(0.5, inv_scale=torch.tensor(0.5), found_inf=found_inf)
        else:
            chosen.clamp(0.1, inv_scale=torch.tensor(0.5), found_inf=found_inf)
        assert found_inf.item() == 1
        assert_unchanged(grads, before)


BAD: dict[str, dict[str, Tensor]] = {
    "inv_scale of float64": {"inv_scale": torch.tensor(0.5, dtype=torch.float64)},
    "inv_scale of two elements": {"inv_scale": torch.ones(2)},
    "found_inf of bool": {"found_inf": torch.tensor(False)},
    "found_inf of two elements": {"found_inf": torch.zeros(2)},
}


@pytest.mark.parametrize("case", BAD)
def test_bad_scalars_raise_before_anything_is_written(engine: Backend, case: str) -> None:
    grads = mixed()
    before = copies(grads)
    grad_list = list_of(engine, grads)
    match = f"{case.partition(' ')[0]} must be a float32 tensor of one element"
    with pytest.raises(ValueError, match=match):
        grad_list.clip(ClipRequest(0.5, **BAD[case]))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=match):
        grad_list.scale(0.5, **BAD[case])
    with pytest.raises(ValueError, match=match):
        grad_list.clamp(0.5, **BAD[case])
    assert_unchanged(grads, before)


def test_bad_factors_raise_before_anything_is_written(engine: Backend) -> None:
    grads = some(torch.float32)
    before = copies(grads)
    grad_list = list_of(engine, grads)
    for by in (
        torch.ones(2),
        [torch.ones(3)],
        [torch.ones(4), torch.ones(4)],
        [torch.ones(4, dtype=torch.float16)],
        torch.tensor(1, dtype=torch.int64),
    ):
        with pytest.raises(ValueError, match="fastclip: "):
            grad_list.scale(by)
    assert_unchanged(grads, before)


def test_bad_targets_raise_before_anything_is_written(engine: Backend) -> None:
    grads = some(torch.float32)
    grad_list = list_of(engine, grads, READ_ONLY)
    good = [torch.zeros_like(grad) for grad in grads]
    bad: list[list[Tensor]] = [
        good[:-1],
        [*good[:-1], good[-1].double()],
        [*good[:-1], good[-1][:-1]],
        [*good[:-1], good[-1].view(17, 1000)],
    ]
    for targets in bad:
        with pytest.raises(ValueError, match="target"):
            grad_list.scale_into(targets, 0.5)
    assert all(bool(target.eq(0).all()) for target in good)


def test_products_with_minus_zero_have_its_sign(engine: Backend) -> None:
    grads = [torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 0.0]).repeat(5000)]
    signs = [~grad.signbit() for grad in grads]
    for by in (-0.0, torch.tensor(-0.0), [torch.full((2,), -0.0)]):
        targets = copies(grads)
        list_of(engine, grads, TENSORS).scale_into(targets, by)
        written = copies(grads)
        list_of(engine, written, TENSORS).scale(by)
        for result, sign in zip((*targets, *written), (*signs, *signs), strict=True):
            assert torch.equal(result.abs(), torch.zeros_like(result))
            assert torch.equal(result.signbit(), sign)
    # The coefficient of an infinite norm and a negative limit.
    clipped = [torch.tensor([1.0, -2.0]), torch.tensor([math.inf])]
    list_of(engine, clipped, TENSORS).clip(clip_request(-1.0))
    assert clipped[0].tolist() == [0, 0] and clipped[0].signbit().tolist() == [True, False]
    assert clipped[1].isnan().all()
