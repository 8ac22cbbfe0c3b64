"""The mirror of ``torch.nn.utils.clip_grad``: the same names, arguments and results.

Everything beyond torch's own arguments is keyword-only. Where results differ on purpose (float32
norms of 16-bit gradients, no overflow, no write when nothing is clipped, shared gradients counted
once), docs/differences.md says so.
"""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from typing_extensions import deprecated

from .backends import REFERENCE, check_backend, dispatch, is_traced
from .backends.base import Backend, NonFiniteError, nonfinite_message
from .backends.request import (
    PARAMETERS,
    READ_ONLY,
    Coefficient,
    Norms,
    clip_request,
    number_of,
    resolve,
)
from .distributed import clip_fully_sharded, has_shards, is_fully_sharded

Parameters = Tensor | Iterable[Tensor]


def clip_grad_norm_(
    parameters: Parameters,
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Scale gradients in place so that their total norm is at most ``max_norm``.

    ``grad *= min(1, max_norm / (total_norm + 1e-6))``, where ``total_norm`` is the norm of all
    gradients as one vector. Where the coefficient is 1, the native and Triton backends write
    nothing, and neither does the reference backend to gradients on the CPU; it multiplies those on
    other devices. A gradient that several parameters share counts once and is scaled once.

    Args:
        parameters: a tensor or an iterable of tensors (anything with a ``.grad``), of any shapes,
            float dtypes and devices, mixed as you like; walked once. ``.grad`` may be None. Or the
            root FullyShardedDataParallel module, on every rank: its own ``clip_grad_norm_``.
        max_norm: the largest norm that the gradients keep, in the unit of the norm. As in torch,
            negative and NaN values are not refused.
        norm_type: the p of the p-norm: any float, or "inf".
        error_if_nonfinite: raise when the norm is inf or nan, before anything is written.
        foreach: as in torch; False takes the reference backend, one tensor at a time.
        backend: "native", "triton" or "reference" to insist on one; None takes the fastest that
            can run.

    Returns:
        The norm before clipping: 0-dim, no grad, on the first gradient's device; float64 if any
        gradient is float64, else float32. ``torch.tensor(0.0)`` without gradients. For DTensors
        alone it is a replicated DTensor on their mesh, also on a rank that has no gradients. With
        plain tensors among them, which count as copies that every rank has, it is a plain tensor.
        All ranks of the mesh must call.

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite`` is set (the message names
            the gradients by position), or is set while a CUDA graph is captured; a gradient's
            elements share memory; DTensors lie on several meshes, or have a placement of an
            unknown class; or ``backend`` cannot run this.
        ValueError: ``backend`` is unknown, or contradicts ``foreach=False``.
    """
    request = clip_request(max_norm, norm_type, error_if_nonfinite)
    if type(parameters) is not list and is_fully_sharded(parameters):
        if has_shards(parameters):
            return clip_fully_sharded(parameters, request, backend, foreach)
        parameters = parameters.parameters()
    sources = _as_list(parameters, warn_if_empty=True)

    def clip(b: Backend) -> Norms:
        return b.gather(sources, PARAMETERS, foreach=foreach).clip(request)

    try:
        if is_traced("clip_grad_norm_", backend, foreach):
            total_norm = clip(REFERENCE).total_norm
        else:
            total_norm = dispatch("clip_grad_norm_", backend, foreach, clip).total_norm
    except NonFiniteError as error:
        labels = labels_of([source.grad for source in sources], error.positions)
        raise RuntimeError(nonfinite_message(request.norm_type, labels)) from None
    if total_norm is not None:
        return total_norm
    if not torch.compiler.is_compiling():
        _warn_if_no_parameters("clip_grad_norm_", sources)
    return torch.tensor(0.0)


def get_total_norm(
    tensors: Parameters,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute the norm of all ``tensors`` as one vector.

    ``(sum |x|^p)^(1/p)`` over every element of every tensor; the largest ``|x|`` for "inf". For
    p = 0 and p < 0 it is the norm of the tensors' norms, as in torch.

    Args:
        tensors: a tensor or an iterable of tensors (not parameters: pass their gradients); a tensor
            given twice counts twice.
        norm_type: the p of the p-norm: any float, or "inf".
        error_if_nonfinite: raise when the norm is inf or nan.
        foreach: as in torch; False takes the reference backend, one tensor at a time.
        dtype: dtype of the result and of the accumulation, ``torch.float32`` or ``torch.float64``;
            None takes float64 if any tensor is float64 or complex128, else float32.
        backend: "native", "triton" or "reference" to insist on one; None takes the fastest that
            can run.

    Returns:
        The norm: 0-dim, no grad, on the first tensor's device; ``torch.tensor(0.0)`` without
        tensors. DTensors as for ``clip_grad_norm_``, except that every rank of their mesh must pass
        as many tensors: unlike parameters, tensors do not show which gradients are None here.

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite`` is set; a tensor is of an
            integer dtype; or ``backend`` cannot run this.
        ValueError: ``dtype`` or another argument is out of range.
    """
    sources = _as_list(tensors)
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"get_total_norm: dtype must be torch.float32, torch.float64 or None (got {dtype})"
        )
    request = clip_request(math.inf, norm_type, error_if_nonfinite, writes=False, dtype=dtype)

    def find(b: Backend) -> Tensor | None:
        return b.gather(sources, READ_ONLY, foreach=foreach).clip(request).total_norm

    total_norm = None
    try:
        if not sources:
            check_backend("get_total_norm", backend, foreach)
        elif is_traced("get_total_norm", backend, foreach):
            total_norm = find(REFERENCE)
        else:
            total_norm = dispatch("get_total_norm", backend, foreach, find)
    except NonFiniteError as error:
        labels = labels_of(sources, error.positions)
        raise RuntimeError(nonfinite_message(request.norm_type, labels)) from None
    return torch.tensor(0.0, dtype=dtype) if total_norm is None else total_norm


