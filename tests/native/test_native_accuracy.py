"""The native norm is within 2 x 2^-24 of float64's: on the whole range, hard data and any size."""

import decimal
import math
from collections.abc import Callable, Iterator

import native_calls
import oracle
import pytest
import torch
from native_cases import (
    CHUNK_SIZE,
    INSTRUCTION_SETS,
    NARROW,
    available_gigabytes,
    gradient_of,
    parameters_of,
    random_tensor,
    using,
)
from torch import Tensor

from fastclip.backends.base import NonFiniteError

MAIN_NORM_TYPES = (1.0, 2.0, math.inf)
SIZE = 2 * CHUNK_SIZE + 7
BIG = 2**31 + 5


def check_norm(tensors: list[Tensor], norm_type: float, expected: float) -> None:
    total_norm = native_calls.get_total_norm(tensors, norm_type, False, torch.float32).item()
    error = abs(total_norm - expected) / expected * 2**24 if expected else total_norm
    assert oracle.is_norm(total_norm, expected, torch.float32), f"off by {error} x 2^-24"


def constant_norm(value: float, size: int, norm_type: float) -> float:
    """Return the exact norm of ``size`` elements of one magnitude."""
    return abs(value) * (1.0 if math.isinf(norm_type) else size ** (1 / norm_type))


def large_norms(tensor: Tensor) -> dict[float, float]:
    """Compute a large tensor's norms in float64 in one pass, which the oracle is too slow for."""
    sums: list[float] = []
    squares: list[float] = []
    largest = 0.0
    for block in tensor.split(1 << 20):
        wide = block.double().abs_()
        sums.append(wide.sum().item())
        squares.append(wide.dot(wide).item())
        largest = max(largest, wide.max().item())
    return {1.0: math.fsum(sums), 2.0: math.sqrt(math.fsum(squares)), math.inf: largest}


def magnitudes(dtype: torch.dtype) -> Iterator[float]:
    """Yield a short and a full significand at every exponent that the dtype has, denormals too."""
    info = torch.finfo(dtype)
    smallest = int(math.log2(info.smallest_normal * info.eps))
    for exponent in range(smallest, int(math.log2(info.max)) + 1):
        yield 2.0**exponent
        yield torch.tensor((2 - info.eps) * 2.0**exponent, dtype=torch.float64).to(dtype).item()


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_constants_over_the_whole_range(dtype: torch.dtype, name: str) -> None:
    tensor = torch.empty(CHUNK_SIZE + 7, dtype=dtype)
    with using(name):
        for value in magnitudes(dtype):
            tensor.fill_(value)
            for norm_type in MAIN_NORM_TYPES:
                check_norm([tensor], norm_type, constant_norm(value, tensor.numel(), norm_type))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_random_values_over_the_whole_range(dtype: torch.dtype) -> None:
    normal = random_tensor(SIZE, torch.float64)
    largest = normal.abs().max().item()
    for value in list(magnitudes(dtype))[::17]:
        tensor = (normal * (value / largest)).to(dtype)
        for norm_type in MAIN_NORM_TYPES:
            check_norm([tensor], norm_type, oracle.total_norm([tensor], norm_type))


