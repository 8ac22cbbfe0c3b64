"""The definition of correct: every operation in torch alone, on any device and dtype it has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._foreach_utils import _device_has_foreach_support

from . import sharded, upcast
from .checks import are_plain
from .checks import check_foreach as check_foreach
from .checks import check_writable as check_writable
from .checks import identity as identity
from .checks import unique_gradients as unique_gradients
from .sharded import whole as whole

EPS = 1e-6
"""Added to the norm before it divides, as in torch."""

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_SCALABLE = (*_SIXTEEN_BIT, torch.float32, torch.float64, torch.complex64, torch.complex128)


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
        tensors: floating point or complex tensors of any kind; all DTensors, if any, on one mesh.
        norm_type: the p of the p-norm, any float.
        foreach: torch's argument; False takes one tensor at a time.
        dtype: float32 or float64 for the result; None takes float64 if any tensor is float64 or
            complex128, else float32.

    Returns:
        A 0-dim tensor on the first tensor's device, rounded once; 0 without tensors or elements;
        for DTensors, a replicated DTensor on their mesh.

    Raises:
        RuntimeError: a tensor is of an integer dtype, or ``foreach=True`` on a device without it.
    """
    check_foreach(tensors, foreach)
    _check_dtypes(tensors)
    held = [t for t in tensors if t.numel() > 0]
    # Only for p > 0 may the elements be divided freely.
    is_divisible = norm_type > 0 and foreach is not False
    norms = _part_norms(held, norm_type) if is_divisible else _single_norms(held, norm_type)
    return _norm_of_norms(tensors, norms, norm_type, dtype)