def clip_grads_with_norm_(
    parameters: Parameters,
    max_norm: float | Tensor,
    total_norm: Tensor,
    foreach: bool | None = None,
    *,
    backend: str | None = None,
) -> None:
    """Scale the gradients of ``parameters`` in place by a norm that is already known.

    ``grad *= min(1, max_norm / (total_norm + 1e-6))``. Where the coefficient is 1 nothing is
    written, under the conditions of ``clip_grad_norm_``.

    Args:
        parameters: a tensor or an iterable of tensors (anything with a ``.grad``).
        max_norm: the largest norm that the gradients keep.
        total_norm: 0-dim tensor, the norm that ``get_total_norm`` returned.
        foreach: as in torch; False takes the reference backend, one tensor at a time.
        backend: "native", "triton" or "reference" to insist on one; None takes the fastest that
            can run.

    Raises:
        TypeError: ``total_norm`` is no tensor.
        RuntimeError: ``total_norm`` is not 0-dim; a gradient's elements share memory; or
            ``backend`` cannot run this.
        ValueError: ``backend`` is unknown, or contradicts ``foreach=False``.
    """
    sources = _as_list(parameters, warn_if_empty=True)
    coefficient = Coefficient(resolve(max_norm), total_norm)

    def scale(b: Backend) -> bool:
        return b.gather(sources, PARAMETERS, foreach=foreach).scale(coefficient)

    if is_traced("clip_grads_with_norm_", backend, foreach):
        scale(REFERENCE)
        return
    if backend is not None and not (isinstance(total_norm, Tensor) and total_norm.dim() == 0):
        check_backend("clip_grads_with_norm_", backend, foreach)
        backend = REFERENCE.name  # raises torch's own error for it
    if not dispatch("clip_grads_with_norm_", backend, foreach, scale):
        _warn_if_no_parameters("clip_grads_with_norm_", sources)