@pytest.mark.parametrize("value", [1e20, -3e38, 1e-25, 2.0**-126, 1e-39, 2.0**-133])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_squares_beyond_float32_are_rescued(dtype: torch.dtype, value: float) -> None:
    for size in (1, 33, SIZE):
        tensor = torch.full((size,), value, dtype=dtype)
        for norm_type in MAIN_NORM_TYPES:
            expected = constant_norm(tensor[0].item(), size, norm_type)
            check_norm([tensor], norm_type, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_magnitudes_mixed_in_a_chunk_and_in_a_list(dtype: torch.dtype) -> None:
    scales = torch.tensor([1e20, 1e-25, 3e38, 1e-39, 1.0, 0.0], dtype=torch.float64)
    within = random_tensor(6 * 6000, torch.float64).clamp(-1, 1) * scales.repeat(6000)
    tensors = [within.to(dtype), *(torch.full((100,), float(s), dtype=dtype) for s in scales)]
    for norm_type in MAIN_NORM_TYPES:
        check_norm(tensors, norm_type, oracle.total_norm(tensors, norm_type))
        for tensor in tensors:
            check_norm([tensor], norm_type, oracle.total_norm([tensor], norm_type))


def test_one_tiny_value_among_zeros_is_rescued() -> None:
    for value in (2.0**-133, 1e-30, 2.0**-60):
        for position in (0, 1, 16, 33, SIZE - 1):
            tensor = torch.zeros(SIZE, dtype=torch.bfloat16)
            tensor[position] = value
            check_norm([tensor], 2.0, tensor[position].item())


@pytest.mark.parametrize("value", [6e-8, 6.1e-5, 255.9, 100.0, 65504.0])
def test_float16_needs_no_rescue(value: float) -> None:
    tensor = torch.full((1_000_000,), value, dtype=torch.float16)
    check_norm([tensor], 2.0, constant_norm(tensor[0].item(), tensor.numel(), 2.0))


def test_norm_above_float32_is_inf_and_float64_holds_it() -> None:
    tensor = torch.full((16,), 3e38)
    assert native_calls.get_total_norm([tensor], 2.0, False, None).item() == math.inf
    in_float64 = native_calls.get_total_norm([tensor], 2.0, False, torch.float64).item()
    assert oracle.is_norm(in_float64, oracle.total_norm([tensor], 2.0), torch.float64)


def test_an_overflowing_norm_of_finite_gradients_names_none() -> None:
    with pytest.raises(NonFiniteError) as raised:
        native_calls.get_total_norm([torch.full((16,), 3e38)], 2.0, True, None)
    assert raised.value.positions == []


@pytest.mark.parametrize("norm_type", [1.5, 3.0, 7.0])
@pytest.mark.parametrize("exponent", [-40, -20, 0, 20, 40])
def test_float64_norms_of_other_powers_lose_only_what_one_over_p_loses(
    norm_type: float, exponent: int
) -> None:
    values = [3.7 * 10.0**exponent, -1.9 * 10.0**exponent, 5.1 * 10.0**exponent]
    with decimal.localcontext(decimal.Context(prec=50)):
        powers = [abs(decimal.Decimal(value)) ** decimal.Decimal(norm_type) for value in values]
        expected = sum(powers) ** (1 / decimal.Decimal(norm_type))
        tensor = torch.tensor(values, dtype=torch.float64)
        norm = decimal.Decimal(native_calls.get_total_norm([tensor], norm_type, False, None).item())
        off = float(abs(norm - expected) / expected)
        # 1/p is off by at most 2^-53 of itself, and the norm by ln(norm) times that; the powers,
        # their sum and the root add a few roundings.
        assert off <= (abs(float(expected.ln())) + 4) * 2.0**-53


@pytest.mark.parametrize("norm_type", [2.0, 3.5])
def test_float64_overflows_as_torch_does(norm_type: float) -> None:
    tensor = torch.full((3,), 2e200, dtype=torch.float64)
    assert native_calls.get_total_norm([tensor], norm_type, False, None).item() == math.inf
    assert native_calls.get_total_norm([tensor], math.inf, False, None).item() == 2e200


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_random_constants_do_not_drift(dtype: torch.dtype) -> None:
    values = random_tensor(60, dtype).tolist()
    for i, value in enumerate(values):
        size = 100_003 + 7919 * i
        tensor = torch.full((size,), value, dtype=dtype)
        for norm_type in MAIN_NORM_TYPES:
            check_norm([tensor], norm_type, constant_norm(tensor[0].item(), size, norm_type))


def spread(values: list[float], stride: int) -> list[float]:
    """Return each value ``stride`` times, one after another."""
    return [value for value in values for _ in range(stride)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_squares_whose_float32_sum_always_rounds_one_way(dtype: torch.dtype) -> None:
    # The smaller squares are just under half a unit in the last place of the larger one: adding one
    # of them in float32 loses all of it, 2^-24 of the sum, and adding two, one after another, twice
    # as much. In whichever way a kernel groups elements, one of these lists puts them together.
    below = 2.0**-12 * (1 - torch.finfo(dtype).eps)
    lists = [spread([1.0, below], stride) for stride in (1, 2, 4, 8, 16, 32)]
    lists += [spread([1.0, below, below, 0.0], stride) for stride in (1, 2, 4, 8, 16, 32)]
    lists.append([1.0, below] * 16 + [below, 0.0] * 16)
    for values in lists:
        group = torch.tensor(values, dtype=dtype)
        for repeats in (1009, 4099, 16411):
            tensor = group.repeat(repeats)
            check_norm([tensor], 2.0, oracle.total_norm([tensor], 2.0))


LARGE_SIZES = (10_000_001, 40_000_003)
FILLS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "normal": lambda tensor, generator: tensor.normal_(generator=generator),
    "uniform": lambda tensor, generator: tensor.uniform_(generator=generator),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILLS)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_large_random_tensors(dtype: torch.dtype, kind: str) -> None:
    tensor = torch.empty(LARGE_SIZES[-1], dtype=dtype)
    FILLS[kind](tensor, torch.Generator().manual_seed(1))
    for size in LARGE_SIZES:
        for norm_type, expected in large_norms(tensor[:size]).items():
            check_norm([tensor[:size]], norm_type, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_large_constant_tensors(dtype: torch.dtype) -> None:
    tensor = torch.empty(LARGE_SIZES[-1], dtype=dtype)
    for value in (0.1, 1 / 3, 2 - torch.finfo(dtype).eps, -1.0 - torch.finfo(dtype).eps):
        tensor.fill_(value)
        for size in LARGE_SIZES:
            for norm_type in MAIN_NORM_TYPES:
                expected = constant_norm(tensor[0].item(), size, norm_type)
                check_norm([tensor[:size]], norm_type, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_large_lists(dtype: torch.dtype) -> None:
    tensors = list(torch.full((40_000_000,), 0.1, dtype=dtype).split(399_989))
    check_norm(tensors, 2.0, constant_norm(tensors[0][0].item(), 40_000_000, 2.0))


@pytest.mark.big
@pytest.mark.skipif(available_gigabytes() < 12, reason="needs 12 GB of free memory")
def test_more_than_2_to_the_31_elements() -> None:
    gradient = torch.full((BIG,), 0.5, dtype=torch.bfloat16)
    marks = (0, 1, 2**31 - 1, 2**31, BIG - 2, BIG - 1)
    for mark in marks:
        gradient[mark] = -2048.0
    expected = math.sqrt((BIG - len(marks)) * 0.25 + len(marks) * 2048.0**2)
    check_norm([gradient], 2.0, expected)
    check_norm([gradient], math.inf, 2048.0)
    parameters = parameters_of([gradient])
    total_norm = native_calls.clip_grad_norm_(parameters, expected / 2, 2.0, False)
    assert total_norm is not None
    assert oracle.is_norm(total_norm.item(), expected, torch.float32)
    # Half of 0.5 and of 2048 is exact in bfloat16 and the coefficient is within 2^-22 of a half.
    for start in range(0, BIG, 1 << 24):
        block = gradient_of(parameters[0])[start : start + (1 << 24)]
        wrong = block != 0.25
        held = [mark - start for mark in marks if start <= mark < start + len(block)]
        assert wrong.nonzero().flatten().tolist() == held
        assert block[held].tolist() == [-1024.0] * len(held)