def tensor_norms(
    tensors: Sequence[Tensor], norm_type: float, *, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Compute the norm of each tensor, accumulated in float64.

    Args:
        tensors: floating point or complex tensors of any kind.
        norm_type: the p of the p-norm, any float.
        dtype: float32 or float64 for the results; None takes float64 for float64 and complex128,
            else float32.

    Returns:
        One 0-dim tensor for each, on its device; 0 for a tensor without elements.

    Raises:
        RuntimeError: a tensor is of an integer dtype.
    """
    _check_dtypes(tensors)
    return [
        norm.to(_result_dtype([t]) if dtype is None else dtype)
        for norm, t in zip(_single_norms(tensors, norm_type), tensors, strict=True)
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


def clip_coefficient(max_norm: float | Tensor, total_norm: Tensor) -> Tensor:
    """Compute the factor that brings ``total_norm`` down to ``max_norm``.

    ``min(1, (1 / (total_norm + 1e-6)) * max_norm)``; NaN stays NaN.

    Args:
        max_norm: the largest norm that the gradients keep, a number or a 0-dim tensor.
        total_norm: the norm of the gradients.

    Returns:
        A tensor of the shape and device of ``total_norm``, float64 if that is, else float32.

    Raises:
        TypeError: ``total_norm`` is no tensor.
    """
    if not isinstance(total_norm, Tensor):
        torch.clamp(total_norm, max=1.0)  # raises torch's TypeError
    dtype = torch.promote_types(total_norm.dtype, torch.float32)
    inverse = (total_norm.to(dtype) + EPS).reciprocal()
    if isinstance(max_norm, Tensor):
        max_norm = max_norm.to(device=total_norm.device, dtype=dtype)
    return torch.clamp(inverse * max_norm, max=1.0)


def scale_(grads: Sequence[Tensor], clip_coef: Tensor, *, foreach: bool | None = None) -> None:
    """Multiply every gradient in place by ``clip_coef``, after checking all of them.

    CPU gradients are not written when the coefficient is 1 or more; reading it there costs
    nothing. Elsewhere reading it would make the host wait, so they are always multiplied. 16-bit
    gradients are multiplied by the coefficient as it is and rounded once. Every gradient's version
    goes up, as it does in torch.

    Args:
        grads: gradients of any kind, each once.
        clip_coef: 0-dim, float32 or float64.
        foreach: torch's argument; False takes one gradient at a time.

    Raises:
        RuntimeError: a gradient cannot be written, ``clip_coef`` is not 0-dim, or ``foreach=True``
            on a device without it; nothing has been written.
    """
    check_foreach(grads, foreach)
    clip_coef = _as_scalar(clip_coef, foreach)
    targets = [_written_tensor(grad) for grad in grads]
    check_writable(targets)
    groups = _by_device_and_dtype(targets)
    for (device, dtype), _ in groups.items():
        if dtype not in _SCALABLE:
            # Raises torch's own error for what it cannot scale, while nothing is written.
            torch.empty(0, dtype=dtype, device=device).mul_(clip_coef.to(device))
    for (device, dtype), group in groups.items():
        _scale_group_(group, clip_coef.to(device), dtype, foreach)
    wrappers = [grad for grad, target in zip(grads, targets, strict=True) if grad is not target]
    if wrappers:
        torch.autograd.graph.increment_version(wrappers)


def clamp_(grads: Sequence[Tensor], clip_value: float, *, foreach: bool | None = None) -> None:
    """Clamp every gradient in place to [-clip_value, clip_value], after checking all of them.

    ``grad = min(max(grad, -clip_value), clip_value)``; NaN stays NaN.

    Args:
        grads: real gradients of any kind.
        clip_value: the largest magnitude kept.
        foreach: torch's argument; False takes one gradient at a time.

    Raises:
        NotImplementedError: a gradient is complex or sparse.
        RuntimeError: a gradient cannot be written or cannot hold ``clip_value``, or
            ``foreach=True`` on a device without it; nothing has been written.
    """
    check_foreach(grads, foreach)
    targets = [sharded.local(grad) for grad in grads]
    check_writable(targets)
    for device, dtype in _by_device_and_dtype(targets):
        # Raises torch's own error for what it cannot clamp or a limit that does not fit the dtype.
        torch.empty(0, dtype=dtype, device=device).clamp_(-clip_value, clip_value)
    # Tensors that are not strided go first: torch clamps none of them and says so.
    for target in sorted(targets, key=lambda t: t.layout is torch.strided):
        target.clamp_(-clip_value, clip_value)
    wrappers = [grad for grad, target in zip(grads, targets, strict=True) if grad is not target]
    if wrappers:
        torch.autograd.graph.increment_version(wrappers)


def nonfinite_positions(grads: Sequence[Tensor]) -> list[int]:
    """Find the gradients that hold inf or nan. Synchronises with their devices.

    Args:
        grads: gradients of any kind.

    Returns:
        Their positions in ``grads``, ascending.
    """
    norms = _single_norms(grads, math.inf)
    return [i for i, norm in enumerate(norms) if not bool(torch.isfinite(norm))]


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


def _part_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Compute float64 norms of parts of ``tensors``, none of which is empty."""
    norms: list[Tensor] = []
    for shards in sharded.by_sharding(tensors):
        held = [t for t in shards.tensors if t.numel() > 0]
        parts = upcast.part_norms(held, norm_type)
        merged = upcast.merge_slices(torch.stack(parts), norm_type) if parts else None
        norms.extend(shards.merge([merged], norm_type))
    plain = [t for t in tensors if not sharded.is_dtensor(t)]
    for device in {t.device: None for t in plain}:
        group = [t for t in plain if t.device == device]
        norms.extend(upcast.part_norms(group, norm_type))
    return norms


def _single_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Compute one float64 norm for each tensor."""
    norms = {
        i: upcast.tensor_norm(t, norm_type)
        for i, t in enumerate(tensors)
        if not sharded.is_dtensor(t)
    }
    for shards in sharded.by_sharding(tensors):
        held = [upcast.tensor_norm(t, norm_type) if t.numel() else None for t in shards.tensors]
        norms.update(zip(shards.positions, shards.merge(held, norm_type), strict=True))
    return [norms[i] for i in range(len(tensors))]


def _result_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    is_wide = any(t.dtype in (torch.float64, torch.complex128) for t in tensors)
    return torch.float64 if is_wide else torch.float32


def _check_dtypes(tensors: Sequence[Tensor]) -> None:
    for t in {t.dtype: t for t in tensors}.values():
        if not (t.is_floating_point() or t.is_complex()):
            torch.linalg.vector_norm(t)  # raises torch's error for a dtype that has no norm


def _as_scalar(clip_coef: Tensor, foreach: bool | None) -> Tensor:
    clip_coef = whole(clip_coef)
    if clip_coef.dim() == 0:
        return clip_coef
    if foreach is False and clip_coef.numel() == 1:
        return clip_coef.reshape(())  # torch multiplies one tensor at a time by any shape
    raise RuntimeError(
        f"scalar tensor expected to be 0 dim but it has {clip_coef.dim()} dimensions and "
        f"{clip_coef.numel()} elements."
    )


def _written_tensor(grad: Tensor) -> Tensor:
    """Return the strided tensor that holds the elements of ``grad``."""
    if grad.layout is torch.sparse_coo:
        return grad._values()  # scaling the terms of a sum scales the sum
    return upcast.stored_values(sharded.local(grad))


def _by_device_and_dtype(
    tensors: Sequence[Tensor],
) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for t in tensors:
        groups.setdefault((t.device, t.dtype), []).append(t)
    return groups


def _scale_group_(
    group: Sequence[Tensor], clip_coef: Tensor, dtype: torch.dtype, foreach: bool | None
) -> None:
    """Scale tensors of one device and dtype."""
    is_plain = are_plain([*group, clip_coef])
    on_cpu = clip_coef.is_cpu and not torch.compiler.is_compiling()
    if is_plain and on_cpu and bool(clip_coef >= 1):
        torch.autograd.graph.increment_version(group)
    elif dtype in _SIXTEEN_BIT and not on_cpu:
        upcast.scale_rounded_once_(group, clip_coef.to(torch.float32))
    elif is_plain and foreach is not False and _can_scale_together(group, clip_coef.device):
        torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
            list(group), clip_coef
        )
    else:
        for grad in group:
            grad.mul_(clip_coef)


def _can_scale_together(group: Sequence[Tensor], device: torch.device) -> bool:
    # torch's foreach operations refuse to write to conjugate and negative views.
    is_lazy = any(map(Tensor.is_neg, group)) or any(map(Tensor.is_conj, group))
    return _device_has_foreach_support(device) and not is_lazy
