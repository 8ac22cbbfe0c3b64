"""What the public functions take, refuse and leave as it is, on every backend."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from samples import (
    FLOAT_DTYPES,
    awkward_gradients,
    copies,
    dense_gradients,
    gradient,
    parameter,
    parameters,
    versions,
)
from torch import Tensor
from torch.nn import utils as stock

import fastclip


def some_gradients() -> list[Tensor]:
    return [gradient((3, 5), torch.float32, 1), gradient(40, torch.float32, 2)]


def as_generator(items: list[Tensor]) -> Iterator[Tensor]:
    yield from items


@pytest.mark.parametrize("wrap", [list, tuple, iter, as_generator, dict.fromkeys])
def test_any_iterable_is_walked_once(
    backend: str | None, wrap: Callable[[list[Tensor]], object]
) -> None:
    grads = some_gradients()
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(wrap(held), 1.0, backend=backend)  # pyright: ignore
    expected = oracle.total_norm(grads, 2.0)
    assert oracle.is_norm(norm.item(), expected, torch.float32)
    assert oracle.is_norm(
        fastclip.get_total_norm(wrap(grads), backend=backend).item(),  # pyright: ignore
        expected,
        torch.float32,
    )
    coef = oracle.clip_coef(1.0, norm)
    for p, grad in zip(held, grads, strict=True):
        assert p.grad is not None
        assert oracle.equal(p.grad, oracle.scaled(grad, coef))
    fastclip.clip_grads_with_norm_(wrap(held), 0.5, norm, backend=backend)  # pyright: ignore
    fastclip.clip_grad_value_(wrap(held), 1e-3, backend=backend)  # pyright: ignore
    assert max(p.grad.abs().max().item() for p in held if p.grad is not None) <= np.float32(1e-3)


def test_single_tensor_is_a_list_of_one(backend: str | None) -> None:
    grad = gradient((7, 3), torch.float32)
    [held] = parameters([grad.clone()])
    norm = fastclip.clip_grad_norm_(held, 1.0, backend=backend)
    assert held.grad is not None
    assert torch.equal(norm, fastclip.get_total_norm(grad, backend=backend))
    assert oracle.equal(held.grad, oracle.scaled(grad, oracle.clip_coef(1.0, norm)))
    fastclip.clip_grads_with_norm_(held, 0.0, norm, backend=backend)
    assert not held.grad.any()
    held.grad.fill_(9)
    fastclip.clip_grad_value_(held, 1.0, backend=backend)
    assert held.grad.unique().tolist() == [1]


def test_callers_list_is_left_alone(backend: str | None) -> None:
    held = parameters([torch.ones(3), None, torch.ones(2)])
    given = list(held)
    fastclip.clip_grad_norm_(given, 1.0, backend=backend)
    assert len(given) == 3
    assert all(a is b for a, b in zip(given, held, strict=True))


def test_empty_generator_warns_at_the_callers_line(backend: str | None) -> None:
    calls: list[Callable[[], Tensor]] = [
        lambda: stock.clip_grad_norm_(as_generator([]), 1.0),
        lambda: fastclip.clip_grad_norm_(as_generator([]), 1.0, backend=backend),
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            norm = call()
        assert [(w.category, w.filename) for w in caught] == [(UserWarning, __file__)]
        assert str(caught[0].message) == (
            "`parameters` is an empty generator, no gradient clipping will occur."
        )
        assert norm.item() == 0


def test_empty_list_and_empty_iterator_do_not_warn(backend: str | None) -> None:
    for empty in ([], (), iter([])):
        assert fastclip.clip_grad_norm_(empty, 1.0, backend=backend).item() == 0


@pytest.mark.parametrize("count", (0, 3))
def test_no_gradients_give_a_float32_zero_on_the_cpu(backend: str | None, count: int) -> None:
    held = parameters([None] * count)
    norm = fastclip.clip_grad_norm_(held, 1.0, backend=backend)
    assert (norm.item(), norm.dtype, norm.dim(), norm.device.type) == (0, torch.float32, 0, "cpu")
    assert not norm.requires_grad
    fastclip.clip_grads_with_norm_(held, 1.0, norm, backend=backend)
    fastclip.clip_grad_value_(held, 1.0, backend=backend)
    total = fastclip.get_total_norm([], backend=backend)
    assert (total.item(), total.dtype, total.dim()) == (0, torch.float32, 0)


@pytest.mark.parametrize("thing", [[1.0], [None], ["abc"], [[torch.ones(2)]], 3])
def test_things_that_are_no_tensors_raise_torchs_error(backend: str | None, thing: object) -> None:
    with pytest.raises((AttributeError, TypeError)) as theirs:
        stock.clip_grad_norm_(thing, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(type(theirs.value)) as ours:
        fastclip.clip_grad_norm_(thing, 1.0, backend=backend)  # pyright: ignore
    assert str(ours.value) == str(theirs.value)


def test_module_raises_torchs_type_error(backend: str | None) -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="'Linear' object is not iterable"):
        stock.clip_grad_norm_(module, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="'Linear' object is not iterable"):
        fastclip.clip_grad_norm_(module, 1.0, backend=backend)  # pyright: ignore


def test_anything_with_a_grad_is_a_parameter(backend: str | None) -> None:
    holder = SimpleNamespace(grad=torch.full((4,), 2.0))
    norm = fastclip.clip_grad_norm_([holder], 1.0, backend=backend)  # pyright: ignore
    assert norm.item() == 4
    np.testing.assert_allclose(holder.grad.numpy(), 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "value", ["1.5", 1, np.float64(1.5), torch.tensor(1.5), torch.tensor([[1.5]]), True, "inf"]
)
def test_max_norm_goes_through_float(backend: str | None, value: float) -> None:
    ours, theirs = parameters(some_gradients()), parameters(some_gradients())
    fastclip.clip_grad_norm_(ours, value, backend=backend)
    stock.clip_grad_norm_(theirs, value)
    norm = torch.tensor(3.0)
    fastclip.clip_grads_with_norm_(ours, value, norm, backend=backend)
    stock.clip_grads_with_norm_(theirs, value, norm)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("value", ["inf", "2", 1, torch.tensor(3.0), torch.tensor([2])])
def test_norm_type_goes_through_float(backend: str | None, value: float) -> None:
    norm = fastclip.get_total_norm(some_gradients(), value, backend=backend)
    torch.testing.assert_close(norm, stock.get_total_norm(some_gradients(), value))
    clipped = fastclip.clip_grad_norm_(parameters(some_gradients()), 1.0, value, backend=backend)
    assert torch.equal(clipped, norm)


@pytest.mark.parametrize("value", ["0.5", torch.tensor([0.5]), 1])
def test_clip_value_goes_through_float(backend: str | None, value: float) -> None:
    ours, theirs = parameters(some_gradients()), parameters(some_gradients())
    fastclip.clip_grad_value_(ours, value, backend=backend)
    stock.clip_grad_value_(theirs, value)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))  # pyright: ignore


@pytest.mark.parametrize(
    ("value", "error"),
    [("abc", ValueError), (None, TypeError), (1j, TypeError), ([1.0], TypeError)],
)
def test_what_float_refuses_is_refused_before_any_write(
    backend: str | None, value: float, error: type[Exception]
) -> None:
    held = parameters([torch.full((3,), 5.0)])
    calls: list[Callable[[], object]] = [
        lambda: fastclip.clip_grad_norm_(held, value, backend=backend),
        lambda: fastclip.clip_grad_norm_(held, 1.0, value, backend=backend),
        lambda: fastclip.get_total_norm([torch.ones(2)], value, backend=backend),
        lambda: fastclip.clip_grads_with_norm_(held, value, torch.tensor(9.0), backend=backend),
        lambda: fastclip.clip_grad_value_(held, value, backend=backend),
    ]
    for call in calls:
        with pytest.raises(error):
            call()
    assert held[0].grad is not None
    assert held[0].grad.tolist() == [5, 5, 5]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_strides_and_identity_of_gradients_stay(backend: str | None, dtype: torch.dtype) -> None:
    grads = awkward_gradients(dtype)
    used = dense_gradients(dtype) if backend in ("native", "triton") else grads
    held = parameters(used)
    before = [(id(g), g.stride(), g.data_ptr(), g.dtype) for g in used]
    values = [p.detach().clone() for p in held]
    fastclip.clip_grad_norm_(held, 0.1, backend=backend)
    fastclip.clip_grad_value_(held, 0.001, backend=backend)
    after = [(id(p.grad), p.grad.stride(), p.grad.data_ptr(), p.grad.dtype) for p in held]  # pyright: ignore
    assert after == before
    assert all(torch.equal(p, value) for p, value in zip(held, values, strict=True))
    assert all(p.requires_grad for p in held)


def test_expanded_gradient_raises_torchs_error_before_any_write(backend: str | None) -> None:
    expanded = torch.ones(1).expand(3)
    with pytest.raises(RuntimeError) as theirs:
        stock.clip_grad_norm_([parameter(expanded)], 1.0)
    calls: list[Callable[[list[Tensor]], object]] = [
        lambda held: fastclip.clip_grad_norm_(held, 0.1, backend=backend),
        lambda held: fastclip.clip_grad_norm_(held, 1e9, backend=backend),
        lambda held: fastclip.clip_grads_with_norm_(held, 1.0, torch.tensor(9.0), backend=backend),
        lambda held: fastclip.clip_grad_value_(held, 0.5, backend=backend),
    ]
    for call in calls:
        held = parameters([torch.full((3,), 5.0), expanded])
        with pytest.raises(RuntimeError) as ours:
            call(held)
        assert str(ours.value) == str(theirs.value)
        assert held[0].grad is not None
        assert held[0].grad.tolist() == [5, 5, 5]


def test_expanded_tensors_have_a_norm(any_tensor_backend: str | None) -> None:
    expanded = gradient(5, torch.float32).expand(3, 5)
    norm = fastclip.get_total_norm([expanded], backend=any_tensor_backend)
    assert oracle.is_norm(norm.item(), oracle.total_norm([expanded], 2.0), torch.float32)


def test_gradients_that_require_grad_are_clipped(backend: str | None) -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    [grad] = torch.autograd.grad((x**3).sum() / 3, [x], create_graph=True)
    assert grad.requires_grad
    x.grad = grad
    norm = fastclip.clip_grad_norm_([x], 1.0, backend=backend)
    assert not norm.requires_grad
    assert oracle.is_norm(norm.item(), math.hypot(9, 16), torch.float32)
    assert x.grad is grad
    assert oracle.is_norm(grad.detach().norm().item(), 1.0, torch.float32)
    fastclip.clip_grad_value_([x], 0.1, backend=backend)
    assert grad.max().item() == np.float32(0.1)
    assert not fastclip.get_total_norm([grad], backend=backend).requires_grad


@pytest.mark.parametrize("max_norm", (0.1, 5e4))
def test_version_of_every_gradient_is_bumped(backend: str | None, max_norm: float) -> None:
    grads = [gradient(size, dtype) for size, dtype in itertools.product((0, 1, 500), FLOAT_DTYPES)]
    calls: list[Callable[[list[Tensor]], object]] = [
        lambda held: fastclip.clip_grad_norm_(held, max_norm, backend=backend),
        lambda held: fastclip.clip_grads_with_norm_(
            held, max_norm, torch.tensor(9.0, dtype=torch.float64), backend=backend
        ),
        lambda held: fastclip.clip_grad_value_(held, max_norm, backend=backend),
    ]
    for call in calls:
        before = versions(grads)
        call(parameters(grads))
        assert all(now > then for now, then in zip(versions(grads), before, strict=True))


def test_bumped_version_is_seen_by_a_saved_graph(backend: str | None) -> None:
    weight = torch.ones(2, requires_grad=True)
    grad = torch.full((2,), 0.25)
    held = parameter(grad)
    loss = (weight * grad).sum()  # saves grad for backward
    fastclip.clip_grad_norm_([held], 1e9, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("max_norm", (-1.0, -0.0, 0.0, math.inf, -math.inf, math.nan, 1e-30))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_special_max_norms_act_as_in_torch(
    backend: str | None, dtype: torch.dtype, max_norm: float
) -> None:
    grads = [gradient(50, dtype, 1), gradient(33, dtype, 2)]
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(ours, max_norm, backend=backend)
    stock.clip_grads_with_norm_(theirs, max_norm, norm)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True, rtol=0, atol=0)
    if max_norm == math.inf:
        assert all(torch.equal(p.grad, g) for p, g in zip(ours, grads, strict=True))  # pyright: ignore
