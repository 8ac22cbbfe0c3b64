"""Megatron-LM: the functions that ``megatron.core.optimizer.clip_grads`` takes from elsewhere.

They have the calling convention of apex's ``amp_C``, which that module expects of whoever is
installed. ``switch()`` assigns them there, and all of Megatron's optimizers clip with fastclip.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

import fastclip

__all__ = [
    "l2_norm_impl",
    "multi_tensor_applier",
    "multi_tensor_scale_impl",
    "multi_tensor_scale_tensor_impl",
    "switch",
]

CHUNK_SIZE = 2048 * 32
"""What Megatron gives its own; fastclip chooses its chunks itself."""


def multi_tensor_applier(
    op: Callable[..., object],
    noop_flag: Tensor,
    tensor_lists: Sequence[Sequence[Tensor]],
    *args: object,
) -> object:
    """Call ``op`` on lists of tensors, as apex's function of this name does."""
    return op(CHUNK_SIZE, noop_flag, tensor_lists, *args)


def l2_norm_impl(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: Sequence[Sequence[Tensor]],
    per_tensor: bool = False,
    *_: object,
) -> tuple[Tensor, Tensor]:
    """Compute the 2-norm of a list of tensors: ``amp_C.multi_tensor_l2norm``.

    Args:
        chunk_size, noop_flag: not used.
        tensor_lists: one list of tensors.
        per_tensor: whether the norm of each is asked for.

    Returns:
        The norm, float32 of shape (1,), on the first tensor's device; and the norms of the tensors,
        shape (number of tensors,), or (0,) if nobody asked. Nothing waits for a GPU.
    """
    (tensors,) = tensor_lists
    if per_tensor:
        total_norm, norms = fastclip.get_tensor_norms(tensors)
    else:
        total_norm = fastclip.get_total_norm(tensors)
        norms = total_norm.new_zeros(0)
    return total_norm.to(torch.float32).reshape(1), norms.to(torch.float32)


def multi_tensor_scale_impl(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: Sequence[Sequence[Tensor]],
    scale: float | Tensor,
) -> None:
    """Write ``scale`` times each tensor to its target: ``amp_C.multi_tensor_scale``.

    Args:
        chunk_size: not used.
        noop_flag: not written. amp_C sets it where a tensor is not finite; Megatron's clip passes a
            buffer that it never reads.
        tensor_lists: the tensors and, in the same order, their targets, of the same dtypes and
            strides; the same list twice scales in place.
        scale: a number, or a tensor of one element on the device.
    """
    tensors, targets = tensor_lists
    if all(a.data_ptr() == b.data_ptr() for a, b in zip(tensors, targets, strict=True)):
        fastclip.scale_tensors_(targets, scale)
    else:
        fastclip.scale_tensors_into(targets, tensors, scale)


multi_tensor_scale_tensor_impl = multi_tensor_scale_impl
"""The same, under the name by which Megatron calls it with a tensor."""


def switch(module: ModuleType | None = None) -> list[str]:
    """Assign the functions to those globals of Megatron's module that it has.

    Args:
        module: another module that has such globals; None takes
            ``megatron.core.optimizer.clip_grads``.

    Returns:
        The names that were assigned.

    Raises:
        ValueError: the module has none of the names.
    """
    if module is None:
        module = importlib.import_module("megatron.core.optimizer.clip_grads")
    ours = {name: globals()[name] for name in __all__ if name != "switch"}
    found = [name for name in ours if hasattr(module, name)]
    if "l2_norm_impl" not in found:
        raise ValueError(
            f"switch: module {module.__name__} must have Megatron's global l2_norm_impl "
            f"(got {', '.join(found) or 'none of its names'})"
        )
    for name in found:
        setattr(module, name, ours[name])
    return found
