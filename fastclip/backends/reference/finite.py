"""The flag ``found_inf``: whether gradients hold inf or nan, found without waiting for a device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors import are_plain, as_plain, by_device
from . import upcast


def flag_of(
    tensors: Sequence[Tensor],
    found_inf: Tensor,
    norm: Tensor | None = None,
    norm_type: float = math.nan,
) -> Tensor:
    """Return whether ``found_inf`` is set, or an element of ``tensors`` is inf or nan.

    Args:
        tensors: of any kind except DTensor.
        found_inf: as in ``ClipRequest``; it is not written.
        norm: the float64 norm of all tensors, if it is known. If the host can read it without
            waiting and it is finite, nothing else is read.
        norm_type: its p.

    Returns:
        A 0-dim bool tensor on the device of ``found_inf``.
    """
    is_set = found_inf.reshape(()) != 0
    # For p <= 0 an inf may vanish in the norm.
    if norm is not None and norm_type > 0 and is_readable(norm) and math.isfinite(norm.item()):
        return is_set
    for group in by_device([part for t in tensors for part in _real_parts(t)]).values():
        maxima = torch.stack(upcast.part_norms(as_plain(group), math.inf))
        is_set = is_set | (~torch.isfinite(maxima).all()).to(found_inf.device)
    return is_set


def set_flag(found_inf: Tensor | None, flag: Tensor | None) -> None:
    """Set ``found_inf`` to 1 if ``flag`` is set; never clear it. Either may be None."""
    if found_inf is not None and flag is not None:
        found_inf.masked_fill_(flag.to(found_inf.device), 1.0)


def is_readable(scalar: Tensor) -> bool:
    """Return whether the host can read a tensor without waiting: a plain one on the CPU."""
    return are_plain([scalar]) and scalar.is_cpu


def _real_parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that store the elements, without empty ones and integers.

    Complex values are viewed as real ones, because the magnitude of a finite one may be inf.
    """
    parts: list[Tensor] = []
    for part in upcast.stored_parts(tensor):
        if part.numel() == 0:
            continue
        if part.is_complex():
            parts.append(torch.view_as_real(_without_conjugation(part)))
        elif part.is_floating_point():
            parts.append(part)
    return parts


def _without_conjugation(values: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return values.resolve_conj()  # whether it is a conjugate view cannot be traced
    return values.conj() if values.is_conj() else values  # no copy
