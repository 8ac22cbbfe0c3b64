"""Parameters with gradients to clip, their float64 norm, and the check that comes before timing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import fastclip
from bench.core.shapes import Case, Shape
from bench.core.text import Head
from bench.core.timing import Clip

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Added to the norm in the definition of clip_coef.
EPS = 1e-6

# What fastclip promises of its norm, relative to float64.
NORM_TOLERANCE = 2 * 2.0**-24

# A clipped gradient is g * clip_coef: at most 2 roundings of the norm, then 1 each for the sum with
# EPS, the reciprocal, max_norm, its product and the product with g, all in float32 ...
_PRODUCT_ROUNDINGS = 7 * 2.0**-24
# ... and one more to the gradient's dtype: half a unit in the last place, or half the spacing of
# the subnormal numbers.
_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SUBNORMAL = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25}

# Stock's norm of bfloat16 has 8 bits.
_OTHERS_TOLERANCE = 2.0**-6

# Not a power of two: a coefficient that multiplies without rounding would hide a wrong one.
CLIPPED_MAX_NORM = 0.37
UNCLIPPED_MAX_NORM = 2.0

# Odd, so that equal tensors hold different values at equal places.
_POOL_ELEMENTS = (1 << 22) + 7
# Float64 copies of a slice stay in the CPU's cache; a GPU takes fewer and larger ones.
_SLICE_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 24}
_GRADIENT_SCALE = 0.01


class WrongResultError(Exception):
    """A clip gave a result that float64 contradicts; timing it would mean nothing."""


class Gradients:
    """The parameters of one case in one dtype, each with a gradient, and a copy to restore from.

    Gradients are N(0, 0.01**2); the memory of the parameters is never touched.
    """

    def __init__(self, case: Case, dtype: str, device: str = "cpu") -> None:
        self.case, self.dtype = case, dtype
        self.parameters: list[Tensor] = [
            torch.nn.Parameter(torch.empty(shape, dtype=DTYPES[dtype], device=device))
            for shape in case.shapes
        ]
        # In memory as training leaves them: parameters first, then gradients, the last one first.
        self.grads = list(_filled(case.shapes[::-1], DTYPES[dtype], device))[::-1]
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        self.saved = [grad.clone() for grad in self.grads]
        self.n_bytes = sum(grad.nbytes for grad in self.grads)
        self.norm = float64_norm(self.saved)

    def restore(self) -> None:
        """Give the gradients back the values that they had before the first clip."""
        for grad, saved in zip(self.grads, self.saved, strict=True):
            grad.copy_(saved)

    def max_norm(self, clipped: bool) -> float:
        """Return a threshold that makes a call clip, or leave the gradients as they are."""
        return self.norm * (CLIPPED_MAX_NORM if clipped else UNCLIPPED_MAX_NORM)

    def norm_error(self, total_norm: Tensor) -> float:
        """Return ``|total_norm - float64 norm| / float64 norm``."""
        return abs(float(total_norm) - self.norm) / self.norm

    def head(self, clipped: bool) -> Head:
        """Return the beginning of the row of a report that is about these gradients."""
        return Head(
            case=self.case.name,
            dtype=self.dtype,
            clipped=clipped,
            n_tensors=self.case.n_tensors,
            gradient_bytes=self.n_bytes,
        )

    def check(self, name: str, total_norm: Tensor, clipped: bool, *, is_ours: bool = True) -> None:
        """Compare a call's norm and what it left in the gradients with float64.

        Another library may sum in float32 or round its norm to 16 bits: it is held to no promise of
        ours, only to having clipped.

        Raises:
            WrongResultError: if either is off by more than roundings explain.
        """
        tolerance = NORM_TOLERANCE if is_ours else _OTHERS_TOLERANCE
        error = self.norm_error(total_norm)
        if not error <= tolerance:
            raise WrongResultError(
                f"{name}: total_norm must be {self.norm!r} within {tolerance:.2e}"
                f" (got {float(total_norm)!r}, off by {error:.2e})"
            )
        clip_coef = coefficient(self.max_norm(clipped), self.norm)
        relative = None if is_ours else _OTHERS_TOLERANCE
        for position, (grad, saved) in enumerate(zip(self.grads, self.saved, strict=True)):
            if is_ours and not clipped:
                is_right = torch.equal(grad, saved)
            else:
                is_right = is_scaled(grad, saved, clip_coef, relative)
            if not is_right:
                raise WrongResultError(
                    f"{name}: gradient {position} of {tuple(grad.shape)} must be its old value"
                    f" times {clip_coef!r} (got other values)"
                )


def list_call(gradients: Gradients, max_norm: float, backend: str | None) -> Clip:
    """Return fastclip's drop-in call on a list of parameters."""
    # Looked up at each call, as a training loop does.
    return lambda: fastclip.clip_grad_norm_(gradients.parameters, max_norm, backend=backend)


