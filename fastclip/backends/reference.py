"""The definition of correct: every operation in torch alone, on any device and dtype it has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import sharded, upcast
from .checks import PlainTensors, as_plain, by_device, dtypes_of, without_empty
from .checks import check_foreach as check_foreach
from .checks import check_writable as check_writable
from .checks import identity as identity
from .checks import unique_gradients as unique_gradients
from .scaling import clamp_ as clamp_
from .scaling import scale_ as scale_
from .sharded import ShardedList
from .sharded import whole as whole

EPS = 1e-6
"""Added to the norm before it divides, as in torch."""


def total_norm(
    tensors: Sequence[Tensor],
    norm_type: float,
    *,
    foreach: bool | None = None,
    dtype: torch.dtype | None = None,
    sharded_list: ShardedList | None = None,
) -> Tensor:
    """Compute the norm of all tensors as one vector, accumulated in float64.

    ``(sum |x|^p)^(1/p)``; the largest ``|x|`` for inf. For p = 0 and p < 0 it is the norm of the
    norms of the single tensors, as in torch.

    Args:
        tensors: floating point or complex tensors of any kind; all DTensors, if any, on one mesh.
        norm_type: the p of the p-norm, any float.
        foreach: torch's argument; False takes one tensor at a time.
        dtype: float32 or float64 for the result; None takes float64 if any tensor is float64 or
            complex128, else float32.
        sharded_list: the tensors as the ranks of a mesh hold them; None where it is made of
            ``tensors``, of which there must be as many on every rank then.

    Returns:
        A 0-dim tensor on the first tensor's device, rounded once; 0 without tensors or elements.
        In a sharded list the norm of what all ranks have, the same bits on each: a replicated
        DTensor on the mesh, or a plain tensor if there are plain tensors.

    Raises:
        RuntimeError: a tensor is of an integer dtype; ``foreach=True`` on a device without it;
            DTensors on several meshes or of unknown placements.
    """
    tensors = as_plain(tensors)
    check_foreach(tensors, foreach)
    _check_dtypes(tensors)
    # Only for p > 0 may the elements be divided freely.
    is_divisible = norm_type > 0 and foreach is not False
    if sharded_list is None and not isinstance(tensors, PlainTensors):
        sharded_list = sharded.list_of_tensors(tensors)
    if sharded_list is None:
        held = without_empty(tensors)
        norms = _part_norms(held, norm_type) if is_divisible else _single_norms(held, norm_type)
        return _norm_of_norms(tensors, norms, norm_type, dtype)
    if is_divisible:
        return _as_result(sharded_list.total_norm(norm_type), tensors, dtype, sharded_list)
    return merge_slots(sharded_list.slot_norms(norm_type), tensors, norm_type, sharded_list, dtype)


def tensor_norms(
    tensors: Sequence[Tensor], norm_type: float, *, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Compute the norm of each tensor, accumulated in float64.

    Args:
        tensors: floating point or complex tensors of any kind except DTensor.
        norm_type: the p of the p-norm, any float.
        dtype: float32 or float64 for the results; None takes float64 for float64 and complex128,
            else float32.

    Returns:
        One 0-dim tensor for each, on its device; 0 for a tensor without elements.

    Raises:
        RuntimeError: a tensor is of an integer dtype.
    """
    _check_dtypes(tensors)
    norms = _single_norms(tensors, norm_type)
    if dtype == torch.float64 and isinstance(tensors, PlainTensors):
        return norms
    return [
        norm.to(_result_dtype([t]) if dtype is None else dtype)
        for norm, t in zip(norms, tensors, strict=True)
    ]


def merge_norms(tensors: Sequence[Tensor], norms: Sequence[Tensor], norm_type: float) -> Tensor:
    """Compute the total norm from ``tensor_norms(tensors, norm_type, dtype=torch.float64)``.

    Args:
        tensors: the tensors that the norms are of.
        norms: 0-dim float64 norms, one for each tensor.
        norm_type: the p of the p-norm, any float.

    Returns:
        As ``total_norm``.
    """
    held = [norm for norm, t in zip(norms, tensors, strict=True) if t.numel() > 0]
    return _norm_of_norms(tensors, held, norm_type, None)


