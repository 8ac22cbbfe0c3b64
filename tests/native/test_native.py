"""The native backend's numbers: norms against the oracle, scaled and clamped values bit for bit."""

import math
from collections.abc import Sequence

import native_calls
import oracle
import pytest
import torch
from native_cases import (
    CHUNK_SIZE,
    DTYPES,
    INSTRUCTION_SETS,
    NARROW,
    NORM_TYPES,
    SIZES,
    all_patterns,
    gradient_of,
    parameters_of,
    patterns,
    random_list,
    random_tensor,
    same_bits,
    scaled,
    using,
)
from torch import Tensor

from fastclip.backends.base import RefusedError

COEFFICIENTS = (0.75, 1 / 3, 1e-3, 1e-8, 2.0**-130, 0.0, 1.0, -1.0, 1e30, math.inf, math.nan)


def check_clip(gradients: Sequence[Tensor], norm_type: float, max_norm: float) -> None:
    """Clip, then compare the norm with the oracle and every gradient with torch's product."""
    before = [gradient.clone() for gradient in gradients]
    parameters = parameters_of(gradients)
    total_norm = native_calls.clip_grad_norm_(parameters, max_norm, norm_type, False)
    assert total_norm is not None
    expected = oracle.total_norm(before, norm_type)
    assert oracle.is_norm(total_norm.item(), expected, total_norm.dtype), (total_norm, expected)
    for parameter, original in zip(parameters, before, strict=True):
        assert same_bits(gradient_of(parameter), scaled(original, max_norm, total_norm))


