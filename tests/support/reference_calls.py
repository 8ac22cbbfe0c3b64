"""Operations of the reference backend on tensors themselves, each in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastclip.backends.base import nonfinite_positions
from fastclip.backends.reference import ReferenceBackend
from fastclip.backends.request import Factor, Kind, clip_request

REFERENCE = ReferenceBackend()


def total_norm(
    tensors: Sequence[Tensor],
    norm_type: float,
    *,
    foreach: bool | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the norm of all tensors, of which there is at least one."""
    request = clip_request(math.inf, norm_type, writes=False, dtype=dtype)
    grads = REFERENCE.gather(list(tensors), Kind.READ_ONLY, foreach=foreach)
    norm = grads.clip(request).total_norm
    assert norm is not None
    return norm


def tensor_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Return the float64 norm of each tensor; all lie on one device."""
    sums = REFERENCE.gather(list(tensors), Kind.READ_ONLY).reduce(norm_type, dtype=torch.float64)
    [norms] = sums.norms()
    return list(norms)


def positions_of_nonfinite(tensors: Sequence[Tensor]) -> list[int]:
    """Return the positions of the tensors that hold inf or nan."""
    return nonfinite_positions(REFERENCE.gather(list(tensors), Kind.READ_ONLY))


def scale_(grads: Sequence[Tensor], by: Factor, *, foreach: bool | None = None) -> bool:
    """Multiply tensors in place; return whether there are any."""
    return REFERENCE.gather(list(grads), Kind.TENSORS, foreach=foreach).scale(by)


def clamp_(grads: Sequence[Tensor], clip_value: float, *, foreach: bool | None = None) -> bool:
    """Clamp tensors in place; return whether there are any."""
    return REFERENCE.gather(list(grads), Kind.TENSORS, foreach=foreach).clamp(clip_value)
