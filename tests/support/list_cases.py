"""Lists of gradients for the operations of a ``GradList``, and what these must make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import oracle
import torch
from reference_calls import REFERENCE
from samples import FLOAT_DTYPES, awkward_gradients, copies, gradient, parameter, versions
from torch import Tensor

from fastclip.backends.base import GradList
from fastclip.backends.request import Coefficient, Factor, Kind

DTYPES = (*FLOAT_DTYPES, torch.complex64, torch.complex128)
INV_SCALES = (None, 1.0, 2.0**-16, 0.3, -3.0)
WAYS = ("parameters", "tensors", "held parameters", "held tensors")

# What gradients are multiplied by, its value, and the dtype of its product with inv_scale.
FACTORS: dict[str, tuple[Factor, float, torch.dtype]] = {
    "number": (0.123456789, 0.123456789, torch.float64),
    "negative": (-2, -2.0, torch.float64),
    "float32": (torch.tensor(0.7), float(torch.tensor(0.7)), torch.float32),
    "float64": (torch.tensor(0.7, dtype=torch.float64), 0.7, torch.float64),
    "coefficient": (
        Coefficient(0.5, torch.tensor(1.7)),
        oracle.clip_coef(0.5, torch.tensor(1.7)),
        torch.float32,
    ),
    "wide coefficient": (
        Coefficient(0.5, torch.tensor(1.7, dtype=torch.float64)),
        oracle.clip_coef(0.5, torch.tensor(1.7, dtype=torch.float64)),
        torch.float64,
    ),
    "nan": (math.nan, math.nan, torch.float64),
    "zero": (0.0, 0.0, torch.float64),
}


def gathered(grads: Sequence[Tensor | None], way: str = "tensors") -> GradList:
    """Return a list of gradients, by way of parameters or not, held or not."""
    if way.endswith("parameters"):
        found = REFERENCE.gather([parameter(grad) for grad in grads], Kind.PARAMETERS)
    else:
        tensors = [grad for grad in grads if grad is not None]
        found = REFERENCE.gather(tensors, Kind.TENSORS)
    return found.hold() if way.startswith("held") else found


def some_gradients(dtype: torch.dtype) -> list[Tensor]:
    """Return awkward gradients, in fresh memory."""
    return copies(awkward_gradients(dtype))


def mixed_gradients() -> list[Tensor]:
    """Return a few gradients of every dtype."""
    return [gradient(size, dtype, size) for dtype in DTYPES for size in (0, 1, 33, 300)]


def scalar(value: float | None) -> Tensor | None:
    """Return a number as ``inv_scale`` is given, alternately of shape () and (1,)."""
    return None if value is None else torch.tensor([value] if abs(value) < 1 else value)


def flag(value: float = 0.0) -> Tensor:
    return torch.tensor([value])


class Marked(Tensor):
    """A subclass that holds no data itself."""


def unreadable(scalar: Tensor) -> Tensor:
    """Return a scalar that the host does not read, like one on a device for which it would wait."""
    return scalar.as_subclass(Marked)


def reals(tensor: Tensor) -> Tensor:
    """Return the elements of a tensor as real ones, two for each complex one."""
    tensor = tensor.detach()
    if not tensor.is_complex():
        return tensor
    return torch.view_as_real(tensor.resolve_conj())


def factor_of(by: float, inv_scale: float | None, dtype: torch.dtype) -> float:
    """Multiply two numbers in ``dtype``."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    return float(kind(by) * kind(1 if inv_scale is None else inv_scale))


def is_product(actual: Tensor, grad: Tensor, factor: float) -> bool:
    """Return whether a tensor holds ``grad * factor``, each product rounded once."""
    # torch multiplies a complex number by another one: a * 0 - b * 0 may lose the sign of a zero.
    expected = oracle.scaled(reals(grad), factor)
    return oracle.equal(reals(actual), expected, any_zero=grad.is_complex())


def are_products(actual: Sequence[Tensor], grads: Sequence[Tensor], factor: float) -> bool:
    """Return whether tensors hold ``grad * factor``, each product rounded once."""
    pairs = zip(actual, grads, strict=True)
    return all(is_product(written, grad, factor) for written, grad in pairs)


def bits_of(tensors: Sequence[Tensor]) -> list[bytes]:
    """Return the bits of tensors."""
    return [reals(t).contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors]


def went_up_by_one(grads: Sequence[Tensor], before: Sequence[int]) -> bool:
    """Return whether the version of every gradient went up by one."""
    return versions(grads) == [version + 1 for version in before]


def with_signalling_nan() -> Tensor:
    """Return a gradient whose bits change where anything multiplies it, even by 1."""
    grad = torch.ones(3)
    grad.view(torch.int32)[1] = 0x7F800001
    return grad
