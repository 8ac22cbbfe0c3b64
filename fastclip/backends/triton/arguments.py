"""The arguments of operations as kernels read them: numbers, or tensors on the list's device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import Reason, ReasonKind, RefusedError
from ..request import ClipRequest, Coefficient, Factor
from ..tensors import are_plain, clip_coefficient
from .packing import PackedList, device_of
from .torch_list import DTYPES


class Scalars(NamedTuple):
    """The two tensors that every operation may take, on the list's device."""

    inv_scale: Tensor | None
    found_inf: Tensor | None


class Multiplier(NamedTuple):
    """What gradients are multiplied by: the first of the tensors that is given, else ``number``.

    Attributes:
        each: a coefficient for each tensor of the list.
        one: a coefficient for all, 0-dim.
        total_norm: a norm, 0-dim, whose coefficient follows from it and ``max_norm``.
        max_norm: a number, or 0-dim.
        number: a coefficient for all.
        is_float64: the dtype of the coefficient, float64 or float32, and of the tensors above.
    """

    each: Tensor | None = None
    one: Tensor | None = None
    total_norm: Tensor | None = None
    max_norm: float | Tensor = math.inf
    number: float = 1.0
    is_float64: bool = True


def norm_dtype(packed: PackedList, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a list's norm: the given one, else float64 if a gradient has it."""
    if dtype is not None:
        return dtype
    return torch.float64 if packed.has_float64 else torch.float32


def check_norm_type(norm_type: float) -> None:
    """Raise ``RefusedError`` for a norm that kernels do not know."""
    if not norm_type > 0:
        raise _refusal(f"norm_type {norm_type} (supported: above 0, and inf)")


def check_clip_value(packed: PackedList, clip_value: float) -> None:
    """Raise ``RefusedError`` for limits that torch treats specially.

    torch refuses a finite bound that a gradient's dtype cannot hold, and has its own rules for
    negative and NaN bounds. The reference backend follows it.
    """
    if math.copysign(1.0, clip_value) < 0 or math.isnan(clip_value):
        raise _refusal("clip_value must not be negative or nan")
    if math.isinf(clip_value):
        return
    for code, dtype in enumerate(DTYPES):
        if packed.mix & 1 << code and clip_value > torch.finfo(dtype).max:
            raise _refusal(f"clip_value does not fit {str(dtype).removeprefix('torch.')}")


def check_total(total: Tensor) -> None:
    """Check the sum of one list or of several.

    Raises:
        ValueError: it has another shape or dtype than that of ``Sums``.
        RefusedError: kernels cannot read it.
    """
    if total.dim() != 0 or total.dtype != torch.float64:
        raise ValueError(
            "fastclip: total must be a 0-dim float64 tensor "
            f"(got {total.dtype}, shape {tuple(total.shape)})"
        )
    if not _is_readable(total):
        raise _refusal(
            f"total is on device {total.device} (supported: plain tensors on cpu and cuda)"
        )


def check_factor(by: Factor) -> None:
    """Raise ``RefusedError`` for what no kernel can read, whatever the gradients are."""
    if isinstance(by, Coefficient) and not _is_plain_scalar(by.total_norm):
        raise _refusal("total_norm must be a plain 0-dim floating-point tensor")


def request_for(packed: PackedList, request: ClipRequest) -> ClipRequest:
    """Return a request as a list's kernels read it: its tensors on the list's device.

    Raises:
        RefusedError: kernels cannot read one of them.
    """
    has_scalars = request.inv_scale is not None or request.found_inf is not None
    if type(request.max_norm) is float and not has_scalars:
        return request
    inv_scale, found_inf = scalars_for(packed, request.inv_scale, request.found_inf)
    max_norm = max_norm_for(packed, request.max_norm)
    return request._replace(max_norm=max_norm, inv_scale=inv_scale, found_inf=found_inf)


def scalars_for(packed: PackedList, inv_scale: Tensor | None, found_inf: Tensor | None) -> Scalars:
    """Return the tensors that every operation may take, as a list's kernels read them.

    Args:
        packed: the list.
        inv_scale, found_inf: tensors that have passed ``check_scalars``.

    Raises:
        RefusedError: kernels cannot read one of them, or ``found_inf`` is on another device.
    """
    device = device_of(packed)
    inv_scale = inv_scale_on(device, inv_scale)
    if found_inf is not None and (found_inf.device != device or not _is_readable(found_inf)):
        raise _refusal(
            f"found_inf is on device {found_inf.device} (supported: a plain tensor on {device})"
        )
    if inv_scale is not None:
        inv_scale = _copy_if_held(inv_scale, packed)
    return Scalars(inv_scale, found_inf)


def inv_scale_on(device: torch.device, inv_scale: Tensor | None) -> Tensor | None:
    """Return ``inv_scale`` on a device.

    Raises:
        RefusedError: kernels cannot read it.
    """
    if inv_scale is None:
        return None
    if not _is_readable(inv_scale):
        raise _refusal(
            f"inv_scale is on device {inv_scale.device} (supported: plain tensors on cpu and cuda)"
        )
    return inv_scale.detach().to(device)


def max_norm_for(packed: PackedList, max_norm: float | Tensor) -> float | Tensor:
    """Return ``max_norm`` as a list's kernels read it, without waiting for a GPU."""
    limit = max_norm_on(device_of(packed), max_norm)
    return _copy_if_held(limit, packed) if isinstance(limit, Tensor) else limit


def max_norm_on(device: torch.device, max_norm: float | Tensor) -> float | Tensor:
    """Return a number as it is, or a tensor on a GPU, which only a device of that kind can read.

    Raises:
        RefusedError: it is on a device that kernels cannot reach.
    """
    if not isinstance(max_norm, Tensor):
        return max_norm
    if device.type == "cpu" or not max_norm.is_cuda or not _is_plain_scalar(max_norm):
        raise _refusal(
            f"max_norm is on device {max_norm.device} (supported: cpu, and for gradients on "
            "cuda a plain 0-dim floating-point tensor there)"
        )
    return max_norm.detach()


def multiplier_for(packed: PackedList, by: Factor) -> Multiplier:
    """Return a factor as a list's kernels read it.

    Raises:
        ValueError: coefficients of another shape or dtype than ``Factor`` has.
        RefusedError: kernels cannot read a tensor.
    """
    if isinstance(by, Coefficient):
        return _coefficient_for(packed, by.max_norm, by.total_norm.detach())
    if isinstance(by, Tensor):
        return _tensor_for(packed, by)
    if isinstance(by, Sequence):
        return _tensors_for(packed, by)
    return Multiplier(number=float(by))


def _coefficient_for(
    packed: PackedList, max_norm: float | Tensor, total_norm: Tensor
) -> Multiplier:
    limit = max_norm_for(packed, max_norm)
    dtype = torch.promote_types(total_norm.dtype, torch.float32)
    is_float64 = dtype == torch.float64
    if total_norm.is_cpu and packed.device >= 0 and not isinstance(limit, Tensor):
        number = float(clip_coefficient(limit, total_norm))
        return Multiplier(number=number, is_float64=is_float64)
    device = device_of(packed)
    norm = _copy_if_held(total_norm, packed).to(device, dtype)
    if isinstance(limit, Tensor):
        limit = limit.to(device, dtype)
    return Multiplier(total_norm=norm, max_norm=limit, is_float64=is_float64)


def _tensor_for(packed: PackedList, by: Tensor) -> Multiplier:
    if by.dim() != 0 or by.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "fastclip: a tensor to multiply by must be 0-dim, float32 or float64 "
            f"(got {by.dtype}, shape {tuple(by.shape)})"
        )
    _check_readable(by)
    is_float64 = by.dtype == torch.float64
    if by.is_cpu and packed.device >= 0:
        return Multiplier(number=float(by.detach()), is_float64=is_float64)
    one = _copy_if_held(by.detach(), packed).to(device_of(packed))
    return Multiplier(one=one, is_float64=is_float64)


