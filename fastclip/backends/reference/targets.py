"""Products that are written to other tensors than the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors import are_plain, is_dtensor
from . import upcast
from .factors import Multiplier
from .scale import elements_of, multiply_group_, written_tensors


def check_targets(targets: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Check that each gradient has its own target.

    Args:
        targets: see ``GradList.scale_into``.
        grads: the gradients.

    Raises:
        ValueError: a target is missing, is of another kind than its gradient, or shares memory with
            a gradient or with another target.
        RuntimeError: torch's own error for a target that cannot be written.
    """
    if len(targets) != len(grads):
        raise ValueError(f"fastclip: targets must be {len(grads)} tensors (got {len(targets)})")
    for i, (target, grad) in enumerate(zip(targets, grads, strict=True)):
        if not _are_alike(target, grad):
            raise ValueError(
                f"fastclip: target {i} must have the dtype, shape, strides and device of its "
                "gradient"
            )
    elements_of(targets)  # raises for what cannot be written
    if _overlap(targets, grads):
        raise ValueError("fastclip: targets must share no memory with each other or with gradients")


def multiply_into(target: Tensor, grad: Tensor, by: Multiplier) -> None:
    """Write a product to another tensor of the same kind, rounding each element once.

    Args:
        target: the tensor to write, which has passed ``check_targets``.
        grad: a gradient of any kind.
        by: what the gradient is multiplied by, even where a clip would leave it alone.
    """
    if grad.layout is torch.sparse_coo:
        target.copy_(grad)
    else:
        pairs = zip(written_tensors(target), written_tensors(grad), strict=True)
        for to, values in pairs:
            to.copy_(values)
    elements = elements_of([target])
    for device, dtype, group in elements.groups:
        factor = by.factor(device, always=True)
        multiply_group_(group, factor, dtype, foreach=False, may_leave=False)
    elements.bump_wrappers()


def _are_alike(target: Tensor, grad: Tensor) -> bool:
    if not isinstance(target, Tensor) or is_dtensor(target) != is_dtensor(grad):
        return False
    if is_dtensor(target) and is_dtensor(grad):
        is_same = target.placements == grad.placements and target.device_mesh == grad.device_mesh
        return is_same and _are_alike(target.to_local(), grad.to_local())
    if (target.layout, target.dtype, target.device) != (grad.layout, grad.dtype, grad.device):
        return False
    if target.is_nested or grad.is_nested:
        parts, others = upcast.stored_parts(target), upcast.stored_parts(grad)
        return len(parts) == len(others) and all(map(_are_alike, parts, others))
    if target.shape != grad.shape:
        return False
    return target.layout is not torch.strided or target.stride() == grad.stride()


def _overlap(targets: Sequence[Tensor], grads: Sequence[Tensor]) -> bool:
    """Return whether a target shares memory; tensors with gaps are not checked."""
    extents = [(*extent, True) for t in targets for extent in _extents(t)]
    extents += [(*extent, False) for t in grads for extent in _extents(t)]
    end_of_all = end_of_targets = 0
    for begin, end, is_target in sorted(extents):
        if begin < (end_of_all if is_target else end_of_targets):
            return True
        end_of_all = max(end_of_all, end)
        end_of_targets = max(end_of_targets, end) if is_target else end_of_targets
    return False


def _extents(tensor: Tensor) -> list[tuple[int, int]]:
    """Return the memory, first byte and end, of a plain tensor without gaps; else nothing."""
    if not are_plain([tensor]) or tensor.data_ptr() == 0:
        return []
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    if span != tensor.numel():
        return []
    return [(tensor.data_ptr(), tensor.data_ptr() + span * tensor.element_size())]
