"""The right answers, with nothing but numpy: no code is shared with the library or with torch.

Values are divided by a power of two near the largest, so that nothing that counts overflows or
vanishes, and added in float64 by numpy's pairwise sums, whose relative error is a few times 2^-53.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

# Relative error of a total norm, by the dtype of the result. float32: the norm is accumulated so
# that its own error stays below 2^-24, and storing it rounds by at most 2^-24 (half a unit in the
# last place of a number just above a power of two). float64: 2^17 elements (tests on float64 have
# no more) added one by one, each addition off by at most 2^-53 of a sum that only grows.
TOLERANCE = {torch.float32: 2 * 2.0**-24, torch.float64: 2.0**-36}

SMALLEST = {torch.float32: 2.0**-149, torch.float64: 2.0**-1074}
"""The smallest positive number: norms near it cannot be closer than that."""

LARGEST = {torch.float32: float(np.finfo(np.float32).max), torch.float64: float(np.finfo("d").max)}

_BLOCK_SIZE = 2**20


def values_of(tensor: Tensor) -> Array:
    """Return the magnitudes or values of a tensor as a flat float64 array: |x| for complex ones."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        return np.abs(tensor.resolve_conj().to(torch.complex128).reshape(-1).numpy())
    return tensor.to(torch.float64).resolve_neg().reshape(-1).numpy()


def tensor_norm(tensor: Tensor, norm_type: float) -> float:
    """Compute the p-norm of one tensor; 0 for an empty one."""
    return _norm([values_of(tensor)], norm_type)


def total_norm(tensors: Sequence[Tensor], norm_type: float) -> float:
    """Compute the p-norm of all elements; for p <= 0 the norm of the single norms, as in torch."""
    held = [t for t in tensors if t.numel() > 0]
    if norm_type > 0:
        return _norm([values_of(t) for t in held], norm_type)
    return _norm([np.array([tensor_norm(t, norm_type) for t in held])], norm_type)


def _norm(arrays: Sequence[Array], norm_type: float) -> float:
    blocks = [
        np.abs(array[start : start + _BLOCK_SIZE])
        for array in arrays
        for start in range(0, array.size, _BLOCK_SIZE)
    ]
    if not blocks:
        return 0.0
    if math.isnan(norm_type) or any(np.isnan(block).any() for block in blocks):
        return math.nan
    if norm_type == 0:
        return float(sum(np.count_nonzero(block) for block in blocks))
    extreme = max if norm_type > 0 else min
    decisive = extreme(float(extreme(block.max(), block.min())) for block in blocks)
    if math.isinf(norm_type) or decisive == 0 or math.isinf(decisive):
        return decisive
    exponent = math.frexp(decisive)[1]
    total = sum(float((np.ldexp(block, -exponent) ** norm_type).sum()) for block in blocks)
    return math.ldexp(total ** (1 / norm_type), exponent)


def is_norm(actual: float, expected: float, dtype: torch.dtype) -> bool:
    """Return whether a norm stored in ``dtype`` is the ``expected`` one, within TOLERANCE."""
    if math.isnan(expected):
        return math.isnan(actual)
    if actual == expected:
        return True
    if expected > LARGEST[dtype] * (1 + TOLERANCE[dtype]):
        return actual == math.inf
    return abs(actual - expected) <= max(TOLERANCE[dtype] * expected, SMALLEST[dtype])


def clip_coef(max_norm: float, total_norm: Tensor) -> float:
    """Compute min(1, (1 / (total_norm + 1e-6)) * max_norm), rounded in the norm's dtype."""
    kind = np.float64 if total_norm.dtype == torch.float64 else np.float32
    with np.errstate(all="ignore"):
        inverse = kind(1) / (kind(total_norm.item()) + kind(1e-6))
        coef = inverse * kind(max_norm)
    return float(coef) if math.isnan(coef) else min(float(coef), 1.0)


def scaled(grad: Tensor, coef: float) -> Array:
    """Multiply by ``coef``: a float32 product (float64 for float64), stored with one rounding."""
    values = values_of(grad)
    with np.errstate(all="ignore"):
        if grad.dtype == torch.float64:
            return values * coef
        product = values.astype(np.float32) * np.float32(coef)
        return rounded(product, grad.dtype).astype(np.float64)


def clamped(grad: Tensor, clip_value: float) -> Array:
    """Clamp to [-clip_value, clip_value], both rounded to the gradient's dtype."""
    limit = rounded(np.array([clip_value], dtype=np.float32), grad.dtype).astype(np.float64)
    if grad.dtype == torch.float64:
        limit = np.array([clip_value])
    return np.minimum(np.maximum(values_of(grad), -limit), limit)


def rounded(values: NDArray[np.float32], dtype: torch.dtype) -> NDArray[np.float32]:
    """Round float32 values to ``dtype``, to nearest, ties to even."""
    if dtype == torch.float16:
        with np.errstate(all="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype != torch.bfloat16:
        return values
    bits = values.view(np.uint32)
    nearest = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), values, nearest.view(np.float32))


def equal(tensor: Tensor, expected: Array, *, any_zero: bool = False) -> bool:
    """Return whether a tensor holds exactly the expected values; NaN equals NaN.

    Args:
        any_zero: whether 0.0 and -0.0 are equal.
    """
    actual = values_of(tensor)
    if not np.array_equal(actual, expected, equal_nan=True):
        return False
    zero = np.full(expected.shape, False) if any_zero else expected == 0
    return np.array_equal(np.signbit(actual[zero]), np.signbit(expected[zero]))