def norm_of(tensors: Sequence[Tensor], norm_type: float = 2.0) -> float:
    return native_calls.get_total_norm(list(tensors), norm_type, False, None).item()


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_awkward_size_alone(dtype: torch.dtype, norm_type: float) -> None:
    for size in SIZES:
        check_clip([random_tensor(size, dtype)], norm_type, max_norm=0.5)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_awkward_sizes_in_one_list(dtype: torch.dtype, norm_type: float) -> None:
    check_clip(random_list(SIZES, dtype), norm_type, max_norm=1.0)
    check_clip(random_list(SIZES[::-1], dtype), norm_type, max_norm=1e9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tiny_tensors_in_one_list(dtype: torch.dtype) -> None:
    check_clip(random_list([0, 1, 2, 0, 3, 33, 1] * 300, dtype), 2.0, max_norm=1.0)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_dtypes_mixed_in_one_list(norm_type: float) -> None:
    for dtypes in (DTYPES, NARROW):
        sizes = (0, 1, 33, CHUNK_SIZE + 1)
        gradients = [random_tensor(size, dtype) for size in sizes for dtype in dtypes]
        check_clip(gradients, norm_type, max_norm=1.0)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_counts_once(dtype: torch.dtype, name: str) -> None:
    zeros = torch.zeros(131, dtype=dtype)
    with using(name):
        for size in (*range(1, 68), 127, 128, 129, 131):
            tensor = zeros[:size]
            for position in range(size):
                tensor[position] = -1.5
                assert [norm_of([tensor], p) for p in (1.0, 2.0, math.inf)] == [1.5, 1.5, 1.5]
                tensor[position] = 0.0


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_is_kept_wherever_it_stands(dtype: torch.dtype, name: str) -> None:
    infinite = torch.full((131,), math.inf, dtype=dtype)
    with using(name):
        for size in (*range(1, 68), 127, 128, 129, 131):
            tensor = infinite[:size]
            for position in range(size):
                tensor[position] = math.nan
                assert math.isnan(norm_of([tensor], math.inf))
                assert math.isnan(norm_of([tensor], 2.0))
                tensor[position] = math.inf
            assert norm_of([tensor], math.inf) == math.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_nan_is_kept_from_any_chunk_and_tensor(norm_type: float, dtype: torch.dtype) -> None:
    for position in (0, CHUNK_SIZE - 1, CHUNK_SIZE, 2 * CHUNK_SIZE + 4):
        tensors = [torch.full((2 * CHUNK_SIZE + 5,), math.inf, dtype=dtype) for _ in range(3)]
        for tensor in tensors:
            tensor[position] = math.nan
            assert math.isnan(norm_of(tensors, norm_type))
            tensor[position] = math.inf
        assert norm_of(tensors, norm_type) == math.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nonfinite_norm_scales_as_torch_does(poison: float, dtype: torch.dtype) -> None:
    gradients = [torch.tensor([1.0, -2.0, 0.0, poison], dtype=dtype), torch.ones(37, dtype=dtype)]
    stock = parameters_of([gradient.clone() for gradient in gradients])
    torch.nn.utils.clip_grad_norm_(stock, 1.0)
    parameters = parameters_of(gradients)
    native_calls.clip_grad_norm_(parameters, 1.0, 2.0, False)
    for parameter, expected in zip(parameters, stock, strict=True):
        assert same_bits(gradient_of(parameter), gradient_of(expected))


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_has_the_bits_of_torchs_product(dtype: torch.dtype, name: str) -> None:
    values = patterns(dtype)
    with using(name):
        for clip_coef in COEFFICIENTS:
            product = values.mul(torch.tensor(clip_coef, dtype=torch.float64))
            assert same_bits(native_calls.scaled([values], clip_coef)[0], product), clip_coef


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_scale_keeps_the_payload_of_a_float16_nan(name: str) -> None:
    values = all_patterns(torch.float16)
    with using(name):
        payloads = native_calls.scaled([values], 0.75)[0].view(torch.int16)[values.isnan()]
    quiet = values.view(torch.int16)[values.isnan()] | 0x200
    assert torch.equal(payloads, quiet)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamp_has_the_bits_of_torchs_clamp(dtype: torch.dtype, name: str) -> None:
    largest = torch.finfo(dtype).max
    values = torch.cat([patterns(dtype), *(random_tensor(size, dtype) for size in SIZES)])
    with using(name):
        for clip_value in (1e-40, 2.0**-20, 0.1, 0.5, 1 / 3, 1.0, 300.0, largest, math.inf):
            parameters = parameters_of([values.clone()])
            native_calls.clip_grad_value_(parameters, clip_value)
            clamped = values.clamp(-clip_value, clip_value)
            assert same_bits(gradient_of(parameters[0]), clamped), clip_value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamp_keeps_nan_and_the_sign_of_zero(dtype: torch.dtype) -> None:
    values = torch.tensor([math.nan, -0.0, 0.0, math.inf, -math.inf, 0.25, -0.75], dtype=dtype)
    expected = torch.tensor([math.nan, -0.0, 0.0, 0.5, -0.5, 0.25, -0.5], dtype=dtype)
    parameters = parameters_of([values])
    native_calls.clip_grad_value_(parameters, 0.5)
    assert same_bits(gradient_of(parameters[0]), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamp_to_zero_zeroes(dtype: torch.dtype) -> None:
    parameters = parameters_of([random_tensor(100, dtype)])
    native_calls.clip_grad_value_(parameters, 0.0)
    assert torch.equal(gradient_of(parameters[0]), torch.zeros(100, dtype=dtype))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_clamp_refuses_a_bound_as_torch_does(dtype: torch.dtype) -> None:
    for bound in (65504.0, 65519.0, 65520.0, 3.3895e38, 3.39e38, 3.4e38, 3.41e38):
        gradient = torch.ones(3, dtype=dtype)
        try:
            torch.ones(3, dtype=dtype).clamp_(-bound, bound)
        except RuntimeError:
            with pytest.raises(RefusedError, match="clip_value"):
                native_calls.clip_grad_value_(parameters_of([gradient]), bound)
        else:
            native_calls.clip_grad_value_(parameters_of([gradient]), bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaled_leaves_its_input_alone(dtype: torch.dtype) -> None:
    tensors = [random_tensor(CHUNK_SIZE + 3, dtype), random_tensor(33, dtype).reshape(3, 11).t()]
    before = [tensor.clone() for tensor in tensors]
    for clip_coef in (0.25, 1.0):
        results = native_calls.scaled(tensors, clip_coef)
        for tensor, original, result in zip(tensors, before, results, strict=True):
            assert tensor._version == 0
            assert same_bits(tensor, original)
            assert same_bits(result, original.mul(clip_coef))
            assert result.stride() == tensor.stride()
            assert result.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_total_norm_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    tensors = [random_tensor(size, dtype) for size in (33, 2 * CHUNK_SIZE + 1)]
    for asked in (torch.float32, torch.float64):
        for norm_type in NORM_TYPES:
            total_norm = native_calls.get_total_norm(tensors, norm_type, False, asked)
            assert total_norm.dtype == asked
            assert total_norm.dim() == 0
            expected = oracle.total_norm(tensors, norm_type)
            assert oracle.is_norm(total_norm.item(), expected, asked)


def test_float64_norm_of_bfloat16_keeps_what_float32_squares_lose() -> None:
    pairs = torch.tensor([1.0, 2.0**-12 * (1 - 2.0**-8)], dtype=torch.bfloat16).repeat(4096)
    expected = oracle.total_norm([pairs], 2.0)
    in_float64 = native_calls.get_total_norm([pairs], 2.0, False, torch.float64).item()
    assert oracle.is_norm(in_float64, expected, torch.float64)
    assert abs(64.0 - expected) > 1e-7, "1 + 2^-24 rounds to 1 in float32: the case would be idle"


def test_lists_without_elements_have_norm_zero() -> None:
    for tensors in ([], [torch.zeros(0)], [torch.zeros(0, 3), torch.zeros(2, 0)]):
        for norm_type in NORM_TYPES:
            total_norm = native_calls.get_total_norm(tensors, norm_type, True, None)
            assert same_bits(total_norm, torch.tensor(0.0))