def clip_grad_value_(
    parameters: Parameters,
    clip_value: float,
    foreach: bool | None = None,
    *,
    backend: str | None = None,
) -> None:
    """Clamp every gradient of ``parameters`` in place to [-clip_value, clip_value].

    ``grad = min(max(grad, -clip_value), clip_value)``; NaN stays NaN. Each gradient is read once,
    and written only where something is out of range. A sparse gradient is coalesced and its values
    are clamped; of a DTensor, this rank's shard is clamped.

    Args:
        parameters: a tensor or an iterable of tensors (anything with a ``.grad``).
        clip_value: the largest magnitude that an element keeps, in the unit of the gradients.
        foreach: as in torch; False takes the reference backend, one tensor at a time.
        backend: "native", "triton" or "reference" to insist on one; None takes the fastest that
            can run.

    Raises:
        NotImplementedError: a gradient is complex.
        RuntimeError: ``clip_value`` does not fit a gradient's dtype; a gradient's elements share
            memory, or it is a DTensor that is Partial; or ``backend`` cannot run this.
        ValueError: ``backend`` is unknown, or contradicts ``foreach=False``; ``clip_value`` is
            negative or NaN and a gradient is sparse.
    """
    sources = _as_list(parameters, warn_if_empty=True)
    limit = number_of(clip_value)

    def clamp(b: Backend) -> bool:
        return b.gather(sources, PARAMETERS, foreach=foreach).clamp(limit)

    if is_traced("clip_grad_value_", backend, foreach):
        clamp(REFERENCE)
    elif not dispatch("clip_grad_value_", backend, foreach, clamp):
        _warn_if_no_parameters("clip_grad_value_", sources)


@deprecated(
    "`clip_grad_norm` is deprecated, as in torch, in favor of `clip_grad_norm_`.",
    category=FutureWarning,
)
def clip_grad_norm(
    parameters: Parameters,
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Scale the gradients in place: the deprecated name of ``clip_grad_norm_``.

    Args:
        parameters, max_norm, norm_type, error_if_nonfinite, foreach, backend: as there.

    Returns:
        As ``clip_grad_norm_``.

    Raises:
        RuntimeError, ValueError: as ``clip_grad_norm_``.
    """
    return clip_grad_norm_(
        parameters, max_norm, norm_type, error_if_nonfinite, foreach, backend=backend
    )


def _as_list(tensors: Parameters, warn_if_empty: bool = False) -> list[Tensor]:
    """Walk ``tensors`` once; if asked to, warn about an empty generator at the user's line."""
    if type(tensors) is list:
        return tensors  # fastclip does not change it, and a copy would touch every tensor once more
    if isinstance(tensors, Tensor):
        return [tensors]
    walked = list(tensors)
    if warn_if_empty and not walked and isinstance(tensors, types.GeneratorType):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3
        )
    return walked


def _warn_if_no_parameters(who: str, sources: Sequence[Tensor]) -> None:
    """Warn, at the user's line, about tensors that are no parameters, such as gradients.

    There is no warning for frozen parameters, nor for those that no loss has used yet.
    """
    if sources and all(map(_is_no_parameter, sources)):
        warnings.warn(
            f"{who}: nothing was clipped: parameters must be tensors whose `.grad` is to be "
            f"clipped (got {len(sources)} without a `.grad`, none of which requires grad)",
            stacklevel=3,
        )


def _is_no_parameter(source: Tensor) -> bool:
    if not isinstance(source, Tensor) or isinstance(source, torch.nn.Parameter):
        return False
    return not source.requires_grad


def labels_of(grads: Sequence[Tensor | None], positions: Sequence[int]) -> list[str]:
    """Describe gradients by position and shape, for an error."""
    # The caller's list may have become shorter since the walk.
    return [
        label_of(str(position), grads[position] if position < len(grads) else None)
        for position in positions
    ]


def label_of(name: str, grad: Tensor | None) -> str:
    """Describe one gradient by name and shape."""
    return name if grad is None else f"{name} {tuple(grad.shape)}"
