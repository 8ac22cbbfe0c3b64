"""Calls that find no gradient: what they return, and when they warn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from samples import gradient, parameter, parameters
from torch import Tensor, nn
from torch.nn import utils as stock

import fastclip
from fastclip import GradClipper

Writer = Callable[[object], object]


def writers(backend: str | None) -> list[Writer]:
    """Return the functions that write, each with its other arguments."""
    norm = torch.tensor(1.0)
    return [
        lambda held: fastclip.clip_grad_norm_(held, 1.0, backend=backend),  # pyright: ignore
        lambda held: fastclip.clip_grads_with_norm_(held, 1.0, norm, backend=backend),  # pyright: ignore
        lambda held: fastclip.clip_grad_value_(held, 1.0, backend=backend),  # pyright: ignore
    ]


def warnings_of(call: Callable[[], object]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    # The interpreter of triton 3.6 uses what NumPy deprecates.
    return [w for w in caught if not issubclass(w.category, DeprecationWarning)]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("count", (0, 3))
def test_the_norm_of_nothing_follows_torchs_defaults(backend: str | None, count: int) -> None:
    held = parameters([None] * count)
    clipper = GradClipper(parameters([None]), 1.0, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        clipper.clip_()
    calls: list[Callable[[], Tensor]] = [
        lambda: fastclip.clip_grad_norm_(held, 1.0, backend=backend),
        lambda: fastclip.get_total_norm([], backend=backend),
        clipper.clip_,
    ]
    for call in calls:
        with torch.device("meta"):
            assert (call().device, call().shape) == (torch.tensor(0.0).device, ())
        with default_dtype(torch.float64):
            assert call().dtype == torch.tensor(0.0).dtype == torch.float64
        norm = call()
        assert (norm.item(), norm.dtype, norm.device.type) == (0.0, torch.float32, "cpu")
    with default_dtype(torch.float64):
        wanted = fastclip.get_total_norm([], dtype=torch.float32, backend=backend)
    assert wanted.dtype == torch.float32


def test_norms_of_gradients_do_not_follow_the_default_dtype(backend: str | None) -> None:
    held = parameters([gradient(5, torch.float32)])
    with default_dtype(torch.float64):
        assert fastclip.clip_grad_norm_(held, 1.0, backend=backend).dtype == torch.float32


def test_gradients_in_place_of_parameters_warn(backend: str | None) -> None:
    for writer in writers(backend):
        grads = [gradient(3, torch.float32), gradient((2, 2), torch.float32)]
        before = [grad.clone() for grad in grads]
        caught = warnings_of(lambda: writer(grads))  # noqa: B023 - called in this round
        assert [(w.category, w.filename) for w in caught] == [(UserWarning, __file__)]
        assert "nothing was clipped" in str(caught[0].message)
        assert "(got 2 without a `.grad`" in str(caught[0].message)
        for grad, old in zip(grads, before, strict=True):
            assert torch.equal(grad, old)


def test_an_exhausted_generator_warns(backend: str | None) -> None:
    for writer in writers(backend):
        held = (p for p in parameters([gradient(3, torch.float32)]))
        assert warnings_of(lambda: writer(held)) == []  # noqa: B023
        caught = warnings_of(lambda: writer(held))  # noqa: B023
        assert [(w.category, w.filename) for w in caught] == [(UserWarning, __file__)]
        assert str(caught[0].message) == (
            "`parameters` is an empty generator, no gradient clipping will occur."
        )
    empty = (t for t in ())
    assert warnings_of(lambda: fastclip.get_total_norm(empty, backend=backend)) == []


def test_frozen_and_unused_parameters_do_not_warn(backend: str | None) -> None:
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    unused = parameter(None)
    gradients = [gradient(3, torch.float32)]
    for writer in writers(backend):
        for held in ([], [frozen], [unused], [*gradients, frozen], [*gradients, unused]):
            assert warnings_of(lambda: writer(held)) == []  # noqa: B023
        used = parameters([gradient(3, torch.float32)])
        assert warnings_of(lambda: writer([*gradients, *used])) == []  # noqa: B023


def test_a_clipper_of_replaced_parameters_warns_once(backend: str | None) -> None:
    model = nn.Linear(3, 2)
    clipper = GradClipper(model.named_parameters(), 1.0, backend=backend)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model(torch.ones(2, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    caught = warnings_of(clipper.clip_)
    assert [(w.category, w.filename) for w in caught] == [(RuntimeWarning, __file__)]
    assert "none of its 2 parameters has a gradient" in str(caught[0].message)
    assert "make a new one" in str(caught[0].message)
    assert warnings_of(clipper.clip_) == []
    assert clipper.parameter_norms.tolist() == [0.0, 0.0]
    other = GradClipper(model.named_parameters(), 1.0, backend=backend)
    assert warnings_of(other.clip_) == []
    model.zero_grad(set_to_none=True)
    assert len(warnings_of(other.clip_)) == 1
    assert len(warnings_of(GradClipper(model.parameters(), 1.0, backend=backend).clip_)) == 1
    assert warnings_of(GradClipper([], 1.0, backend=backend).clip_) == []


def test_numbers_may_be_tensors_that_require_grad(backend: str | None) -> None:
    def number(value: float) -> Tensor:
        return torch.tensor(value, requires_grad=True)

    [ours], [theirs] = (parameters([torch.tensor([3.0, -4.0])]) for _ in range(2))
    norm = fastclip.clip_grad_norm_(ours, number(2.5), number(1.0), backend=backend)  # pyright: ignore
    assert norm.item() == stock.clip_grad_norm_(theirs, 2.5, 1.0).item() == 7.0
    assert fastclip.get_total_norm([norm], number(2.0), backend=backend).item() == 7.0  # pyright: ignore
    assert torch.equal(ours.grad, theirs.grad)  # pyright: ignore
    fastclip.clip_grads_with_norm_(ours, number(3.5), norm.detach(), backend=backend)
    fastclip.clip_grad_value_(ours, number(0.25), backend=backend)  # pyright: ignore
    assert ours.grad is not None
    assert ours.grad.tolist() == [0.25, -0.25]
    clipper = GradClipper([ours], number(0.1), number(1.0), backend=backend)  # pyright: ignore
    assert clipper.clip_().item() == 0.5
    clipper.norm_type = number(2.0)  # pyright: ignore
    assert clipper.clip_().item() == pytest.approx(0.1 / 2**0.5, rel=1e-5)  # 1e-6 is added
