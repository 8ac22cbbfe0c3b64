"""The operations of the native backend by itself, past the choice of a backend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastclip.backends import NATIVE
from fastclip.backends.request import PARAMETERS, READ_ONLY, ClipRequest, Coefficient


def clip_grad_norm_(
    parameters: list[Tensor],
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor | None:
    """Clip; a ``max_norm`` that is a tensor goes to the extension as it is."""
    request = ClipRequest(max_norm, norm_type, error_if_nonfinite)
    return NATIVE.gather(parameters, PARAMETERS).clip(request).total_norm


def get_total_norm(
    tensors: list[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Take the norm of tensors."""
    request = ClipRequest(math.inf, norm_type, error_if_nonfinite, writes=False, dtype=dtype)
    total_norm = NATIVE.gather(tensors, READ_ONLY).clip(request).total_norm
    return torch.tensor(0.0, dtype=dtype) if total_norm is None else total_norm


def clip_grads_with_norm_(
    parameters: list[Tensor], max_norm: float | Tensor, total_norm: Tensor
) -> bool:
    """Scale by the coefficient of a norm."""
    return NATIVE.gather(parameters, PARAMETERS).scale(Coefficient(max_norm, total_norm))


def clip_grad_value_(parameters: list[Tensor], clip_value: float) -> bool:
    """Clamp."""
    return NATIVE.gather(parameters, PARAMETERS).clamp(clip_value)


def scaled(tensors: Sequence[Tensor], factor: float) -> list[Tensor]:
    """Return new tensors: the products."""
    results = [torch.empty_like(tensor) for tensor in tensors]
    NATIVE.gather(list(tensors), READ_ONLY).scale_into(results, factor)
    return results
