"""Where the public functions differ from torch on purpose."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from samples import (
    assert_scaled,
    copies,
    gradient,
    parameter,
    parameters,
    versions,
)
from torch import Tensor
from torch.nn import utils as stock

import fastclip

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
QUIET_NAN_ONLY = 0x7F800001
"""A signalling NaN's bits: any multiplication, even by 1, changes them."""


def written(grad: Tensor) -> bool:
    """Return whether anything wrote to a gradient whose first element is a signalling NaN."""
    return grad.view(torch.int32)[0].item() != QUIET_NAN_ONLY


def unwritten_gradient() -> Tensor:
    grad = torch.ones(70_000)
    grad.view(torch.int32)[0] = QUIET_NAN_ONLY
    return grad


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_sixteen_bit_gradients_have_a_float32_norm(backend: str | None, dtype: torch.dtype) -> None:
    grads = [gradient(1_000_000, dtype)]
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, 1.0, backend=backend)
    assert norm.dtype == torch.float32
    assert oracle.is_norm(norm.item(), oracle.total_norm(grads, 2.0), torch.float32)
    assert_scaled(held, grads, 1.0, norm)


def test_dtype_chooses_the_norms_dtype(backend: str | None) -> None:
    grads = [gradient(1000, torch.bfloat16), gradient(100, torch.float32)]
    for dtype in (torch.float32, torch.float64):
        norm = fastclip.get_total_norm(grads, dtype=dtype, backend=backend)
        assert norm.dtype == dtype
        assert oracle.is_norm(norm.item(), oracle.total_norm(grads, 2.0), dtype)
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.complex64):
        with pytest.raises(ValueError, match="dtype must be"):
            fastclip.get_total_norm(grads, dtype=dtype, backend=backend)


def test_float16_norm_does_not_overflow(backend: str | None) -> None:
    grads = [torch.full((1_000_000,), 100.0, dtype=torch.float16)]
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, 1e4, backend=backend)
    assert norm.item() == 1e5
    assert_scaled(held, grads, 1e4, norm)


@pytest.mark.parametrize("norm_type", (1.0, 2.0, math.inf))
@pytest.mark.parametrize("value", (1e20, 3e30, 1e-25, 1e-38, 1e-44))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_no_finite_norm_overflows_or_vanishes(
    backend: str | None, dtype: torch.dtype, value: float, norm_type: float
) -> None:
    grads = [gradient(40_000, torch.float64).mul_(value).to(dtype), torch.zeros(9, dtype=dtype)]
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, 1.0, norm_type, backend=backend)
    assert oracle.is_norm(norm.item(), oracle.total_norm(grads, norm_type), torch.float32)
    assert_scaled(held, grads, 1.0, norm)


def test_nothing_is_written_when_nothing_is_clipped(backend: str | None) -> None:
    grad = unwritten_gradient()
    norm = torch.tensor(1.0)
    for max_norm in (2.0, math.inf):
        before = versions([grad])
        fastclip.clip_grads_with_norm_([parameter(grad)], max_norm, norm, backend=backend)
        assert not written(grad)
        assert versions([grad]) > before
    fastclip.clip_grads_with_norm_([parameter(grad)], 0.999, norm, backend=backend)
    assert written(grad)


def test_nan_coefficient_writes(backend: str | None) -> None:
    grad = torch.ones(3)
    fastclip.clip_grads_with_norm_([parameter(grad)], 1.0, torch.tensor(math.nan), backend=backend)
    assert grad.isnan().all()


def test_shared_gradient_is_counted_and_scaled_once(backend: str | None) -> None:
    grad = gradient((8, 5), torch.float32)
    shared = grad.clone()
    twice = parameter(shared)
    held = [twice, parameter(shared.view(8, 5)), twice, parameter(torch.ones(3))]
    norm = fastclip.clip_grad_norm_(held, 1.0, backend=backend)
    expected = oracle.total_norm([grad, torch.ones(3)], 2.0)
    assert oracle.is_norm(norm.item(), expected, torch.float32)
    coef = oracle.clip_coef(1.0, norm)
    assert oracle.equal(shared, oracle.scaled(grad, coef))
    once = copies([shared])[0]
    fastclip.clip_grads_with_norm_(held, 0.25, torch.tensor(1.0), backend=backend)
    assert oracle.equal(shared, oracle.scaled(once, oracle.clip_coef(0.25, torch.tensor(1.0))))


def test_total_norm_counts_every_tensor_it_is_given(backend: str | None) -> None:
    grad = torch.tensor([3.0, 4.0])
    norm = fastclip.get_total_norm([grad] * 4, backend=backend)
    assert norm.item() == 10
    assert norm.item() == stock.get_total_norm([grad] * 4).item()


def test_gradients_that_overlap_in_part_are_scaled_one_after_another(
    any_tensor_backend: str | None,
) -> None:
    ours, theirs = torch.arange(1.0, 7), torch.arange(1.0, 7)
    norm = torch.tensor(2.0)
    fastclip.clip_grads_with_norm_(
        [parameter(ours[:4]), parameter(ours[2:])], 1.0, norm, backend=any_tensor_backend
    )
    stock.clip_grads_with_norm_([parameter(theirs[:4]), parameter(theirs[2:])], 1.0, norm)
    torch.testing.assert_close(ours, theirs)


def test_nonfinite_error_lists_ten_gradients_and_counts_the_rest(backend: str | None) -> None:
    held = parameters([torch.full((2,), math.nan) for _ in range(13)])
    with pytest.raises(RuntimeError) as error:
        fastclip.clip_grad_norm_(held, 1.0, error_if_nonfinite=True, backend=backend)
    listed = ", ".join(f"{i} (2,)" for i in range(10))
    assert str(error.value).endswith(f"; non-finite gradients: {listed} and 3 more")


def test_overflowing_norm_of_finite_gradients_says_so(backend: str | None) -> None:
    held = parameters([torch.full((100,), 3e38)])
    with pytest.raises(RuntimeError, match="every gradient is finite"):
        fastclip.clip_grad_norm_(held, 1.0, error_if_nonfinite=True, backend=backend)
    assert held[0].grad is not None
    assert held[0].grad[0].item() > 1e38


def test_inf_norm_of_a_list_with_an_empty_tensor(backend: str | None) -> None:
    grads = [torch.empty(0), torch.tensor([-3.0])]
    with pytest.raises(RuntimeError, match="empty"):
        stock.get_total_norm(grads, math.inf)
    assert fastclip.get_total_norm(grads, math.inf, backend=backend).item() == 3


@pytest.mark.parametrize("value", (0.1, -0.7))
@pytest.mark.parametrize("norm_type", (1.0, 2.0))
def test_norm_does_not_drift_on_constants(
    backend: str | None, norm_type: float, value: float
) -> None:
    grad = torch.full((1_000_019 if backend == "triton" else 10_000_019,), value)  # interpreted
    norm = fastclip.get_total_norm([grad], norm_type, backend=backend)
    expected = abs(grad[0].item()) * grad.numel() ** (1 / norm_type)
    assert oracle.is_norm(norm.item(), expected, torch.float32)


def test_norm_does_not_drift_over_many_tensors(backend: str | None) -> None:
    step = 40 if backend == "triton" else 2  # interpreted
    grads = [gradient(size, torch.float32, size) for size in range(1, 4000, step)]
    norm = fastclip.get_total_norm(grads, backend=backend)
    assert oracle.is_norm(norm.item(), oracle.total_norm(grads, 2.0), torch.float32)