def _tensors_for(packed: PackedList, by: Sequence[Tensor]) -> Multiplier:
    if len(by) != 1:
        raise ValueError(
            f"fastclip: coefficients must be one tensor for a list on one device (got {len(by)})"
        )
    each = by[0]
    is_known = each.dtype in (torch.float32, torch.float64) and each.shape == (packed.size,)
    if not is_known or not each.is_contiguous():
        raise ValueError(
            f"fastclip: coefficients must be a contiguous vector of {packed.size}, float32 or "
            f"float64 (got {each.dtype}, shape {tuple(each.shape)})"
        )
    _check_readable(each)
    is_float64 = each.dtype == torch.float64
    return Multiplier(each=each.detach().to(device_of(packed)), is_float64=is_float64)


def _is_plain_scalar(tensor: Tensor) -> bool:
    """Return whether a kernel can read a tensor's value, perhaps after a move to its device."""
    is_scalar = isinstance(tensor, Tensor) and tensor.dim() == 0 and tensor.dtype in DTYPES
    return is_scalar and _is_readable(tensor)


def _is_readable(tensor: Tensor) -> bool:
    """Return whether a tensor's memory holds its values, on a device that kernels reach."""
    if not are_plain([tensor]) or not (tensor.is_cpu or tensor.is_cuda):
        return False
    return not tensor.is_neg() and not tensor._is_zerotensor()


def _check_readable(coefficients: Tensor) -> None:
    if not _is_readable(coefficients):
        raise _refusal(
            f"a coefficient is on device {coefficients.device} (supported: plain tensors on cpu "
            "and cuda)"
        )


def _copy_if_held(scalar: Tensor, packed: PackedList) -> Tensor:
    """Return a scalar that no kernel writes while others read it: a copy if a gradient holds it."""
    return scalar.clone() if packed.holds(scalar.data_ptr()) else scalar


def _refusal(text: str) -> RefusedError:
    return RefusedError([Reason(ReasonKind.CALL, text)])
