"""Lists of the reference backend: products in place and elsewhere, and clamps."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracle
import pytest
import torch
from list_cases import (
    DTYPES,
    FACTORS,
    INV_SCALES,
    WAYS,
    are_products,
    bits_of,
    factor_of,
    flag,
    gathered,
    is_product,
    mixed_gradients,
    reals,
    scalar,
    some_gradients,
    unreadable,
    went_up_by_one,
    with_signalling_nan,
)
from reference_calls import REFERENCE
from samples import FLOAT_DTYPES, copies, gradient, versions
from torch import Tensor

from fastclip.backends.base import GradList
from fastclip.backends.request import Coefficient, Factor, Kind, clip_request

LEAVING: dict[str, Factor] = {
    "number": 1.0,
    "above": 3,
    "float32": torch.tensor(1.0),
    "float64": torch.tensor(2.0, dtype=torch.float64),
    "coefficient": Coefficient(5.0, torch.tensor(2.0)),
    "each": [torch.tensor([1.0, 2.0])],
}
BAD_FACTORS: dict[str, tuple[Factor, type[Exception], str]] = {
    "dimension": (torch.tensor([0.5]), ValueError, "must be 0-dim"),
    "dtype": (torch.tensor(1), ValueError, "must be float32 or float64"),
    "too many": ([torch.ones(2)], ValueError, "one element for each gradient"),
    "devices": ([torch.ones(1), torch.ones(1)], ValueError, "one for each device"),
    "each dtype": ([torch.ones(1).half()], ValueError, "must be float32 or float64"),
    "no norm": (Coefficient(1.0, 2.0), TypeError, "clamp"),  # pyright: ignore[reportArgumentType]
    "no factor": (None, TypeError, "float"),  # pyright: ignore[reportAssignmentType]
}

Act = Callable[[GradList, Tensor | None], object]
ACTS: dict[str, Act] = {
    "clip": lambda grads, found_inf: grads.clip(clip_request(0.01, found_inf=found_inf)),
    "scale": lambda grads, found_inf: grads.scale(0.5, found_inf=found_inf),
    "each": lambda grads, found_inf: grads.scale([torch.full((2,), 0.5)], found_inf=found_inf),
    "clamp": lambda grads, found_inf: grads.clamp(0.01, found_inf=found_inf),
    "clamp by a scale": lambda grads, found_inf: grads.clamp(
        0.01, inv_scale=scalar(0.5), found_inf=found_inf
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("inv_scale", INV_SCALES)
@pytest.mark.parametrize("name", FACTORS)
def test_scale_multiplies_by_the_product(name: str, inv_scale: float | None, way: str) -> None:
    by, value, dtype = FACTORS[name]
    grads = mixed_gradients()
    before = copies(grads)
    found = gathered(grads, way)
    old_versions = versions(grads)
    found_inf = flag()
    assert found.scale(by, inv_scale=scalar(inv_scale), found_inf=found_inf)
    scale = None if inv_scale is None else float(torch.tensor(inv_scale))
    assert are_products(grads, before, factor_of(value, scale, dtype))
    assert went_up_by_one(grads, old_versions)
    assert found_inf.item() == 0


@pytest.mark.parametrize("foreach", (None, False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_of_awkward_shapes(dtype: torch.dtype, foreach: bool | None) -> None:
    grads = some_gradients(dtype)
    before = copies(grads)
    found = REFERENCE.gather(grads, Kind.TENSORS, foreach=foreach)
    found.scale(0.3, inv_scale=scalar(0.7), found_inf=flag())
    assert are_products(grads, before, 0.3 * float(torch.tensor(0.7)))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("inv_scale", INV_SCALES)
@pytest.mark.parametrize("way", WAYS)
def test_each_gradient_has_its_own_coefficient(
    way: str, inv_scale: float | None, dtype: torch.dtype
) -> None:
    grads = mixed_gradients()
    coefs = torch.linspace(-0.9, 1.1, len(grads), dtype=dtype)
    coefs[3] = math.nan
    before = copies(grads)
    found = gathered(grads, way)
    old_versions = versions(grads)
    assert found.scale([coefs], inv_scale=scalar(inv_scale), found_inf=flag())
    scale = None if inv_scale is None else float(torch.tensor(inv_scale))
    for grad, old, coef in zip(grads, before, coefs.tolist(), strict=True):
        is_left = coef >= 1 and scale in (None, 1)
        assert is_product(grad, old, 1.0 if is_left else factor_of(coef, scale, dtype))
    assert went_up_by_one(grads, old_versions)


def test_coefficients_of_shared_gradients_and_of_several_devices() -> None:
    here, there = torch.ones(2), torch.ones(3, device="meta")
    found = REFERENCE.gather([here, there, here.view(2), there], Kind.TENSORS)
    found.scale([torch.tensor([0.5]), torch.tensor([0.25])])
    assert here.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="one for each device"):
        found.scale([torch.tensor([0.5, 0.5])])


@pytest.mark.parametrize("name", LEAVING)
def test_a_factor_of_one_or_more_writes_nothing_by_itself(name: str) -> None:
    grads = [with_signalling_nan(), torch.full((2,), 3.0, dtype=torch.float64)]
    before, old_versions = bits_of(grads), versions(grads)
    for inv_scale in (None, scalar(1.0)):
        assert gathered(grads).scale(LEAVING[name], inv_scale=inv_scale)
        assert bits_of(grads) == before
    assert versions(grads) == [version + 2 for version in old_versions]
    gathered(grads).scale(LEAVING[name], inv_scale=scalar(2.0))
    value = LEAVING[name]
    expected = {"above": 18, "float64": 12, "each": 12}.get(name, 6)
    assert grads[1].tolist() == [expected, expected], value


@pytest.mark.parametrize("name", BAD_FACTORS)
def test_a_bad_factor_is_refused_before_any_write(name: str) -> None:
    by, error, words = BAD_FACTORS[name]
    grad, found_inf = torch.full((3,), math.inf), flag()
    with pytest.raises(error, match=words):
        gathered([grad]).scale(by, found_inf=found_inf)
    with pytest.raises(error, match=words):
        gathered([grad]).scale_into([torch.empty(3)], by, found_inf=found_inf)
    assert grad.tolist() == [math.inf] * 3
    assert found_inf.item() == 0


@pytest.mark.parametrize("inv_scale", INV_SCALES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_clamp_limits_multiples_of_inv_scale(dtype: torch.dtype, inv_scale: float | None) -> None:
    for way in WAYS:
        grads = some_gradients(dtype)
        before = copies(grads)
        found = gathered(grads, way)
        old_versions = versions(grads)
        found_inf = flag()
        assert found.clamp(0.3, inv_scale=scalar(inv_scale), found_inf=found_inf)
        for grad, old in zip(grads, before, strict=True):
            scale = 1.0 if inv_scale is None else float(torch.tensor(inv_scale))
            product = torch.from_numpy(oracle.scaled(old, scale)).to(dtype)  # exact
            assert oracle.equal(grad, oracle.clamped(product, 0.3))
        assert went_up_by_one(grads, old_versions)
        assert found_inf.item() == 0


@pytest.mark.parametrize("clip_value", (0.0, -1.0, math.inf, math.nan))
def test_clamps_by_special_limits_act_as_without_a_scale(clip_value: float) -> None:
    expected, grads = some_gradients(torch.float32), some_gradients(torch.float32)
    gathered(expected).clamp(clip_value)
    gathered(grads).clamp(clip_value, inv_scale=scalar(1.0), found_inf=flag())
    assert bits_of(grads) == bits_of(expected)


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("is_readable", (True, False))
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_where_an_element_is_not_finite(
    dtype: torch.dtype, is_readable: bool, name: str
) -> None:
    for value in (math.nan, math.inf, -math.inf):
        grads = [gradient(500, dtype), gradient(9, dtype)]
        reals(grads[1]).view(-1)[4] = value
        before, old_versions = bits_of(grads), versions(grads)
        found_inf = flag() if is_readable else unreadable(flag())
        if dtype.is_complex and name.startswith("clamp"):
            with pytest.raises(NotImplementedError, match="not supported for complex types"):
                ACTS[name](gathered(grads), found_inf)
            assert found_inf.item() == 0
            assert bits_of(grads) == before
            continue
        ACTS[name](gathered(grads), found_inf)
        assert found_inf.item() == 1
        assert bits_of(grads) == before
        assert went_up_by_one(grads, old_versions)


@pytest.mark.parametrize("name", ACTS)
def test_nothing_is_written_where_the_flag_is_set_before(name: str) -> None:
    grads = [gradient(500, torch.float32), gradient(9, torch.bfloat16)]
    before, old_versions = bits_of(grads), versions(grads)
    for value in (1.0, 2.0):
        found_inf = torch.tensor(value)
        ACTS[name](gathered(grads), found_inf)
        assert found_inf.item() == 1
        assert bits_of(grads) == before
    assert versions(grads) == [version + 2 for version in old_versions]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*ACTS, "left"])
def test_values_are_those_of_a_flag_that_the_host_reads(name: str, dtype: torch.dtype) -> None:
    if dtype.is_complex and name.startswith("clamp"):
        return
    expected, grads = some_gradients(dtype)[3:5], some_gradients(dtype)[3:5]
    flags = flag(), unreadable(flag())
    for made, found_inf in zip((expected, grads), flags, strict=True):
        if name == "left":
            gathered(made).scale(torch.tensor(3.0), found_inf=found_inf)
        else:
            ACTS[name](gathered(made), found_inf)
        assert found_inf.item() == 0
    assert bits_of(grads) == bits_of(expected)


@pytest.mark.parametrize("name", ACTS)
def test_what_is_refused_sets_no_flag(name: str) -> None:
    with torch.inference_mode():
        frozen = torch.ones(2)
    for refused in (torch.ones(1).expand(2), frozen):
        grads, found_inf = [torch.tensor([1.0, math.nan]), refused], flag()
        with pytest.raises(RuntimeError):
            ACTS[name](gathered(grads), found_inf)
        assert found_inf.item() == 0
        assert grads[0][0].item() == 1


def test_held_gradients_that_reduce_has_checked_are_not_read_again() -> None:
    for check in (
        lambda grads, found_inf: grads.reduce(1.0, found_inf=found_inf),
        lambda grads, found_inf: grads.clip(clip_request(1.0, writes=False, found_inf=found_inf)),
    ):
        grad, found_inf = torch.ones(3), flag()
        held = gathered([grad]).hold()
        check(held, found_inf)
        grad[0] = math.nan
        assert held.scale(0.5, found_inf=found_inf)
        assert (found_inf.item(), grad[1].item()) == (0, 0.5)
        # It has been written since.
        assert held.scale(0.5, found_inf=found_inf)
        assert (found_inf.item(), grad[1].item()) == (1, 0.5)
        # Another flag, and a list that is not held.
        for found in (held, gathered([grad])):
            check(found, flag())
            other = flag()
            assert found.clamp(0.1, found_inf=other)
            assert (other.item(), grad[1].item()) == (1, 0.5)


def test_a_list_that_is_not_held_looks_again_each_time() -> None:
    grad, found_inf = torch.ones(3), flag()
    found = gathered([grad])
    found.reduce(1.0, found_inf=found_inf)
    grad[0] = math.nan
    assert found.scale(0.5, found_inf=found_inf)
    assert (found_inf.item(), grad[1].item()) == (1, 1.0)


def test_held_gradients_that_a_clip_has_written_are_read_again() -> None:
    grad, found_inf = torch.ones(3), flag()
    held = gathered([grad]).hold()
    held.clip(clip_request(1.0, found_inf=found_inf))
    grad.fill_(math.nan)
    held.scale(0.5, found_inf=found_inf)
    assert found_inf.item() == 1


def test_a_flag_that_reduce_has_set_stops_what_follows() -> None:
    grads, found_inf = [torch.tensor([1.0, math.inf])], flag()
    held = gathered(grads).hold()
    held.reduce(2.0, found_inf=found_inf)
    held.scale(0.5, found_inf=found_inf)
    held.clamp(0.5, found_inf=found_inf)
    assert grads[0].tolist() == [1.0, math.inf]


def test_a_list_that_is_read_only_is_not_written() -> None:
    grad = torch.ones(3)
    found = REFERENCE.gather([grad], Kind.READ_ONLY)
    calls = (
        lambda: found.clip(clip_request(0.1)),
        lambda: found.scale(0.1),
        lambda: found.clamp(0.1),
    )
    for call in calls:
        with pytest.raises(ValueError, match="read only"):
            call()
    assert grad.tolist() == [1, 1, 1]


def test_a_gradient_may_be_the_factor() -> None:
    factor, other = torch.tensor(0.5), torch.ones(2, dtype=torch.float64)
    gathered([factor, other]).scale(factor)
    assert (factor.item(), other.tolist()) == (0.25, [0.5, 0.5])
