"""Hazards of the Triton kernels, one test each, in Triton's interpreter."""

import math

import oracle
import pytest
import torch
from samples import FLOAT_DTYPES, assert_clipped, copies, gradient, parameters
from torch import Tensor
from triton_arena import Arena, watched

import fastclip
from fastclip.backends import TRITON
from fastclip.backends.request import READ_ONLY

pytestmark = pytest.mark.usefixtures("interpreted")

COUNT = 9003
"""Elements of a gradient that is more than a batch of 8 blocks and ends beside a vector."""

# A head, odd and even places, every block of a batch, a batch that is not whole, the last element.
PLACES = (0, *range(1, COUNT, 997), COUNT - 1)

# Their squares all round down in float32.
UNLUCKY = tuple(
    map(float.fromhex, ("0x1.03966ep0", "0x1.043e78p0", "0x1.03edb4p0", "0x1.03286ep0"))
)
# Added to 1 one after another in float32, the squares of the others are lost.
LOPSIDED = (1.0, *3 * (float.fromhex("0x1.fcp-13"),))


def sums(tensors: list[Tensor], norm_type: float = 2.0) -> list[float]:
    """Return for each tensor, of a norm in float32, what the kernels summed up."""
    found = TRITON.gather(tensors, READ_ONLY).reduce(norm_type, dtype=torch.float32)
    return found.parts[0].tolist()


def with_one(value: float, background: Tensor) -> list[Tensor]:
    """Return copies, none on a 16-byte boundary, that hold the value at one place each."""
    shifts = (8,) if background.dtype == torch.float64 else (4, 8, 12)
    tensors = Arena([background] * len(PLACES), shifts).tensors
    for tensor, place in zip(tensors, PLACES, strict=True):
        tensor[place] = value
    return tensors


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_tiny_element_among_zeros_is_rescued_wherever_it_stands(dtype: torch.dtype) -> None:
    tensors = with_one(1e-25, torch.zeros(COUNT, dtype=dtype))
    for actual, tensor in zip(sums(tensors), tensors, strict=True):
        assert oracle.is_norm(math.sqrt(actual), oracle.total_norm([tensor], 2.0), torch.float32)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("norm_type", (2.0, math.inf))
def test_nan_is_kept_wherever_it_stands(norm_type: float, dtype: torch.dtype) -> None:
    tensors = with_one(math.nan, gradient(COUNT, dtype))
    assert all(map(math.isnan, sums(tensors, norm_type)))


@pytest.mark.parametrize("bad", (math.inf, math.nan))
def test_the_coefficient_of_a_norm_that_is_not_finite_is_written(bad: float) -> None:
    grads = [gradient(size, torch.float32, seed=size) for size in (7, 5000)]
    grads[1][4321] = bad
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, 0.5, backend="triton")
    assert_clipped(held, grads, 0.5, norm)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES[:3])
@pytest.mark.parametrize("four", (UNLUCKY, LOPSIDED), ids=("unlucky", "lopsided"))
def test_four_squares_added_in_float32(four: tuple[float, ...], dtype: torch.dtype) -> None:
    # The four that meet are of four blocks, or pairs of neighbours of two.
    i = torch.arange(1 << 14)
    order = i // 1024 % 4 if dtype == torch.float32 else i // 2048 % 2 * 2 + i % 2
    grad = torch.tensor(four, dtype=dtype)[order]
    expected = oracle.total_norm([grad], 2.0)
    # Half of the tolerance: the other half is for the rounding of the norm.
    assert abs(math.sqrt(sums([grad])[0]) / expected - 1) < 2.0**-24


def test_more_groups_than_a_block_of_partials() -> None:
    tensors = [torch.full((1,), float(i)) for i in range(8 * 513)]
    norm = fastclip.get_total_norm(tensors, backend="triton")
    assert oracle.is_norm(norm.item(), oracle.total_norm(tensors, 2.0), torch.float32)


def test_more_chunks_in_a_tensor_than_a_block_of_them() -> None:
    grad = gradient(33 << 14, torch.bfloat16)
    norm = math.sqrt(sums([grad])[0])
    assert oracle.is_norm(norm, oracle.total_norm([grad], 2.0), torch.float32)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_clamp_compares_with_its_limit_as_the_dtype_holds_it(dtype: torch.dtype) -> None:
    # 0.3 rounds up in float16 and bfloat16: elements that hold just that are within the limit.
    arena = Arena([torch.full((size,), 0.3, dtype=dtype) for size in (100, COUNT)])
    with watched(arena):
        fastclip.clip_grad_value_(parameters(arena.tensors), 0.3, backend="triton")
    assert [arena.counts(i)[1] for i in range(2)] == [{0}, {0}]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_clamp_keeps_nan(dtype: torch.dtype) -> None:
    grads = [gradient(size, dtype) for size in (100, COUNT)]
    for grad in grads:
        grad[7::13] = math.nan
    held = parameters(copies(grads))
    fastclip.clip_grad_value_(held, 0.3, backend="triton")
    for p, grad in zip(held, grads, strict=True):
        assert p.grad is not None
        assert oracle.equal(p.grad, oracle.clamped(grad, 0.3))


@pytest.mark.parametrize("shifts", ((0,), (4, 8)))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_nan_reaches_a_target(dtype: torch.dtype, shifts: tuple[int, ...]) -> None:
    grads = [torch.full((size,), math.nan, dtype=dtype) for size in (5, 1100, 4099)]
    sources = Arena(grads, (2 * dtype.itemsize,))
    targets = Arena([torch.full_like(grad, -77.0) for grad in grads], shifts)
    with watched(sources), watched(targets):
        TRITON.gather(sources.tensors, READ_ONLY).scale_into(targets.tensors, 0.5)
    assert all(bool(target.isnan().all()) for target in targets.tensors)