def merge_slots(
    norms: Tensor,
    tensors: Sequence[Tensor],
    norm_type: float,
    sharded_list: ShardedList,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the total norm from ``sharded_list.slot_norms(norm_type)``.

    Args:
        norms: float64 norms, shape (number of slots,).
        tensors: what this rank has of the list.
        norm_type: the p of the p-norm, any float.
        sharded_list: the list.
        dtype: as for ``total_norm``.

    Returns:
        As ``total_norm``.
    """
    merged = torch.linalg.vector_norm(norms, norm_type)
    return _as_result(merged, tensors, dtype, sharded_list)


def clip_coefficient(max_norm: float | Tensor, total_norm: Tensor) -> Tensor:
    """Compute the factor that brings ``total_norm`` down to ``max_norm``.

    ``min(1, (1 / (total_norm + 1e-6)) * max_norm)``; NaN stays NaN.

    Args:
        max_norm: the largest norm that the gradients keep, a number or a 0-dim tensor.
        total_norm: the norm of the gradients.

    Returns:
        A plain tensor of the shape and device of ``total_norm``, float64 if that is, else float32.

    Raises:
        TypeError: ``total_norm`` is no tensor.
    """
    if not isinstance(total_norm, Tensor):
        torch.clamp(total_norm, max=1.0)  # raises torch's TypeError
    total_norm = whole(total_norm)
    dtype = torch.promote_types(total_norm.dtype, torch.float32)
    inverse = (total_norm.to(dtype) + EPS).reciprocal()
    if isinstance(max_norm, Tensor):
        max_norm = whole(max_norm).to(device=total_norm.device, dtype=dtype)
    return torch.clamp(inverse * max_norm, max=1.0)


def nonfinite_positions(
    grads: Sequence[Tensor | None], sharded_list: ShardedList | None = None
) -> list[int]:
    """Find the gradients that hold inf or nan. Synchronises with their devices.

    Args:
        grads: gradients of any kind, or None.
        sharded_list: as for ``total_norm``: then those are found that hold it on any rank.

    Returns:
        Their positions in ``grads``, ascending.
    """
    places = [i for i, grad in enumerate(grads) if grad is not None]
    held = [grad for grad in grads if grad is not None]
    if sharded_list is not None:
        places = sharded_list.places
    else:
        sharded_list = sharded.list_of_tensors(held)
    if sharded_list is not None:
        is_finite = torch.isfinite(sharded_list.slot_norms(math.inf)).tolist()
    else:
        is_finite = [bool(torch.isfinite(norm)) for norm in _single_norms(held, math.inf)]
    return [i for i, finite in zip(places, is_finite, strict=True) if not finite]


def _norm_of_norms(
    tensors: Sequence[Tensor],
    norms: Sequence[Tensor],
    norm_type: float,
    dtype: torch.dtype | None,
) -> Tensor:
    """Merge float64 norms that cover ``tensors`` into the total norm."""
    dtype = _result_dtype(tensors) if dtype is None else dtype
    device = tensors[0].device if tensors else torch.device("cpu")
    if not norms:
        return torch.zeros((), dtype=dtype, device=device)
    stacked = torch.stack([norm.to(device) for norm in norms])
    return torch.linalg.vector_norm(stacked, norm_type).to(dtype)


def _as_result(
    norm: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype | None, sharded_list: ShardedList
) -> Tensor:
    """Convert the float64 norm of a sharded list, of which this rank has ``tensors``."""
    norm = norm.to(_result_dtype(tensors) if dtype is None else dtype)
    if all(map(sharded.is_dtensor, tensors)):
        return sharded_list.replicated(norm)
    return norm.to(tensors[0].device)


def _part_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Compute float64 norms of parts of ``tensors``, none of which is empty."""
    return [
        norm
        for group in by_device(tensors).values()
        for norm in upcast.part_norms(group, norm_type)
    ]


def _single_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Compute one float64 norm for each tensor."""
    return upcast.tensor_norms(as_plain(tensors), norm_type)


def _result_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    dtypes = dtypes_of(tensors)
    is_wide = torch.float64 in dtypes or torch.complex128 in dtypes
    return torch.float64 if is_wide else torch.float32


def _check_dtypes(tensors: Sequence[Tensor]) -> None:
    for dtype in dtypes_of(tensors):
        if not (dtype.is_floating_point or dtype.is_complex):
            torch.linalg.vector_norm(torch.empty(0, dtype=dtype))  # raises torch's error
