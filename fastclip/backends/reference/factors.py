"""What gradients are multiplied by, and when they are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import TypeIs

from ..request import Coefficient, Factor
from ..tensors import clip_coefficient
from . import upcast
from .gradients import FoundGradients
from .sharded import whole


class Multiplier(NamedTuple):
    """What gradients are multiplied by, ``by * inv_scale``, and when they are left alone.

    They are left alone if ``by >= 1`` and ``inv_scale`` is 1, and if ``found_inf`` is set.

    Attributes:
        by: a number, or a 0-dim float32 or float64 tensor. The product is taken in its dtype; a
            number counts as float64.
        inv_scale, found_inf: as in ``ClipRequest``.
        is_clip_coef: whether ``by`` is at most 1.
    """

    by: float | Tensor
    inv_scale: Tensor | None = None
    found_inf: Tensor | None = None
    is_clip_coef: bool = False

    def leaves_all(self) -> bool:
        """Return whether it is known, without reading from a device, that nothing is written."""
        if torch.compiler.is_compiling() or isinstance(self.by, Tensor):
            return False
        return self.by >= 1 and self.inv_scale is None

    def may_leave(self) -> bool:
        """Return whether a factor of 1 may stand for gradients that are left alone."""
        return self.found_inf is not None or not self.is_clip_coef

    def factor(self, device: torch.device, *, always: bool = False) -> Tensor:
        """Return the product on a device, or 1 where gradients are left alone: 0-dim.

        The host does not read it, so that it does not wait for the device.

        Args:
            device: where the product is to lie.
            always: return the product even where gradients would be left alone.
        """
        if isinstance(self.by, Tensor):
            coef = self.by.to(device)
        else:
            coef = torch.full((), self.by, dtype=upcast.real_dtype(device), device=device)
        factor, is_left = coef, None
        if self.inv_scale is not None:
            inv_scale = self.inv_scale.reshape(()).to(device, coef.dtype)
            factor, is_left = coef * inv_scale, inv_scale == 1
        if always:
            return factor
        if not self.is_clip_coef:
            is_left = coef >= 1 if is_left is None else is_left & (coef >= 1)
            factor = torch.where(is_left, torch.ones_like(factor), factor)
        if self.found_inf is not None:
            is_found = self.found_inf.reshape(()).to(device) != 0
            factor = torch.where(is_found, torch.ones_like(factor), factor)
        return factor


def whole_coefficient(by: Coefficient) -> Coefficient:
    """Return a coefficient whose DTensors have become plain tensors.

    Call it even if there are no gradients: another rank may wait for this one's part of a DTensor.
    """
    max_norm = whole(by.max_norm) if isinstance(by.max_norm, Tensor) else by.max_norm
    return Coefficient(max_norm, whole(by.total_norm))


def multiplier_of(
    by: float | Tensor | Coefficient,
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    foreach: bool | None,
) -> Multiplier:
    """Return what all gradients are multiplied by.

    Args:
        by: as in ``Factor``; without DTensors.
        inv_scale, found_inf: as in ``ClipRequest``.
        foreach: torch's argument.

    Raises:
        TypeError: a norm is no tensor.
        RuntimeError: a norm is not 0-dim, in torch's words.
        ValueError: a tensor to multiply by is not 0-dim, or neither float32 nor float64.
    """
    if isinstance(by, Coefficient):
        clip_coef = clip_coefficient(by.max_norm, by.total_norm)
        return Multiplier(_as_scalar(clip_coef, foreach), inv_scale, found_inf, is_clip_coef=True)
    if not isinstance(by, Tensor):
        return Multiplier(float(by), inv_scale, found_inf)
    if by.dim() != 0:
        raise ValueError(
            f"fastclip: a tensor to multiply by must be 0-dim (got {by.dim()} dimensions)"
        )
    _check_dtype(by)
    return Multiplier(by, inv_scale, found_inf)


def multipliers_of(
    by: Sequence[Tensor],
    found: FoundGradients,
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
) -> list[Multiplier]:
    """Return what each of the distinct gradients is multiplied by.

    Args:
        by: coefficients, laid out like ``Sums.parts``.
        found: the gradients.
        inv_scale, found_inf: as in ``ClipRequest``.

    Raises:
        ValueError: they are laid out differently, or are neither float32 nor float64.
    """
    parts = found.parts()
    if len(by) != len(parts):
        raise ValueError(
            f"fastclip: coefficients must be {len(parts)} tensors, one for each device of the list "
            f"(got {len(by)})"
        )
    multipliers: dict[int, Multiplier] = {}
    for coefs, positions in zip(by, parts, strict=True):
        _check_dtype(coefs)
        if coefs.dim() != 1 or coefs.numel() != len(positions):
            raise ValueError(
                f"fastclip: coefficients must be vectors, one element for each gradient (got shape "
                f"{tuple(coefs.shape)} for {len(positions)})"
            )
        for coef, position in zip(coefs.unbind(), positions, strict=True):
            if position is not None:
                multipliers[position] = Multiplier(coef, inv_scale, found_inf)
    return [multipliers[position] for position in range(len(found.distinct))]


def is_sequence(by: Factor) -> TypeIs[Sequence[Tensor]]:
    """Return whether there is a coefficient for each gradient."""
    return isinstance(by, Sequence) and not isinstance(by, (str, Coefficient))


def _check_dtype(coefs: Tensor) -> None:
    if coefs.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"fastclip: tensors to multiply by must be float32 or float64 (got {coefs.dtype})"
        )


def _as_scalar(clip_coef: Tensor, foreach: bool | None) -> Tensor:
    if clip_coef.dim() == 0:
        return clip_coef
    if foreach is False and clip_coef.numel() == 1:
        return clip_coef.reshape(())  # torch multiplies one tensor at a time by any shape
    raise RuntimeError(
        f"scalar tensor expected to be 0 dim but it has {clip_coef.dim()} dimensions and "
        f"{clip_coef.numel()} elements."
    )
