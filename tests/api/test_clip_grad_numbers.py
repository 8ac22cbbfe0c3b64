"""What the public functions compute: the oracle's values, torch's behaviour and errors."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from samples import (
    FLOAT_DTYPES,
    assert_scaled,
    copies,
    dense_gradients,
    gradient,
    parameters,
)
from torch import Tensor
from torch.nn import utils as stock

import fastclip


@pytest.mark.parametrize("max_norm", (0.5, 1e9))
@pytest.mark.parametrize("norm_type", (2.0, 1.0, math.inf, 3.0, 0.5))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_clip_returns_the_norm_before_and_scales_by_the_coefficient(
    backend: str | None, dtype: torch.dtype, norm_type: float, max_norm: float
) -> None:
    grads = dense_gradients(dtype)
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, max_norm, norm_type, backend=backend)
    expected_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert (norm.dtype, norm.dim(), norm.requires_grad) == (expected_dtype, 0, False)
    assert oracle.is_norm(norm.item(), oracle.total_norm(grads, norm_type), norm.dtype)
    assert_scaled(held, grads, max_norm, norm)
    again = fastclip.get_total_norm(grads, norm_type, backend=backend)
    assert torch.equal(norm, again)
    split = parameters(copies(grads))
    fastclip.clip_grads_with_norm_(split, max_norm, again, backend=backend)
    assert_scaled(split, grads, max_norm, norm)


@pytest.mark.parametrize("max_norm", (0.1, 1.0, 1 / 3, 7e-5))
def test_coefficient_is_a_reciprocal_times_max_norm_as_in_torch(
    backend: str | None, max_norm: float
) -> None:
    for value in (0.3, 1.7, 12.34567, 9.87e6):
        norm = torch.tensor(value)
        ours, theirs = (parameters([gradient(1000, torch.float32)]) for _ in range(2))
        fastclip.clip_grads_with_norm_(ours, max_norm, norm, backend=backend)
        stock.clip_grads_with_norm_(theirs, max_norm, norm)
        torch.testing.assert_close(ours[0].grad, theirs[0].grad, rtol=0, atol=0)


def test_mixed_dtypes_take_float64_only_for_float64(backend: str | None) -> None:
    narrow = [g for dtype in FLOAT_DTYPES[:3] for g in dense_gradients(dtype)]
    wide = [*narrow, gradient(77, torch.float64)]
    for grads, dtype in ((narrow, torch.float32), (wide, torch.float64)):
        held = parameters(copies(grads))
        norm = fastclip.clip_grad_norm_(held, 1.0, backend=backend)
        assert norm.dtype == dtype
        assert oracle.is_norm(norm.item(), oracle.total_norm(grads, 2.0), dtype)
        assert_scaled(held, grads, 1.0, norm)


@pytest.mark.parametrize("norm_type", (0.0, -1.0, -2.5, -math.inf, math.nan))
def test_unusual_norm_types_act_as_in_torch(
    any_tensor_backend: str | None, norm_type: float
) -> None:
    grads = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0]), torch.zeros(1)]
    for tensors in (grads, grads[:2]):
        ours, theirs = parameters(copies(tensors)), parameters(copies(tensors))
        norm = fastclip.clip_grad_norm_(ours, 0.5, norm_type, backend=any_tensor_backend)
        torch.testing.assert_close(
            norm, stock.clip_grad_norm_(theirs, 0.5, norm_type), equal_nan=True
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, equal_nan=True)


def test_norm_zero_counts_tensors_that_hold_something(any_tensor_backend: str | None) -> None:
    grads = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0])]
    assert fastclip.get_total_norm(grads, 0, backend=any_tensor_backend).item() == 2


@pytest.mark.parametrize("norm_type", (2.0, 3.5))
def test_float64_overflows_as_in_torch(backend: str | None, norm_type: float) -> None:
    grads = [torch.full((2,), 2e200, dtype=torch.float64)]
    assert stock.get_total_norm(grads, norm_type).isinf()
    assert not fastclip.get_total_norm(grads, norm_type, backend=backend).isfinite()
    with pytest.raises(RuntimeError, match="is non-finite"):
        fastclip.get_total_norm(grads, norm_type, error_if_nonfinite=True, backend=backend)


@pytest.mark.parametrize("norm_type", (1.0, 2.0, 3.5, math.inf))
def test_zero_size_gradient_adds_nothing(backend: str | None, norm_type: float) -> None:
    grads = [torch.empty(0), torch.tensor([3.0, 4.0]), torch.empty(3, 0, 2)]
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, 1.0, norm_type, backend=backend)
    assert oracle.is_norm(norm.item(), oracle.total_norm(grads, norm_type), torch.float32)
    assert_scaled(held, grads, 1.0, norm)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("norm_type", (1.0, 2.0, math.inf))
def test_nothing_but_empty_gradients_has_norm_zero(
    backend: str | None, norm_type: float, dtype: torch.dtype
) -> None:
    held = parameters([torch.empty(0, dtype=dtype), torch.empty(0, 5, dtype=dtype)])
    norm = fastclip.clip_grad_norm_(held, 1.0, norm_type, error_if_nonfinite=True, backend=backend)
    assert norm.item() == 0
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("norm_type", (1.0, 2.0, math.inf, 3.0))
@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_nonfinite_norm_scales_as_in_torch(
    backend: str | None, dtype: torch.dtype, value: float, norm_type: float
) -> None:
    grads = [gradient(100, dtype), gradient(9, dtype)]
    grads[1][4] = value
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, 1.0, norm_type, backend=backend).item()
    assert math.isnan(norm) if math.isnan(value) else norm == math.inf
    for p, grad in zip(held, grads, strict=True):
        assert p.grad is not None
        if math.isnan(value):
            assert p.grad.isnan().all()
        else:
            assert p.grad[grad.isinf()].isnan().all()
            assert not p.grad[grad.isfinite()].any()


@pytest.mark.parametrize(("norm_type", "shown"), [(2, "2.0"), ("inf", "inf"), (1.5, "1.5")])
@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_error_if_nonfinite_raises_before_any_write(
    backend: str | None, value: float, norm_type: float, shown: str
) -> None:
    grads = [torch.full((3,), 5.0), torch.ones(2, 2), torch.full((4,), 5.0)]
    grads[1][0, 1] = value
    with pytest.raises(RuntimeError) as theirs:
        stock.clip_grad_norm_(parameters(copies(grads)), 1.0, norm_type, error_if_nonfinite=True)
    assert f"order {shown} " in str(theirs.value)
    held = parameters([grads[0], None, grads[1], grads[2]])
    with pytest.raises(RuntimeError) as ours:
        fastclip.clip_grad_norm_(held, 1.0, norm_type, error_if_nonfinite=True, backend=backend)
    assert str(ours.value) == f"{theirs.value}; non-finite gradients: 2 (2, 2)"
    assert grads[0].tolist() == [5, 5, 5]
    assert grads[2].tolist() == [5, 5, 5, 5]
    with pytest.raises(RuntimeError) as of_norm:
        fastclip.get_total_norm(grads, norm_type, error_if_nonfinite=True, backend=backend)
    assert str(of_norm.value) == f"{theirs.value}; non-finite gradients: 1 (2, 2)"


def test_error_if_nonfinite_leaves_finite_norms_alone(backend: str | None) -> None:
    held = parameters([gradient(100, torch.float32)])
    norm = fastclip.clip_grad_norm_(held, 1.0, error_if_nonfinite=True, backend=backend)
    assert norm.isfinite()


@pytest.mark.parametrize("clip_value", (0.3, 0.0, -1.0, 1000.0, math.inf, math.nan))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_clip_value_acts_as_in_torch(
    backend: str | None, dtype: torch.dtype, clip_value: float
) -> None:
    if backend in ("native", "triton") and not clip_value >= 0:
        with pytest.raises(RuntimeError, match="clip_value must not be negative or nan"):
            fastclip.clip_grad_value_(parameters([torch.ones(3)]), clip_value, backend=backend)
        return
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 3.0], dtype=dtype)
    grads = [*dense_gradients(dtype), special]
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    fastclip.clip_grad_value_(ours, clip_value, backend=backend)
    stock.clip_grad_value_(theirs, clip_value)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)
    if not math.isnan(clip_value):
        for p, grad in zip(ours, grads, strict=True):
            assert p.grad is not None
            # Which of two zeros a clamp to 0 leaves depends on the vectors, in torch as well.
            expected = oracle.clamped(grad, clip_value)
            assert oracle.equal(p.grad, expected, any_zero=clip_value == 0)


def test_clip_value_of_an_empty_list_returns_none(backend: str | None) -> None:
    with pytest.raises(RuntimeError):
        stock.clip_grad_value_([], 1.0)
    assert fastclip.clip_grad_value_([], 1.0, backend=backend) is None
    assert fastclip.clip_grad_value_(parameters([None]), 1.0, backend=backend) is None


def test_clip_value_that_the_dtype_cannot_hold_raises_before_any_write(
    any_tensor_backend: str | None,
) -> None:
    held = parameters([torch.full((2,), 9e9), torch.ones(2, dtype=torch.float16)])
    with pytest.raises(RuntimeError) as theirs:
        stock.clip_grad_value_(held[1:], 1e6)
    with pytest.raises(RuntimeError) as ours:
        fastclip.clip_grad_value_(held, 1e6, backend=any_tensor_backend)
    assert str(ours.value) == str(theirs.value)
    assert held[0].grad is not None
    assert held[0].grad.max().item() > 8e9


@pytest.mark.parametrize("dtype", (torch.int64, torch.bool))
def test_integer_tensors_raise_torchs_error(
    any_tensor_backend: str | None, dtype: torch.dtype
) -> None:
    for tensors in ([torch.ones(3, dtype=dtype)], [torch.ones(2), torch.ones(3, dtype=dtype)]):
        with pytest.raises(RuntimeError) as theirs:
            stock.get_total_norm(tensors)
        with pytest.raises(RuntimeError) as ours:
            fastclip.get_total_norm(tensors, backend=any_tensor_backend)
        assert str(ours.value) == str(theirs.value)
        assert "linalg.vector_norm: Expected a floating point or complex tensor" in str(ours.value)


def test_norm_that_is_a_float_raises_type_error(backend: str | None) -> None:
    held = parameters([torch.full((3,), 5.0)])
    norm: object = 2.0
    with pytest.raises(TypeError):
        stock.clip_grads_with_norm_(held, 1.0, norm)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        fastclip.clip_grads_with_norm_(held, 1.0, norm, backend=backend)  # pyright: ignore
    assert held[0].grad is not None
    assert held[0].grad.tolist() == [5, 5, 5]


@pytest.mark.parametrize("norm", (torch.tensor([9.0]), torch.tensor([9.0, 9.0])))
def test_norm_with_a_dimension_raises_torchs_error(backend: str | None, norm: Tensor) -> None:
    held = parameters([torch.full((2,), 5.0)])
    with pytest.raises(RuntimeError) as theirs:
        stock.clip_grads_with_norm_(held, 1.0, norm)
    with pytest.raises(RuntimeError) as ours:
        fastclip.clip_grads_with_norm_(held, 1.0, norm, backend=backend)
    assert str(ours.value) == str(theirs.value)
    assert held[0].grad is not None
    assert held[0].grad.tolist() == [5, 5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_norm_of_any_dtype_is_taken(any_tensor_backend: str | None, dtype: torch.dtype) -> None:
    grad = gradient(99, torch.float32)
    held = parameters([grad.clone()])
    norm = torch.tensor(8).to(dtype)
    fastclip.clip_grads_with_norm_(held, 1.0, norm, backend=any_tensor_backend)
    wide = norm if dtype == torch.float64 else norm.float()
    assert_scaled(held, [grad], 1.0, wide)
