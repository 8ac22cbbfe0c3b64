"""The definition of correct: every operation in torch alone, on any device and dtype it has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

EPS = 1e-6
"""Added to the norm before it divides, as in torch."""


def total_norm(
    tensors: Sequence[Tensor],
    norm_type: float,
    *,
    foreach: bool | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the norm of all tensors as one vector, accumulated in float64.

    ``(sum |x|^p)^(1/p)``; the largest ``|x|`` for inf. For p = 0 and p < 0 it is the norm of the
    norms of the single tensors, as in torch.

    Args:
        tensors: floating point or complex tensors of any kind; all DTensors, if any, on one mesh,
            and then as many tensors on each of its ranks.
        norm_type: the p of the p-norm, any float.
        foreach: torch's argument; False takes one tensor at a time.
        dtype: float32 or float64 for the result; None takes float64 if any tensor is float64 or
            complex128, else float32.

    Returns:
        A 0-dim tensor on the first tensor's device, rounded once; 0 without tensors or elements.
        DTensors alone give a replicated DTensor on their mesh, and DTensors beside plain tensors a
        plain tensor: the same bits on every rank of the mesh, and 0 on the others.

    Raises:
        RuntimeError: a tensor is of an integer dtype; ``foreach=True`` on a device without it;
            DTensors on several meshes or of unknown placements.
    """
    tensors = as_plain(tensors)
    check_foreach(tensors, foreach)
    _check_dtypes(tensors)
    # Only for p > 0 may the elements be divided freely.
    is_divisible = norm_type > 0 and foreach is not False
    mesh = _mesh_of(tensors)
    if mesh is not None and is_divisible:
        is_outside = sharded.is_outside(mesh)
        merged = [] if is_outside else [ShardedList(tensors, mesh).total_norm(norm_type)]
        return _norm_of_norms(tensors, merged, norm_type, dtype, mesh)
    held = without_empty(tensors) if mesh is None else tensors
    norms = _part_norms(held, norm_type) if is_divisible else _single_norms(held, norm_type, mesh)
    return _norm_of_norms(tensors, norms, norm_type, dtype, mesh)


def tensor_norms(
    tensors: Sequence[Tensor], norm_type: float, *, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Compute the norm of each tensor, accumulated in float64.

    Args:
        tensors: floating point or complex tensors of any kind; DTensors as for ``total_norm``.
        norm_type: the p of the p-norm, any float.
        dtype: float32 or float64 for the results; None takes float64 for float64 and complex128,
            else float32.

    Returns:
        One 0-dim plain tensor for each, on its device; 0 for a tensor without elements. In a list
        with DTensors the norms are merged over the ranks of their mesh, and a tensor without
        elements there has what changes no norm: 0, or inf for p < 0.

    Raises:
        RuntimeError: a tensor is of an integer dtype; DTensors as for ``total_norm``.
    """
    _check_dtypes(tensors)
    norms = _single_norms(tensors, norm_type, _mesh_of(tensors))
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
    mesh = _mesh_of(tensors)
    # What is empty on this rank may have elements on another.
    held = [
        norm for norm, t in zip(norms, tensors, strict=True) if mesh is not None or t.numel() > 0
    ]
    return _norm_of_norms(tensors, held, norm_type, None, mesh)


def is_outside(tensors: Sequence[Tensor]) -> bool:
    """Return whether the tensors hold DTensors on a mesh that this rank is no part of.

    Args:
        tensors: tensors of any kind; all DTensors, if any, on one mesh.
    """
    if isinstance(tensors, PlainTensors):
        return False
    first = next(filter(sharded.is_dtensor, tensors), None)
    return first is not None and sharded.is_outside(first.device_mesh)


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
        max_norm = max_norm.to(device=total_norm.device, dtype=dtype)
    return torch.clamp(inverse * max_norm, max=1.0)


def nonfinite_positions(grads: Sequence[Tensor]) -> list[int]:
    """Find the gradients that hold inf or nan. Synchronises with their devices.

    Args:
        grads: gradients of any kind; DTensors as for ``total_norm``.

    Returns:
        Their positions in ``grads``, ascending.
    """
    norms = _single_norms(grads, math.inf, _mesh_of(grads))
    return [i for i, norm in enumerate(norms) if not bool(torch.isfinite(norm))]


def _mesh_of(tensors: Sequence[Tensor]) -> DeviceMesh | None:
    return None if isinstance(tensors, PlainTensors) else sharded.mesh_of(tensors)


def _norm_of_norms(
    tensors: Sequence[Tensor],
    norms: Sequence[Tensor],
    norm_type: float,
    dtype: torch.dtype | None,
    mesh: DeviceMesh | None,
) -> Tensor:
    """Merge float64 norms that cover ``tensors`` into the total norm.

    ``mesh``: of the DTensors among them, over whose ranks the norms are merged already.
    """
    dtype = _result_dtype(tensors) if dtype is None else dtype
    device = tensors[0].device if tensors else torch.device("cpu")
    if not norms or (mesh is not None and sharded.is_outside(mesh)):
        return torch.zeros((), dtype=dtype, device=device)
    stacked = torch.stack([norm.to(device if mesh is None else norms[0].device) for norm in norms])
    merged = torch.linalg.vector_norm(stacked, norm_type).to(dtype)
    if mesh is None:
        return merged
    is_of_mesh = all(map(sharded.is_dtensor, tensors))
    return sharded.replicated(merged, mesh) if is_of_mesh else merged.to(device)


def _part_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Compute float64 norms of parts of plain ``tensors``, none of which is empty."""
    return [
        norm
        for group in by_device(tensors).values()
        for norm in upcast.part_norms(group, norm_type)
    ]


def _single_norms(
    tensors: Sequence[Tensor], norm_type: float, mesh: DeviceMesh | None
) -> list[Tensor]:
    """Compute one float64 norm for each tensor, merged over the ranks of ``mesh`` if it is one."""
    if mesh is None:
        return upcast.tensor_norms(as_plain(tensors), norm_type)
    if sharded.is_outside(mesh):
        return [torch.zeros((), dtype=torch.float64, device=t.device) for t in tensors]
    return list(ShardedList(tensors, mesh).tensor_norms(norm_type).unbind(0))


def _result_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    dtypes = dtypes_of(tensors)
    is_wide = torch.float64 in dtypes or torch.complex128 in dtypes
    return torch.float64 if is_wide else torch.float32


def _check_dtypes(tensors: Sequence[Tensor]) -> None:
    for dtype in dtypes_of(tensors):
        if not (dtype.is_floating_point or dtype.is_complex):
            torch.linalg.vector_norm(torch.empty(0, dtype=dtype))  # raises torch's error
