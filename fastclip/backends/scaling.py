"""Scale and clamp gradients in place, after checking all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._foreach_utils import _device_has_foreach_support

from . import sharded, upcast
from .checks import (
    PlainTensors,
    are_plain,
    as_plain,
    by_device,
    by_dtype,
    check_foreach,
    check_writable,
)

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_SCALABLE = (*_SIXTEEN_BIT, torch.float32, torch.float64, torch.complex64, torch.complex128)


def scale_(grads: Sequence[Tensor], clip_coef: Tensor, *, foreach: bool | None = None) -> None:
    """Multiply every gradient in place by ``clip_coef``, after checking all of them.

    CPU gradients are not written when the coefficient is 1 or more; reading it there costs
    nothing. Elsewhere reading it would make the host wait, so they are always multiplied. 16-bit
    gradients are multiplied by the coefficient as it is and rounded once. Every gradient's version
    goes up, as it does in torch.

    Args:
        grads: gradients of any kind, each once.
        clip_coef: 0-dim plain tensor, float32 or float64.
        foreach: torch's argument; False takes one gradient at a time.

    Raises:
        RuntimeError: a gradient cannot be written, ``clip_coef`` is not 0-dim, or ``foreach=True``
            on a device without it; nothing has been written.
    """
    check_foreach(grads, foreach)
    clip_coef = _as_scalar(clip_coef, foreach)
    grads = as_plain(grads)
    is_plain = isinstance(grads, PlainTensors) and are_plain([clip_coef])
    targets = grads if is_plain else [_written_tensor(grad) for grad in grads]
    check_writable(targets)
    groups = _by_device_and_dtype(targets)
    for device, dtype, _ in groups:
        if dtype not in _SCALABLE:
            # Raises torch's own error for what it cannot scale, while nothing is written.
            torch.empty(0, dtype=dtype, device=device).mul_(clip_coef.to(device))
    for device, dtype, group in groups:
        coef = clip_coef.to(device)
        if dtype not in (torch.float64, torch.complex128):
            # torch would promote the product of a 0-dim float32 gradient, and of no other.
            coef = coef.to(torch.float32)
        if is_plain or are_plain([*group, coef]):
            _scale_plain_(group, coef, dtype, foreach)
        else:
            _scale_one_by_one_(group, coef, dtype)
    _bump_wrappers(grads, targets)


def clamp_(grads: Sequence[Tensor], clip_value: float, *, foreach: bool | None = None) -> None:
    """Clamp every gradient in place to [-clip_value, clip_value], after checking all of them.

    ``grad = min(max(grad, -clip_value), clip_value)``; NaN stays NaN. Of a sparse gradient the
    coalesced values are clamped, and it is coalesced afterwards.

    Args:
        grads: real gradients of any kind.
        clip_value: the largest magnitude kept; not negative or NaN if a gradient is sparse.
        foreach: torch's argument; False takes one gradient at a time.

    Raises:
        NotImplementedError: a gradient is complex, or a nested tensor that torch does not clamp.
        RuntimeError: a gradient cannot be written or cannot hold ``clip_value``, is a DTensor with
            a Partial placement, or ``foreach=True`` on a device without it; nothing has been
            written.
        ValueError: ``clip_value`` is negative or NaN and a gradient is sparse.
    """
    check_foreach(grads, foreach)
    targets = grads if are_plain(grads) else [_clamped_tensor(grad, clip_value) for grad in grads]
    check_writable(targets)
    for device, dtype, _ in _by_device_and_dtype(targets):
        # Raises torch's own error for what it cannot clamp or a limit that does not fit the dtype.
        torch.empty(0, dtype=dtype, device=device).clamp_(-clip_value, clip_value)
    # Nested tensors go first: torch may clamp none of them, and says so.
    for target in sorted(targets, key=lambda t: not t.is_nested):
        if target.layout is torch.sparse_coo:
            _clamp_sparse_(target, clip_value)
        else:
            target.clamp_(-clip_value, clip_value)
    _bump_wrappers(grads, targets)


def _clamped_tensor(grad: Tensor, clip_value: float) -> Tensor:
    """Return the tensor that is to be clamped in place of ``grad``."""
    sharded.check_no_partial("clip_grad_value_", grad)
    target = sharded.local(grad)
    if target.layout is torch.strided or target.is_nested:
        return target
    if not clip_value >= 0:
        # torch makes every element -5 of a dense tensor that is clamped to [5, -5], zeros as well.
        raise ValueError(
            "clip_grad_value_: clip_value must not be negative or nan for sparse gradients "
            f"(got {clip_value})"
        )
    is_coo = target.layout is torch.sparse_coo
    return target if is_coo and not target.is_coalesced() else upcast.stored_values(target)


def _clamp_sparse_(target: Tensor, clip_value: float) -> None:
    """Clamp a COO tensor with repeated indices: a clamp of the terms is none of their sums."""
    sums = upcast.coalesced(target)
    sums.values().clamp_(-clip_value, clip_value)
    target.copy_(sums)


def scale_rounded_once_(tensors: Sequence[Tensor], clip_coef: Tensor) -> None:
    """Multiply 16-bit tensors in place by a float32 coefficient, rounding each product once.

    Devices other than the CPU would round the coefficient itself to 16 bits.

    Args:
        tensors: 16-bit tensors, all on the device of ``clip_coef``.
        clip_coef: 0-dim float32 tensor.
    """
    for tensor in tensors:
        for piece in upcast.slices_of(tensor, upcast.MAX_SLICE_SIZE):
            piece.copy_(piece.to(torch.float32) * clip_coef)


def _as_scalar(clip_coef: Tensor, foreach: bool | None) -> Tensor:
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
) -> list[tuple[torch.device, torch.dtype, Sequence[Tensor]]]:
    return [
        (device, dtype, group)
        for device, near in by_device(tensors).items()
        for dtype, group in by_dtype(near).items()
    ]


def _scale_plain_(
    group: Sequence[Tensor], clip_coef: Tensor, dtype: torch.dtype, foreach: bool | None
) -> None:
    """Scale tensors of one device and dtype whose values the host may read where it is the CPU."""
    if clip_coef.is_cpu and bool(clip_coef >= 1):
        torch.autograd.graph.increment_version(group)
        return
    # torch's foreach operations refuse to write to conjugate and negative views.
    is_lazy = dtype.is_complex or any(map(Tensor.is_neg, group))
    can_round_once = clip_coef.is_cpu or dtype not in _SIXTEEN_BIT
    has_foreach = foreach is not False and _device_has_foreach_support(clip_coef.device)
    if has_foreach and can_round_once and not is_lazy:
        torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
            list(group), clip_coef
        )
    else:
        _scale_one_by_one_(group, clip_coef, dtype)


def _scale_one_by_one_(group: Sequence[Tensor], clip_coef: Tensor, dtype: torch.dtype) -> None:
    """Scale tensors of any kind, of one device and dtype."""
    if dtype in _SIXTEEN_BIT and not (clip_coef.is_cpu and not torch.compiler.is_compiling()):
        scale_rounded_once_(group, clip_coef)
        return
    for grad in group:
        grad.mul_(clip_coef)


def _bump_wrappers(grads: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Bump the version of every gradient that was written through another tensor."""
    wrappers = [grad for grad, target in zip(grads, targets, strict=True) if grad is not target]
    if wrappers:
        torch.autograd.graph.increment_version(wrappers)