def check_coefficient(name: str, max_norm: float, clipped: bool, total_norm: object) -> None:
    """Raise WrongResultError for a call that clips where it must not, or the other way round."""
    if not isinstance(total_norm, Tensor):
        raise WrongResultError(f"{name}: must return a tensor (got {type(total_norm).__name__})")
    norm = float(total_norm)
    if math.isnan(norm):
        raise WrongResultError(f"{name}: must return a number (got nan)")
    clip_coef = coefficient(max_norm, norm)
    if (clip_coef < 1.0) is not clipped:
        wanted = "below 1" if clipped else "1"
        raise WrongResultError(f"{name}: clip_coef must be {wanted} (got {clip_coef!r})")


def coefficient(max_norm: float, total_norm: float) -> float:
    """Return ``min(1, max_norm / (total_norm + 1e-6))``."""
    return min(1.0, max_norm / (total_norm + EPS))


def float64_norm(tensors: Sequence[Tensor]) -> float:
    """Return the 2-norm of all tensors together, summed in float64."""
    sum_sq = 0.0
    for values in _slices(tensors):
        wide = values.double()
        sum_sq += float(wide.dot(wide))
    return sum_sq**0.5


def is_scaled(grad: Tensor, saved: Tensor, clip_coef: float, relative: float | None = None) -> bool:
    """Return whether ``grad`` is ``saved * clip_coef``, rounded as a clip may round it."""
    if relative is None:
        relative = _PRODUCT_ROUNDINGS + _ROUNDING[grad.dtype]
    for got, old in zip(_slices([grad]), _slices([saved]), strict=True):
        right = old.double().mul_(clip_coef)
        error = got.double().sub_(right).abs_()
        # Written so that a NaN is an error.
        if not bool((error <= right.abs_().mul_(relative).add_(_SUBNORMAL[grad.dtype])).all()):
            return False
    return True


def _filled(shapes: Sequence[Shape], dtype: torch.dtype, device: str) -> Iterator[Tensor]:
    # Drawing every element anew would take longer than all the timing.
    generator = torch.Generator().manual_seed(20)
    pool = torch.randn(_POOL_ELEMENTS, generator=generator).mul_(_GRADIENT_SCALE)
    pool = pool.to(device, dtype)
    at = 0
    for shape in shapes:
        # The gradient itself is no view: a view shares its storage with the tensor under it,
        # which is not what autograd leaves behind.
        grad = torch.empty(shape, dtype=dtype, device=device)
        for values in grad.view(-1).split(_POOL_ELEMENTS):
            head = values[: _POOL_ELEMENTS - at]
            head.copy_(pool[at : at + head.numel()])
            values[head.numel() :] = pool[: values.numel() - head.numel()]
            at = (at + values.numel()) % _POOL_ELEMENTS
        yield grad


def _slices(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        yield from tensor.view(-1).split(_SLICE_ELEMENTS[tensor.device.type])
