"""Lists of the reference backend: what they read, and the norms that they find."""

from __future__ import annotations

import gc
import math
import weakref

import oracle
import pytest
import torch
from list_cases import (
    DTYPES,
    INV_SCALES,
    WAYS,
    are_products,
    bits_of,
    factor_of,
    flag,
    gathered,
    mixed_gradients,
    reals,
    scalar,
    some_gradients,
    went_up_by_one,
    with_signalling_nan,
)
from reference_calls import REFERENCE
from samples import copies, gradient, parameter, parameters, versions
from torch import Tensor

from fastclip.backends.base import NonFiniteError, nonfinite_positions
from fastclip.backends.request import Kind, clip_request

NORM_TYPES = (2.0, 1.0, math.inf, 3.5, 0.5, 0.0, -1.0, -math.inf)
WIDE = (torch.float64, torch.complex128)


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in WIDE else torch.float32


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("inv_scale", INV_SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_counts_and_writes_multiples_of_inv_scale(
    dtype: torch.dtype, inv_scale: float | None, way: str
) -> None:
    grads = some_gradients(dtype)
    before = copies(grads)
    found = gathered(grads, way)
    old_versions = versions(grads)
    found_inf = flag()
    request = clip_request(0.5, inv_scale=scalar(inv_scale), found_inf=found_inf, keeps_norms=True)
    norms = found.clip(request)
    scale = 1.0 if inv_scale is None else float(torch.tensor(inv_scale))
    assert norms.total_norm is not None
    assert norms.total_norm.dtype == norm_dtype(dtype)
    expected = abs(scale) * oracle.total_norm(before, 2.0)
    assert oracle.is_norm(norms.total_norm.item(), expected, norm_dtype(dtype))
    clip_coef = oracle.clip_coef(0.5, norms.total_norm)
    assert norms.clip_coef.item() == clip_coef
    assert are_products(grads, before, factor_of(clip_coef, scale, norm_dtype(dtype)))
    assert went_up_by_one(grads, old_versions)
    assert found_inf.item() == 0


@pytest.mark.parametrize("way", WAYS)
def test_norms_are_those_of_multiples_and_sums_those_before(way: str) -> None:
    grads = mixed_gradients()
    expected = [oracle.tensor_norm(grad, 2.0) for grad in grads]
    request = clip_request(1.0, inv_scale=scalar(0.3), keeps_norms=True)
    norms = gathered(grads, way).clip(request)
    for value, right in zip(norms.parameter_norms().tolist(), expected, strict=True):
        assert oracle.is_norm(value, right * float(torch.tensor(0.3)), torch.float64)
    [part] = norms.sums.parts
    for value, right in zip(part.tolist(), expected, strict=True):
        assert value == pytest.approx(right * right, rel=2.0**-35)
    assert norms.sums.total.item() == pytest.approx(sum(part.tolist()), rel=2.0**-35)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("keeps_norms", (False, True))
def test_a_flag_or_a_scale_of_one_changes_no_bits(keeps_norms: bool, norm_type: float) -> None:
    plain, other = mixed_gradients(), mixed_gradients()
    request = clip_request(0.5, norm_type, keeps_norms=keeps_norms)
    expected = gathered(plain).clip(request).total_norm
    actual = (
        gathered(other).clip(request._replace(inv_scale=scalar(1.0), found_inf=flag())).total_norm
    )
    assert expected is not None
    assert actual is not None
    assert bits_of([actual]) == bits_of([expected])
    assert bits_of(other) == bits_of(plain)


@pytest.mark.parametrize("dtype", (None, torch.float32, torch.float64))
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_finish_makes_of_the_sums_what_a_clip_finds(
    norm_type: float, dtype: torch.dtype | None
) -> None:
    grads = mixed_gradients()
    request = clip_request(
        0.7, norm_type, inv_scale=scalar(0.3), writes=False, dtype=dtype, keeps_norms=True
    )
    found = gathered(grads)
    clipped = found.clip(request)
    sums = found.reduce(norm_type, dtype=dtype)
    finished = found.finish(sums, request)
    assert clipped.total_norm is not None
    assert finished.total_norm is not None
    assert bits_of([finished.total_norm]) == bits_of([clipped.total_norm])
    assert finished.total_norm.dtype == clipped.total_norm.dtype
    assert bits_of([finished.clip_coef]) == bits_of([clipped.clip_coef])
    assert bits_of([finished.parameter_norms()]) == bits_of([clipped.parameter_norms()])
    expected = float(torch.tensor(0.3)) * oracle.total_norm(grads, norm_type)
    assert oracle.is_norm(finished.total_norm.item(), expected, finished.total_norm.dtype)


@pytest.mark.parametrize("norm_type", (2.0, 1.0, 3.5, 0.5))
def test_finish_of_two_lists_together(norm_type: float) -> None:
    first, second = some_gradients(torch.float32), mixed_gradients()
    found = gathered(first)
    sums = found.reduce(norm_type)
    together = sums.with_total(sums.total + gathered(second).reduce(norm_type).total)
    norms = found.finish(together, clip_request(1.0))
    assert norms.total_norm is not None
    assert norms.total_norm.dtype == torch.float32
    expected = oracle.total_norm([*first, *second], norm_type)
    assert oracle.is_norm(norms.total_norm.item(), expected, torch.float32)
    alone = found.finish(sums, clip_request(1.0, keeps_norms=True))
    assert torch.equal(norms.parameter_norms(), alone.parameter_norms())


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_sums_are_powers_of_the_norms(norm_type: float) -> None:
    grads = some_gradients(torch.float32)
    sums = gathered(grads).reduce(norm_type)
    [part] = sums.parts
    assert part.dtype == torch.float64
    for value, grad in zip(part.tolist(), grads, strict=True):
        if grad.numel() > 0:
            elements = grad.reshape(-1).abs().to(torch.float64)
            is_extreme = math.isinf(norm_type)
            extreme = elements.max() if norm_type > 0 else elements.min()
            powers = (elements != 0).double() if norm_type == 0 else elements**norm_type
            right = extreme if is_extreme else powers.sum()
            assert value == pytest.approx(right.item(), rel=2.0**-35)


def test_places_of_sources_without_a_gradient_and_of_shared_ones() -> None:
    shared = gradient(5, torch.float32, 1)
    other = gradient(3, torch.float32, 2)
    held = parameters([None, shared, other, shared.view(5), None])
    found = REFERENCE.gather(held, Kind.PARAMETERS)
    sums = found.reduce(2.0)
    assert sums.places is not None
    assert sums.places.tolist() == [-1, 0, 1, 0, -1]
    norms = found.clip(clip_request(1.0, writes=False, keeps_norms=True)).parameter_norms()
    first, second = oracle.tensor_norm(shared, 2.0), oracle.tensor_norm(other, 2.0)
    for value, right in zip(norms.tolist(), [0, first, second, first, 0], strict=True):
        assert oracle.is_norm(value, right, torch.float32)
    assert gathered([shared, torch.ones(2)]).reduce(2.0).places is None


def test_sums_are_grouped_by_device() -> None:
    here, other = gradient(5, torch.float32), gradient(4, torch.bfloat16)
    there = [torch.ones(size, device="meta") for size in (3, 2)]
    sums = gathered([there[0], here, other, there[1]]).reduce(1.0)
    assert [(part.device.type, len(part)) for part in sums.parts] == [("meta", 2), ("cpu", 2)]
    for value, grad in zip(sums.parts[1].tolist(), (here, other), strict=True):
        assert value == pytest.approx(oracle.tensor_norm(grad, 1.0), rel=2.0**-35)
    assert sums.total.device.type == "meta"
    assert sums.places is not None
    assert sums.places.tolist() == [0, 2, 3, 1]


def test_what_is_only_read_counts_as_often_as_it_is_given() -> None:
    grad = torch.tensor([3.0, 4.0])
    sums = REFERENCE.gather([grad, grad], Kind.READ_ONLY).reduce(2.0)
    assert [part.tolist() for part in sums.parts] == [[25.0, 25.0]]
    assert sums.total.item() == pytest.approx(50.0)
    assert REFERENCE.gather([grad, grad], Kind.TENSORS).reduce(2.0).total.item() == 25.0


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_flag_is_set_and_nothing_written_where_an_element_is_not_finite(
    dtype: torch.dtype, value: float, norm_type: float
) -> None:
    for position in (4, 10):
        grads = some_gradients(dtype)
        reals(grads[position]).view(-1)[-1] = value
        before, old_versions = bits_of(grads), versions(grads)
        found_inf = flag()
        gathered(grads).clip(clip_request(0.1, norm_type, found_inf=found_inf))
        assert found_inf.item() == 1
        assert bits_of(grads) == before
        assert went_up_by_one(grads, old_versions)
        reduced = flag()
        gathered(grads).reduce(norm_type, found_inf=reduced)
        assert reduced.item() == 1


@pytest.mark.parametrize("keeps_norms", (False, True))
def test_a_flag_that_is_set_is_never_cleared_and_nothing_is_written(keeps_norms: bool) -> None:
    grads = mixed_gradients()
    before, old_versions = bits_of(grads), versions(grads)
    found_inf = flag(1.0)
    request = clip_request(0.1, found_inf=found_inf, keeps_norms=keeps_norms)
    norm = gathered(grads).clip(request).total_norm
    assert norm is not None
    assert oracle.is_norm(norm.item(), oracle.total_norm(grads, 2.0), torch.float64)
    assert found_inf.item() == 1
    assert bits_of(grads) == before
    assert went_up_by_one(grads, old_versions)


OVERFLOWS: dict[str, tuple[Tensor, float]] = {
    "float32 norm": (torch.full((100,), 3e38), 2.0),
    "float64 squares": (torch.full((3,), 2e200, dtype=torch.float64), 2.0),
    "high powers": (torch.full((3,), 1e30), 100.0),
    "magnitude": (torch.tensor([1.7e308 + 1.7e308j], dtype=torch.complex128), math.inf),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_overflow_of_finite_elements_does_not_set_the_flag(name: str) -> None:
    values, norm_type = OVERFLOWS[name]
    for keeps_norms in (False, True):
        grad, found_inf = values.clone(), flag()
        request = clip_request(1.0, norm_type, found_inf=found_inf, keeps_norms=keeps_norms)
        norm = gathered([grad]).clip(request).total_norm
        assert norm is not None
        assert norm.item() == math.inf
        assert found_inf.item() == 0
        assert not torch.equal(grad, values)


def test_the_error_of_a_norm_that_is_not_finite_comes_before_any_write() -> None:
    grads = [
        torch.ones(3),
        torch.tensor([1.0, math.nan]),
        torch.ones(2),
        torch.full((1,), -math.inf),
    ]
    held = parameters([grads[0], None, *grads[1:]])
    before, found_inf = bits_of(grads), flag()
    request = clip_request(0.1, error_if_nonfinite=True, found_inf=found_inf, keeps_norms=True)
    with pytest.raises(NonFiniteError) as error:
        REFERENCE.gather(held, Kind.PARAMETERS).clip(request)
    assert error.value.positions == [2, 4]
    assert bits_of(grads) == before
    assert found_inf.item() == 1
    norms = error.value.norms.parameter_norms().tolist()
    assert [math.isfinite(value) for value in norms] == [True, True, False, True, False]


@pytest.mark.parametrize("norm_type", (2.0, math.inf, 0.0))
def test_a_list_without_gradients(norm_type: float) -> None:
    for held, count in ((parameters([None, None]), 2), ([], 0)):
        found = REFERENCE.gather(held, Kind.PARAMETERS)
        found_inf = flag()
        for keeps_norms in (False, True):
            request = clip_request(1.0, norm_type, found_inf=found_inf, keeps_norms=keeps_norms)
            norms = found.clip(request)
            assert norms.total_norm is None
        assert norms.parameter_norms().tolist() == [0.0] * count
        sums = found.reduce(norm_type, dtype=torch.float64)
        assert (list(sums.parts), sums.total.item()) == ([], 0)
        finished = found.finish(sums, clip_request(1.0, norm_type)).total_norm
        assert finished is not None
        assert (finished.item(), finished.dtype) == (0, torch.float64)
        assert found.scale(0.5, found_inf=found_inf) is False
        assert found.clamp(0.5, found_inf=found_inf) is False
        found.scale_into([], 0.5)
        assert found_inf.item() == 0


def test_more_than_the_norm_must_be_asked_for() -> None:
    norms = gathered([torch.ones(3)]).clip(clip_request(1.0))
    for ask in (lambda: norms.sums, lambda: norms.clip_coef, norms.parameter_norms):
        with pytest.raises(RuntimeError, match="keeps_norms"):
            ask()


def test_norms_do_not_keep_gradients_alive() -> None:
    held = parameters([torch.ones(3), torch.ones(4)])
    norms = REFERENCE.gather(held, Kind.PARAMETERS).clip(clip_request(1.0, keeps_norms=True))
    grads = [weakref.ref(p.grad) for p in held]
    for p in held:
        p.grad = None
    gc.collect()
    assert [grad() for grad in grads] == [None, None]
    assert norms.parameter_norms().tolist() == [torch.tensor(3.0).sqrt().item(), 2.0]


def test_a_list_reads_gradients_anew_and_a_held_one_does_not() -> None:
    first, second = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
    held = parameter(first)
    found = REFERENCE.gather([held], Kind.PARAMETERS)
    kept = found.hold()
    held.grad = second
    assert found.reduce(2.0).total.item() == 100
    assert kept.reduce(2.0).total.item() == 25
    assert kept.hold().scale(0.5)
    assert (first.tolist(), second.tolist()) == ([1.5, 2], [6, 8])
    held.grad = None
    assert not found.scale(0.5)
    weak = weakref.ref(first)
    del first
    gc.collect()
    assert weak() is not None
    del kept
    gc.collect()
    assert weak() is None


@pytest.mark.parametrize("takes_norm", (True, False))
def test_the_callers_list_may_change_while_another_is_held(takes_norm: bool) -> None:
    tensors = [torch.tensor([3.0, 4.0])]
    kept = REFERENCE.gather(tensors, Kind.TENSORS).hold(takes_norm=takes_norm)
    tensors[0] = torch.ones(100)
    tensors.append(torch.ones(100))
    assert kept.reduce(2.0).total.item() == 25


def test_holding_checks_what_cannot_be_measured_or_written() -> None:
    expanded = torch.ones(1).expand(3)
    for grads in ([torch.ones(3), expanded], [torch.ones(3), torch.ones(2, dtype=torch.int64)]):
        with pytest.raises(RuntimeError):
            gathered(grads).hold()
    kept = REFERENCE.gather([expanded], Kind.READ_ONLY).hold()
    assert kept.reduce(2.0).total.item() == pytest.approx(3)
    meta = REFERENCE.gather([torch.ones(3, device="meta")], Kind.TENSORS, foreach=True)
    with pytest.raises(RuntimeError, match="foreach=True was passed"):
        meta.hold()


def test_positions_of_what_is_not_finite() -> None:
    grads = mixed_gradients()
    assert nonfinite_positions(gathered(grads)) == []
    reals(grads[3])[7] = math.nan
    reals(grads[-1]).view(-1)[5] = math.inf
    assert nonfinite_positions(gathered(grads)) == [3, len(grads) - 1]


def test_a_clip_that_limits_nothing_writes_nothing() -> None:
    grads = [with_signalling_nan()[:1], *some_gradients(torch.bfloat16)]
    before = bits_of(grads)
    for inv_scale in (None, scalar(1.0)):
        gathered(grads).clip(clip_request(1e9, inv_scale=inv_scale, found_inf=flag()))
        assert bits_of(grads) == before


@pytest.mark.parametrize("bad", (torch.ones(2), torch.ones((), dtype=torch.float64), 1.0))
@pytest.mark.parametrize("name", ("inv_scale", "found_inf"))
def test_a_scalar_of_another_kind_is_refused(name: str, bad: Tensor) -> None:
    grad = torch.ones(3)
    found, given = gathered([grad]), {name: bad}
    calls = (
        lambda: found.clip(clip_request(0.1)._replace(**given)),
        lambda: found.scale(0.1, **given),
        lambda: found.clamp(0.1, **given),
        lambda: found.scale_into([torch.ones(3)], 0.1, **given),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"{name} must be"):
            call()
    assert grad.tolist() == [1, 1, 1]
