"""Clamp gradients in place, after checking all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors import as_plain, check_writable
from . import sharded, upcast
from .finite import is_readable
from .scale import Elements, elements_by, written_tensors


def clamp_elements_of(grads: Sequence[Tensor], clip_value: float) -> Elements:
    """Return the tensors to clamp in place of gradients, after checking all of them.

    Args:
        grads: real gradients of any kind.
        clip_value: the largest magnitude kept.

    Raises:
        NotImplementedError: a gradient is complex.
        RuntimeError: a gradient cannot be written or cannot hold ``clip_value``, or is a DTensor
            with a Partial placement; nothing has been written.
        ValueError: ``clip_value`` is negative or NaN and a gradient is sparse.
    """
    elements = elements_by(lambda grad: _clamped_tensors(grad, clip_value), as_plain(grads))
    check_writable(elements.written)
    for device, dtype, _ in elements.groups:
        # Raises torch's own error for what it cannot clamp or a limit that does not fit the dtype.
        torch.empty(0, dtype=dtype, device=device).clamp_(-clip_value, clip_value)
    return elements


def clamp_(elements: Elements, clip_value: float, found_inf: Tensor | None = None) -> None:
    """Clamp gradients in place to [-clip_value, clip_value].

    ``grad = min(max(grad, -clip_value), clip_value)``; NaN stays NaN. A sparse gradient is
    coalesced and its values are clamped.

    Args:
        elements: from ``clamp_elements_of``.
        clip_value: the largest magnitude kept.
        found_inf: as in ``ClipRequest``: if it is set, nothing is clamped.
    """
    if found_inf is not None and is_readable(found_inf):
        if bool(found_inf != 0):
            elements.bump_versions()
            return
        found_inf = None
    for target in elements.written:
        if target.layout is torch.sparse_coo:
            # The host coalesces its indices, so it waits for the device anyway.
            if found_inf is None or bool(found_inf == 0):
                _clamp_sparse_(target, clip_value)
            else:
                torch.autograd.graph.increment_version(target)
        elif found_inf is None:
            target.clamp_(-clip_value, clip_value)
        else:
            limit = torch.full((), clip_value, dtype=target.dtype, device=target.device)
            is_found = found_inf.reshape(()).to(target.device) != 0
            limit = torch.where(is_found, torch.full_like(limit, math.inf), limit)
            target.clamp_(-limit, limit)
    elements.bump_wrappers()


def _clamped_tensors(grad: Tensor, clip_value: float) -> list[Tensor]:
    """Return the tensors that are to be clamped in place of ``grad``."""
    sharded.check_no_partial("clip_grad_value_", grad)
    target = sharded.local(grad)
    if target.layout is torch.strided or target.is_nested:
        return written_tensors(target)
    if not clip_value >= 0:
        # When torch clamps a dense tensor to [5, -5], every element becomes -5, also the zeros, of
        # which a sparse tensor stores none.
        raise ValueError(
            "clip_grad_value_: clip_value must not be negative or nan for sparse gradients "
            f"(got {clip_value})"
        )
    is_coo = target.layout is torch.sparse_coo
    return [target if is_coo and not target.is_coalesced() else upcast.stored_values(target)]


def _clamp_sparse_(target: Tensor, clip_value: float) -> None:
    """Clamp a COO tensor with repeated indices: the sums of its terms, not the terms."""
    sums = upcast.coalesced(target)
    sums.values().clamp_(-clip_value, clip_value)
    target.copy_(sums)
