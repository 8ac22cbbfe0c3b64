"""The mirror of torch.nn.utils.clip_grad: signatures, backends, foreach."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import oracle
import pytest
import torch
from samples import (
    awkward_gradients,
    copies,
    gradient,
    parameters,
)
from torch import Tensor
from torch.nn import utils as stock

import fastclip

NAMES = (
    "clip_grad_norm_",
    "get_total_norm",
    "clip_grads_with_norm_",
    "clip_grad_value_",
    "clip_grad_norm",
)
EXTRAS = {"get_total_norm": ["dtype", "backend"]}


def some_gradients() -> list[Tensor]:
    return [gradient((3, 5), torch.float32, 1), gradient(40, torch.float32, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_signature_starts_as_torchs(name: str) -> None:
    ours = list(inspect.signature(getattr(fastclip, name)).parameters.values())
    theirs = list(inspect.signature(getattr(stock, name)).parameters.values())
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in ours[: len(theirs)])
    extras = ours[len(theirs) :]
    assert [p.name for p in extras] == EXTRAS.get(name, ["backend"])
    assert all(p.kind is p.KEYWORD_ONLY and p.default is None for p in extras)


def test_arguments_may_be_positional_or_named(backend: str | None) -> None:
    held = parameters(some_gradients())
    norm = fastclip.clip_grad_norm_(held, 1.0, 2.0, False, None, backend=backend)
    again = fastclip.clip_grad_norm_(
        parameters=parameters(some_gradients()),
        max_norm=1.0,
        norm_type=2.0,
        error_if_nonfinite=False,
        foreach=None,
        backend=backend,
    )
    assert torch.equal(norm, again)
    tensors = some_gradients()
    assert torch.equal(fastclip.get_total_norm(tensors, 2.0, False, None, backend=backend), norm)
    fastclip.clip_grads_with_norm_(held, 1.0, norm, None, backend=backend)
    fastclip.clip_grad_value_(held, 1.0, None, backend=backend)


def test_deprecated_name_warns_as_torchs_and_clips(backend: str | None) -> None:
    ours, theirs = parameters(some_gradients()), parameters(some_gradients())
    with pytest.warns(FutureWarning, match="clip_grad_norm_"):
        norm = fastclip.clip_grad_norm(ours, 1.0, backend=backend)
    with pytest.warns(FutureWarning):
        expected = stock.clip_grad_norm(theirs, 1.0)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_deprecated_name_warns_at_the_callers_line() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastclip.clip_grad_norm(parameters(some_gradients()), 1.0)
    assert [w.filename for w in caught] == [__file__]


def test_unknown_backend_is_a_value_error() -> None:
    with pytest.raises(
        ValueError, match=r"backend must be one of native, triton, reference or None"
    ):
        fastclip.clip_grad_norm_(parameters(some_gradients()), 1.0, backend="cuda")


def test_foreach_false_contradicts_another_backend() -> None:
    held = parameters(some_gradients())
    with pytest.raises(ValueError, match="foreach=False"):
        fastclip.clip_grad_norm_(held, 1.0, foreach=False, backend="native")
    fastclip.clip_grad_norm_(held, 1.0, foreach=False, backend="reference")


@pytest.mark.parametrize("foreach", (True, False))
def test_foreach_gives_the_same_result(foreach: bool) -> None:
    grads = awkward_gradients(torch.float32)
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, 1.0, foreach=foreach)
    assert oracle.is_norm(norm.item(), oracle.total_norm(grads, 2.0), torch.float32)
    coef = oracle.clip_coef(1.0, norm)
    for p, grad in zip(held, grads, strict=True):
        assert p.grad is not None
        assert oracle.equal(p.grad, oracle.scaled(grad, coef))
    fastclip.clip_grads_with_norm_(held, 0.5, torch.tensor(1.0), foreach=foreach)
    fastclip.clip_grad_value_(held, 1e-3, foreach=foreach)
    assert max(p.grad.abs().max().item() for p in held if p.grad.numel()) <= np.float32(1e-3)  # pyright: ignore


def test_foreach_true_on_a_device_without_it_raises_torchs_error() -> None:
    def on_meta() -> list[Tensor]:
        return parameters([torch.ones(3, device="meta")])

    for name in ("clip_grad_norm_", "clip_grad_value_"):
        with pytest.raises(RuntimeError) as theirs:
            getattr(stock, name)(on_meta(), 1.0, foreach=True)
        with pytest.raises(RuntimeError) as ours:
            getattr(fastclip, name)(on_meta(), 1.0, foreach=True)
        assert str(ours.value) == str(theirs.value)
