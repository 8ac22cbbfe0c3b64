"""The reference backend's norms against the oracle, and against torch where torch is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
from reference_calls import (
    REFERENCE,
    clamp_,
    positions_of_nonfinite,
    scale_,
    tensor_norms,
    total_norm,
)
from samples import FLOAT_DTYPES, awkward_gradients, copies, gradient, versions
from torch import Tensor

import fastclip
from fastclip.backends.request import Kind, clip_request
from fastclip.backends.tensors import check_foreach

ALL_NORM_TYPES = (2.0, 1.0, math.inf, 3.5, 0.5, 0.0, -1.0, -2.5, -math.inf, math.nan)
SUMMED_NORM_TYPES = (2.0, 1.0, math.inf, 3.5)


@pytest.fixture(autouse=True)
def _without_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_norm(actual: Tensor, tensors: list[Tensor], norm_type: float) -> None:
    expected = oracle.total_norm(tensors, norm_type)
    value = actual.item()
    assert actual.dim() == 0
    assert oracle.is_norm(value, expected, actual.dtype), (value, expected, norm_type)


@pytest.mark.parametrize("norm_type", ALL_NORM_TYPES)
@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, torch.complex64, torch.complex128])
def test_total_norm_of_awkward_shapes(dtype: torch.dtype, norm_type: float) -> None:
    grads = awkward_gradients(dtype)
    assert_norm(total_norm(grads, norm_type), grads, norm_type)
    assert_norm(total_norm(grads, norm_type, foreach=False), grads, norm_type)


@pytest.mark.parametrize("norm_type", (1.0, 2.0, math.inf))
@pytest.mark.parametrize("kind", ("normal", "one_signed", "growing"))
def test_norm_does_not_drift_over_ten_million_elements(kind: str, norm_type: float) -> None:
    grad = gradient(10_000_019, torch.float32)
    if kind == "one_signed":
        grad.abs_().add_(1)
    elif kind == "growing":
        grad = torch.linspace(0, 3, 10_000_019)
    assert_norm(total_norm([grad], norm_type), [grad], norm_type)


@pytest.mark.parametrize("norm_type", (1.0, 2.0))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("value", (0.1, 0.7, 1 / 3, -0.001))
def test_norm_does_not_drift_on_constants(
    value: float, dtype: torch.dtype, norm_type: float
) -> None:
    grad = torch.full((10_000_019,), value, dtype=dtype)
    expected = abs(grad[0].item()) * grad.numel() ** (1 / norm_type)
    actual = total_norm([grad], norm_type)
    assert oracle.is_norm(actual.item(), expected, actual.dtype)


@pytest.mark.parametrize("norm_type", (1.0, 2.0, math.inf))
@pytest.mark.parametrize("size", (1, 33, 70_000, 300_000))
@pytest.mark.parametrize("scale", (1e20, 1e38, 1e-25, 1e-38, 1e-44))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_norm_is_exact_over_the_whole_finite_range(
    dtype: torch.dtype, scale: float, size: int, norm_type: float
) -> None:
    grad = (gradient(size, torch.float64).clamp(-3, 3) * scale).to(dtype)
    assert_norm(total_norm([grad], norm_type), [grad], norm_type)


def test_tiny_and_huge_values_in_one_list() -> None:
    grads = [torch.full((1000,), 1e-30), torch.full((100,), 2e25), torch.zeros(50)]
    assert_norm(total_norm(grads, 2.0), grads, 2.0)
    assert_norm(total_norm(grads[:1] + grads[2:], 2.0), grads[:1] + grads[2:], 2.0)


def test_float16_norm_beyond_float16() -> None:
    grads = [torch.full((1_000_000,), 100.0, dtype=torch.float16)]
    assert total_norm(grads, 2.0).item() == 1e5


def test_norm_beyond_float32_is_inf_and_fits_float64() -> None:
    grads = [torch.full((100,), 3e38)]
    assert total_norm(grads, 2.0).item() == math.inf
    wide = total_norm(grads, 2.0, dtype=torch.float64)
    assert wide.dtype == torch.float64
    assert_norm(wide, grads, 2.0)


@pytest.mark.parametrize("norm_type", (2.0, 3.5))
def test_float64_overflows_as_in_torch(norm_type: float) -> None:
    grads = [torch.full((3,), 2e200, dtype=torch.float64)]
    assert torch.nn.utils.get_total_norm(grads, norm_type).item() == math.inf
    assert total_norm(grads, norm_type).item() == math.inf


@pytest.mark.parametrize("norm_type", (2.0, 1.0, math.inf, 3.5))
@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_nan_and_inf_reach_the_norm(dtype: torch.dtype, value: float, norm_type: float) -> None:
    for position in (0, 40_000, 199_999):
        grad = torch.ones(200_000, dtype=dtype)
        grad[position] = value
        actual = total_norm([torch.ones(3, dtype=dtype), grad], norm_type).item()
        assert math.isnan(actual) if math.isnan(value) else actual == math.inf


@pytest.mark.parametrize("norm_type", (0.0, -1.0, -math.inf, 0.5, 3.0))
def test_unusual_norm_types_are_two_level_as_in_torch(norm_type: float) -> None:
    grads = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0]), torch.tensor([[0.5]])]
    expected = torch.nn.utils.get_total_norm(grads, norm_type)
    torch.testing.assert_close(total_norm(grads, norm_type), expected)


def test_norm_zero_counts_nonzero_tensors() -> None:
    grads = [torch.tensor([1.0, 2.0, 3.0]), torch.zeros(4), torch.tensor([4.0, 5.0])]
    assert total_norm(grads, 0.0).item() == 2


def test_norm_zero_counts_beyond_float32() -> None:
    [norm] = tensor_norms([torch.ones(2**24 + 3, dtype=torch.bfloat16)], 0.0)
    assert norm.item() == 2**24 + 3  # a float32 count stops at 2^24


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float16,), torch.float32),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.float32, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float64), torch.float64),
        ((torch.complex64, torch.float16), torch.float32),
        pytest.param(
            (torch.complex32,),
            torch.float32,
            marks=pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
        ),
        ((torch.float32, torch.complex128), torch.float64),
    ],
)
def test_norm_dtype_is_float32_unless_something_is_float64(
    dtypes: tuple[torch.dtype, ...], expected: torch.dtype
) -> None:
    grads = [gradient(100, dtype) for dtype in dtypes]
    actual = total_norm(grads, 2.0)
    assert actual.dtype == expected
    assert_norm(actual, grads, 2.0)


def test_dtype_argument_chooses_the_result() -> None:
    grads = [gradient(1000, torch.bfloat16), gradient(1000, torch.float64)]
    for dtype in (torch.float32, torch.float64):
        actual = total_norm(grads, 2.0, dtype=dtype)
        assert actual.dtype == dtype
        assert_norm(actual, grads, 2.0)
        assert fastclip.get_total_norm([], dtype=dtype, backend="reference").dtype == dtype


def test_mixed_dtypes_in_one_list() -> None:
    grads = [grad for dtype in FLOAT_DTYPES for grad in awkward_gradients(dtype)]
    grads.append(gradient(50, torch.complex64))
    for norm_type in SUMMED_NORM_TYPES:
        assert_norm(total_norm(grads, norm_type), grads, norm_type)


@pytest.mark.parametrize("norm_type", ALL_NORM_TYPES)
def test_empty_tensors_add_nothing(norm_type: float) -> None:
    empty = torch.empty(0, 3)
    assert total_norm([empty, empty], norm_type).item() == 0
    assert fastclip.get_total_norm([], norm_type, backend="reference").item() == 0
    grads = [empty, torch.tensor([3.0, 4.0]), empty]
    actual = total_norm(grads, norm_type)
    torch.testing.assert_close(
        actual, total_norm(grads[1:2], norm_type), equal_nan=True, rtol=0, atol=0
    )


def test_no_tensors_give_a_float32_zero_on_the_cpu() -> None:
    assert (
        REFERENCE.gather([], Kind.READ_ONLY).clip(clip_request(1.0, writes=False)).total_norm
        is None
    )
    actual = fastclip.get_total_norm([], backend="reference")
    assert (actual.item(), actual.dtype, actual.device.type) == (0.0, torch.float32, "cpu")
    assert actual.dim() == 0


@pytest.mark.parametrize("dtype", (torch.int64, torch.bool, torch.uint8))
def test_integer_tensors_raise_torchs_error(dtype: torch.dtype) -> None:
    grads = [torch.ones(3), torch.ones(3, dtype=dtype)]
    with pytest.raises(RuntimeError) as stock:
        torch.nn.utils.get_total_norm(grads)
    for run in (total_norm, tensor_norms):
        with pytest.raises(RuntimeError) as ours:
            run(grads, 2.0)
        assert str(ours.value) == str(stock.value)


def test_foreach_on_a_device_without_it_raises_torchs_error() -> None:
    grads = [torch.ones(3, device="meta")]
    with pytest.raises(RuntimeError) as stock:
        torch.nn.utils.get_total_norm(grads, foreach=True)
    calls: list[Callable[[], object]] = [
        lambda: check_foreach(grads, True),
        lambda: total_norm(grads, 2.0, foreach=True),
        lambda: scale_(grads, torch.tensor(0.5), foreach=True),
        lambda: clamp_(grads, 0.5, foreach=True),
    ]
    for call in calls:
        with pytest.raises(RuntimeError) as ours:
            call()
        assert str(ours.value) == str(stock.value)


@pytest.mark.parametrize("norm_type", ALL_NORM_TYPES[:-1])
def test_tensor_norms_are_one_per_tensor_in_order(norm_type: float) -> None:
    grads = [
        *awkward_gradients(torch.bfloat16),
        gradient(300_000, torch.float32),
        gradient(9, torch.float64),
        gradient(9, torch.complex64),
    ]
    norms = tensor_norms(grads, norm_type)
    assert {n.dtype for n in norms} == {torch.float64}
    for norm, grad in zip(norms, grads, strict=True):
        expected = oracle.tensor_norm(grad, norm_type)
        assert oracle.is_norm(norm.item(), expected, norm.dtype)


@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, torch.complex64])
def test_positions_of_gradients_that_are_not_finite(dtype: torch.dtype) -> None:
    grads = awkward_gradients(dtype)
    assert positions_of_nonfinite(grads) == []
    grads[4][3] = math.nan
    grads[7][16380] = -math.inf
    assert positions_of_nonfinite(grads) == [4, 7]


def test_finite_values_whose_norm_overflows_are_finite() -> None:
    huge = torch.full((100,), 3e38)
    assert positions_of_nonfinite([huge, torch.complex(huge, huge)]) == []


def test_inputs_of_norms_are_not_written() -> None:
    grads = [g for dtype in FLOAT_DTYPES for g in awkward_gradients(dtype)]
    kept = copies(grads)
    for norm_type in ALL_NORM_TYPES:
        total_norm(grads, norm_type)
        tensor_norms(grads, norm_type)
    positions_of_nonfinite(grads)
    assert all(torch.equal(g, k) for g, k in zip(grads, kept, strict=True))
    assert versions(grads) == [0] * len(grads)
