"""The definition of a correct norm: in torch alone, on any device and dtype that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..tensors import (
    PlainTensors,
    as_plain,
    by_device,
    check_foreach,
    dtypes_of,
    is_dtensor,
    without_empty,
)
from . import upcast
from .finite import flag_of
from .gradients import FoundGradients
from .sharded import replicated

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Measured(NamedTuple):
    """What one pass over gradients found.

    Attributes:
        norm: the norm of all of them in float64: 0-dim, a plain tensor.
        norms: the norm of each in float64: 0-dim ones in the order of ``FoundGradients.distinct``,
            or, for a sharded list, one tensor with an element for each slot. None unless asked for.
        flag: whether ``found_inf`` is set, 0-dim; None unless asked for.
    """

    norm: Tensor
    norms: Sequence[Tensor] | Tensor | None
    flag: Tensor | None


def measure(
    found: FoundGradients,
    norm_type: float,
    *,
    foreach: bool | None = None,
    keeps_norms: bool = False,
    found_inf: Tensor | None = None,
) -> Measured:
    """Compute the norm of all gradients as one vector, accumulated in float64.

    ``(sum |x|^p)^(1/p)``; the largest ``|x|`` for inf. For p = 0 and p < 0 it is the norm of the
    norms of the single tensors, as in torch. For a sharded list it is the norm over all ranks, with
    the same bits on each.

    Args:
        found: floating point or complex gradients of any kind.
        norm_type: the p of the p-norm, any float.
        foreach: torch's argument; False takes one tensor at a time.
        keeps_norms: whether the norm of each gradient is needed.
        found_inf: as in ``ClipRequest``; it is not written. None: the flag is not computed.

    Returns:
        What was found, on the first gradient's device or the mesh's.

    Raises:
        RuntimeError: a tensor is of an integer dtype, or ``foreach=True`` on a device without it.
    """
    grads = as_plain(found.distinct)
    check_foreach(grads, foreach)
    check_dtypes(grads)
    # Only for p > 0 may the elements be divided into parts freely.
    is_divisible = norm_type > 0 and foreach is not False and not keeps_norms
    if found.sharded_list is not None:
        if is_divisible:
            merged = found.sharded_list.total_norm(norm_type, found_inf)
            return Measured(merged.norms, None, merged.flag)
        merged = found.sharded_list.slot_norms(norm_type, found_inf)
        norm = torch.linalg.vector_norm(merged.norms, norm_type)
        return Measured(norm, merged.norms, merged.flag)
    norms = None
    if is_divisible:
        parts = _part_norms(without_empty(grads), norm_type)
    else:
        norms = _tensor_norms(grads, norm_type)
        parts = [norm for norm, t in zip(norms, grads, strict=True) if t.numel() > 0]
    norm = _norm_of_norms(parts, norm_type, grads[0].device)
    flag = None
    if found_inf is not None:
        flag = flag_of(grads, found_inf, norm, norm_type)
    return Measured(norm, norms, flag)


class Form(NamedTuple):
    """The dtype and place in which a norm is returned; it is rounded once.

    Attributes:
        dtype: float32 or float64.
        device: that of the first gradient.
        mesh: for a list of DTensors only, the mesh on which the norm is a replicated DTensor; else
            None.
    """

    dtype: torch.dtype
    device: torch.device
    mesh: DeviceMesh | None

    def of(self, norm: Tensor, inv_scale: Tensor | None) -> Tensor:
        """Return the norm of gradients that are multiplied by ``inv_scale``.

        Args:
            norm: the norm of the gradients as they are, in float64, 0-dim.
            inv_scale: as in ``ClipRequest``.
        """
        if inv_scale is not None:
            norm = norm * inv_scale.reshape(()).to(norm.device, norm.dtype).abs()
        norm = norm.to(self.dtype)
        return norm.to(self.device) if self.mesh is None else replicated(norm, self.mesh)


def form_of(found: FoundGradients, dtype: torch.dtype | None) -> Form:
    """Return the form of a list's norm.

    Args:
        found: gradients, at least one of them, or a sharded list.
        dtype: float32 or float64; None takes float64 if any gradient is float64 or complex128, else
            float32.
    """
    if dtype is None:
        dtypes = dtypes_of(found.distinct)
        is_wide = torch.float64 in dtypes or torch.complex128 in dtypes
        dtype = torch.float64 if is_wide else torch.float32
    mesh = None
    if found.sharded_list is not None and all(map(is_dtensor, found.distinct)):
        mesh = found.sharded_list.mesh
        return Form(dtype, torch.device(mesh.device_type), mesh)
    return Form(dtype, found.distinct[0].device, mesh)


def check_dtypes(tensors: Sequence[Tensor]) -> None:
    """Raise torch's own error for tensors of integers, which have no norm."""
    for dtype in dtypes_of(tensors):
        if not (dtype.is_floating_point or dtype.is_complex):
            torch.linalg.vector_norm(torch.empty(0, dtype=dtype))  # raises


def _norm_of_norms(norms: Sequence[Tensor], norm_type: float, device: torch.device) -> Tensor:
    """Merge float64 norms that cover all elements into the norm, on a device."""
    if not norms:
        return torch.zeros((), dtype=upcast.real_dtype(device), device=device)
    stacked = torch.stack([norm.to(device) for norm in norms])
    return torch.linalg.vector_norm(stacked, norm_type)


def _part_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Compute float64 norms of parts of ``tensors``, none of which is empty."""
    return [
        norm
        for group in by_device(tensors).values()
        for norm in upcast.part_norms(group, norm_type)
    ]


def _tensor_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Compute one float64 norm for each tensor, on its device; 0 for one without elements."""
    norms = upcast.tensor_norms(tensors, norm_type)
    if isinstance(tensors, PlainTensors):
        return norms
    return [norm.to(upcast.real_dtype(norm.device)) for norm in norms]
