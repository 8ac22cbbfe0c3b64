"""The reference backend's coefficient, scaling, clamping and what it checks before it writes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import oracle
import pytest
import torch
from reference_calls import clamp_, scale_
from samples import FLOAT_DTYPES, awkward_gradients, gradient, sparse_gradient, versions

from fastclip.backends.reference.scale import multiply_rounding_once_
from fastclip.backends.request import Coefficient
from fastclip.backends.tensors import clip_coefficient, unique_gradients


@pytest.fixture(autouse=True)
def _without_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("max_norm", (1.0, 0.0, -2.5, 0.1, 1e30, math.inf, math.nan))
def test_coefficient_has_the_bits_of_the_formula(max_norm: float, dtype: torch.dtype) -> None:
    for value in (0.0, 1e-7, 0.999999, 1.0, 3.3, 7e5, 3e38, math.inf, math.nan):
        norm = torch.tensor(value, dtype=dtype)
        expected = oracle.clip_coef(max_norm, norm)
        for limit in (max_norm, torch.tensor(max_norm, dtype=torch.float64)):
            actual = clip_coefficient(limit, norm)
            assert actual.dtype == dtype
            np.testing.assert_equal(actual.item(), expected)


def test_coefficient_of_a_sixteen_bit_norm_is_float32() -> None:
    norm = torch.tensor(3.0, dtype=torch.bfloat16)
    actual = clip_coefficient(1.0, norm)
    assert actual.item() == oracle.clip_coef(1.0, norm.float())


def test_norm_that_is_no_tensor_raises_type_error() -> None:
    norm: object = 2.0
    with pytest.raises(TypeError, match=r"clamp\(\)"):
        clip_coefficient(1.0, norm)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("coef", (0.123456789, 0.0, -0.7, 1 - 2**-24, math.nan, 1e-30))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("foreach", (None, False, True))
def test_scale_rounds_each_product_once(
    foreach: bool | None, dtype: torch.dtype, coef: float
) -> None:
    grads = awkward_gradients(dtype)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    clip_coef = torch.tensor(coef, dtype=kind)
    expected = [oracle.scaled(grad, clip_coef.item()) for grad in grads]
    scale_(grads, clip_coef, foreach=foreach)
    for grad, values in zip(grads, expected, strict=True):
        assert oracle.equal(grad, values)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_upcast_scale_of_other_devices_agrees_with_the_cpus(dtype: torch.dtype) -> None:
    grads = awkward_gradients(dtype)
    expected = [oracle.scaled(grad, 0.123456789) for grad in grads]
    multiply_rounding_once_(grads, torch.tensor(0.123456789))
    for grad, values in zip(grads, expected, strict=True):
        assert oracle.equal(grad, values)


@pytest.mark.parametrize("foreach", (None, False))
def test_coefficient_of_one_writes_nothing_but_bumps_versions(foreach: bool | None) -> None:
    # Multiplying a signalling NaN, even by 1, would quieten it: its bits show any write.
    signalling = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    quieted = signalling.clone().mul_(1.0)
    assert quieted.view(torch.int32).item() != signalling.view(torch.int32).item()
    grads = [signalling, torch.ones(3, dtype=torch.float64), torch.empty(0)]
    before = versions(grads)
    scale_(grads, torch.tensor(1.0), foreach=foreach)
    assert signalling.view(torch.int32).item() == 0x7F800001
    assert all(now > then for now, then in zip(versions(grads), before, strict=True))


def test_nan_coefficient_writes() -> None:
    grads = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16)]
    scale_(grads, torch.tensor(math.nan))
    assert all(grad.isnan().all() for grad in grads)


def test_float64_coefficient_scales_other_dtypes_as_float32() -> None:
    grads = [gradient(999, dtype) for dtype in FLOAT_DTYPES]
    coef = torch.tensor(0.123456789123, dtype=torch.float64)
    expected = [oracle.scaled(grad, coef.item()) for grad in grads]
    scale_(grads, coef)
    assert all(oracle.equal(g, values) for g, values in zip(grads, expected, strict=True))


def test_coefficient_with_a_dimension_raises_torchs_error() -> None:
    for norm in (torch.tensor([2.0]), torch.tensor([2.0, 2.0]), torch.tensor([1.0])):
        grads = [torch.ones(2)]
        coef = clip_coefficient(1.0, norm)
        with pytest.raises(RuntimeError) as stock:
            torch._foreach_mul_([torch.ones(2)], coef)  # pyright: ignore[reportPrivateImportUsage]
        with pytest.raises(RuntimeError) as ours:
            scale_(grads, Coefficient(1.0, norm))
        assert str(ours.value) == str(stock.value)
        assert grads[0].tolist() == [1, 1]


def test_expanded_gradient_raises_before_the_first_write() -> None:
    expanded = torch.ones(1).expand(3)
    with pytest.raises(RuntimeError) as stock:
        expanded.mul_(0.5)
    for act in (
        lambda g: scale_(g, torch.tensor(0.5)),
        lambda g: clamp_(g, 0.5),
    ):
        grads = [torch.ones(3), expanded]
        with pytest.raises(RuntimeError) as ours:
            act(grads)
        assert str(ours.value) == str(stock.value)
        assert grads[0].tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="more than one element"):
        scale_([expanded], torch.tensor(1.0))


def test_expanded_gradient_without_elements_is_fine() -> None:
    scale_([torch.ones(1).expand(0, 3)], torch.tensor(0.5))


def test_inference_tensor_raises_before_the_first_write() -> None:
    with torch.inference_mode():
        frozen = torch.full((3,), 7.0)
    for coef in (0.5, 1.0):
        grads = [torch.ones(3), frozen]
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside"):
            scale_(grads, torch.tensor(coef))
        assert grads[0].tolist() == [1, 1, 1]
        assert frozen.tolist() == [7, 7, 7]


def test_inference_tensor_is_scaled_in_inference_mode() -> None:
    with torch.inference_mode():
        frozen = torch.full((3,), 8.0)
        scale_([frozen], torch.tensor(0.5))
        scale_([frozen], torch.tensor(1.0))
        assert frozen.tolist() == [4, 4, 4]


@pytest.mark.parametrize("dtype", (torch.int64, torch.float8_e4m3fn))
def test_dtype_that_cannot_be_scaled_raises_before_the_first_write(dtype: torch.dtype) -> None:
    grads = [torch.ones(3), torch.ones(3).to(dtype)]
    with pytest.raises((RuntimeError, NotImplementedError)) as stock:
        grads[1].clone().mul_(torch.tensor(0.5))
    with pytest.raises(type(stock.value)) as ours:
        scale_(grads, torch.tensor(0.5))
    assert str(ours.value) == str(stock.value)
    assert grads[0].tolist() == [1, 1, 1]


def test_partly_overlapping_gradients_are_scaled_one_after_another() -> None:
    base = torch.ones(6)
    scale_([base[:4], base[2:]], torch.tensor(0.5))
    assert base.tolist() == [0.5, 0.5, 0.25, 0.25, 0.5, 0.5]


def test_gradient_on_a_graph_is_scaled() -> None:
    with torch.enable_grad():
        grad = torch.ones(3, requires_grad=True) * 2
    scale_([grad], torch.tensor(0.5))
    assert grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("foreach", (None, False, True))
@pytest.mark.parametrize(
    "clip_value", (1.0, 0.1, 0.0, -1.0, 300.0, 65504.0, math.inf, -math.inf, math.nan, 1e30)
)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_clamp_is_torchs(dtype: torch.dtype, clip_value: float, foreach: bool | None) -> None:
    special = [1.0, -3.0, 0.0, -0.0, math.nan, math.inf, -math.inf, 60000.0, -1e-5]
    ours, theirs = (torch.tensor(special, dtype=dtype) for _ in range(2))
    holder = torch.zeros(len(special), dtype=dtype, requires_grad=True)
    holder.grad = theirs
    if dtype == torch.float16 and abs(clip_value) == 1e30:
        with pytest.raises(RuntimeError) as stock:
            torch.nn.utils.clip_grad_value_([holder], clip_value, foreach=foreach)
        first = torch.full((3,), 2e35)
        with pytest.raises(RuntimeError) as error:
            clamp_([first, ours], clip_value, foreach=foreach)
        assert str(error.value) == str(stock.value)
        assert first.max().item() == np.float32(2e35)
        return
    torch.nn.utils.clip_grad_value_([holder], clip_value, foreach=foreach)
    clamp_([ours], clip_value, foreach=foreach)
    assert ours._version > 0
    same_bits = torch.int64 if dtype == torch.float64 else torch.int16
    if dtype == torch.float32:
        same_bits = torch.int32
    finite = ~theirs.isnan()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[finite].view(same_bits), theirs[finite].view(same_bits))
    if not math.isnan(clip_value):
        values = torch.tensor(special, dtype=dtype)
        # Which of two zeros a clamp to 0 leaves depends on how it is vectorised, in torch as well.
        expected = oracle.clamped(values, clip_value)
        assert oracle.equal(ours, expected, any_zero=clip_value == 0)


def test_clamp_of_awkward_shapes() -> None:
    for dtype in FLOAT_DTYPES:
        grads = awkward_gradients(dtype)
        expected = [oracle.clamped(grad, 0.3) for grad in grads]
        clamp_(grads, 0.3)
        assert all(oracle.equal(g, values) for g, values in zip(grads, expected, strict=True))


def test_clamp_of_complex_gradients_raises_before_the_first_write() -> None:
    grads = [torch.full((3,), 5.0), gradient(3, torch.complex64)]
    with pytest.raises(NotImplementedError, match=r"^clamp is not supported for complex types$"):
        clamp_(grads, 1.0)
    assert grads[0].tolist() == [5, 5, 5]


def test_nothing_is_clamped_or_scaled() -> None:
    assert clamp_([], 1.0) is False
    assert scale_([], 0.5) is False


def test_same_gradient_is_kept_once() -> None:
    a, b = torch.ones(2, 3), torch.ones(4)
    alias = a.view(2, 3)
    assert [id(g) for g in unique_gradients([a, b, alias, a])] == [id(a), id(b)]


def test_gradients_that_only_overlap_are_all_kept() -> None:
    base = torch.ones(6, dtype=torch.float32)
    different = [base, base[:3], base[1:4], base[::2], base.view(2, 3), base.view(torch.int32)]
    assert len(unique_gradients(different)) == len(different)


def test_tensors_without_address_are_equal_to_themselves_alone() -> None:
    empties = [torch.empty(0), torch.empty(0)]
    metas = [torch.ones(3, device="meta") for _ in range(2)]
    sparse = sparse_gradient()
    assert len(unique_gradients([*empties, *metas, sparse, sparse, *metas])) == 5


def test_zero_tensor_is_refused_before_any_write() -> None:
    immutable = torch._efficientzerotensor((3,))  # pyright: ignore[reportPrivateImportUsage]
    for dtype in (torch.float32, torch.float64):
        grads = [torch.full((4,), 7.0, dtype=dtype), immutable]
        with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
            scale_(grads, torch.tensor(0.5))
        with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
            clamp_(grads, 1.0)
        assert torch.equal(grads[0], torch.full((4,), 7.0, dtype=dtype))


def test_a_column_and_its_transpose_are_the_same_gradient() -> None:
    column = torch.ones(6, 1)
    assert column.stride() == column.t().stride()
    assert len(unique_gradients([column, column.t()])) == 1
