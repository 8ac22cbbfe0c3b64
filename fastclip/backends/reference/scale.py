"""Multiply gradients in place, after checking all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._foreach_utils import _device_has_foreach_support

from ..tensors import PlainTensors, are_plain, as_plain, by_device, by_dtype, check_writable
from . import sharded, upcast
from .factors import Multiplier

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_SCALABLE = (*_SIXTEEN_BIT, torch.float32, torch.float64, torch.complex64, torch.complex128)


class Elements(NamedTuple):
    """The tensors that are written in place of gradients.

    Attributes:
        written: strided tensors, or the gradients themselves.
        wrappers: the gradients that are written through other tensors, which does not raise their
            versions.
        groups: ``written`` by device and dtype.
    """

    written: Sequence[Tensor]
    wrappers: Sequence[Tensor]
    groups: Sequence[tuple[torch.device, torch.dtype, Sequence[Tensor]]]

    def bump_versions(self) -> None:
        """Raise every gradient's version, as if it had been written."""
        torch.autograd.graph.increment_version(self.written)
        self.bump_wrappers()

    def bump_wrappers(self) -> None:
        """Raise the versions of the gradients that were written through other tensors."""
        if self.wrappers:
            torch.autograd.graph.increment_version(self.wrappers)

    def without_versions(self) -> Elements:
        """Return tensors over the same memory whose versions are separate."""
        return _elements([t.data if are_plain([t]) else t for t in self.written], [])


def elements_of(grads: Sequence[Tensor]) -> Elements:
    """Return where the elements of gradients lie, after checking that they can be multiplied.

    Args:
        grads: gradients of any kind, each once.

    Raises:
        RuntimeError: torch's own error for a gradient that cannot be written, or whose dtype torch
            does not multiply; nothing has been written.
    """
    grads = as_plain(grads)
    elements = elements_by(written_tensors, grads)
    check_writable(elements.written)
    for device, dtype, _ in elements.groups:
        if dtype not in _SCALABLE:
            # Raises torch's own error for what it cannot scale, while nothing is written.
            torch.empty(0, dtype=dtype, device=device).mul_(torch.ones((), device=device))
    return elements


def multiply_(elements: Elements, by: Multiplier, *, foreach: bool | None = None) -> None:
    """Multiply gradients in place.

    CPU gradients are not written when the factor is 1; the host can read it there at no cost. On
    other devices reading it would make the host wait, so gradients there are always multiplied.
    16-bit gradients are multiplied by the factor in float32 and rounded once. Every gradient's
    version rises, as in torch.

    Args:
        elements: from ``elements_of``.
        by: what they are multiplied by.
        foreach: torch's argument; False takes one gradient at a time.
    """
    if by.leaves_all():
        elements.bump_versions()
        return
    # All factors are computed first, because a tensor that they depend on may be a gradient.
    factors = [by.factor(device) for device, _, _ in elements.groups]
    for (_, dtype, group), factor in zip(elements.groups, factors, strict=True):
        multiply_group_(group, factor, dtype, foreach, may_leave=by.may_leave())
    elements.bump_wrappers()


def written_tensors(grad: Tensor) -> list[Tensor]:
    """Return the strided tensors that hold the elements of ``grad``."""
    if grad.layout is torch.sparse_coo:
        return [grad._values()]  # scaling the terms of a sum scales the sum
    parts = upcast.stored_parts(sharded.local(grad))
    if grad.is_nested and not torch.compiler.is_compiling():
        return [part.data for part in parts]  # otherwise each part would raise its version
    return parts


def elements_by(written_of: Callable[[Tensor], list[Tensor]], grads: Sequence[Tensor]) -> Elements:
    """Return the tensors to write in place of gradients; plain ones are written directly."""
    if isinstance(grads, PlainTensors):
        return _elements(grads, [])
    written: list[Tensor] = []
    wrappers: list[Tensor] = []
    for grad in grads:
        tensors = written_of(grad)
        written.extend(tensors)
        if len(tensors) != 1 or tensors[0] is not grad:
            wrappers.append(grad)
    return _elements(written, wrappers)


def _elements(written: Sequence[Tensor], wrappers: Sequence[Tensor]) -> Elements:
    groups = [
        (device, dtype, group)
        for device, near in by_device(written).items()
        for dtype, group in by_dtype(near).items()
    ]
    return Elements(written, wrappers, groups)


def multiply_group_(
    group: Sequence[Tensor],
    factor: Tensor,
    dtype: torch.dtype,
    foreach: bool | None,
    *,
    may_leave: bool,
) -> None:
    """Multiply tensors of one device and dtype by a 0-dim factor there.

    Args:
        group: the tensors.
        factor: float32 or float64.
        dtype: theirs.
        foreach: torch's argument.
        may_leave: whether a factor of 1 stands for tensors that must stay as they are.
    """
    if dtype not in (torch.float64, torch.complex128):
        # Otherwise torch would promote the product of a 0-dim float32 gradient.
        factor = factor.to(torch.float32)
    group = as_plain(group)
    is_plain = isinstance(group, PlainTensors) and are_plain([factor])
    if is_plain and factor.is_cpu and bool(factor == 1):
        torch.autograd.graph.increment_version(group)
        return
    if dtype.is_complex and may_leave:
        _multiply_or_leave_(group, factor)
        return
    if dtype in _SIXTEEN_BIT and not (factor.is_cpu and not torch.compiler.is_compiling()):
        multiply_rounding_once_(group, factor)
        return
    # torch's foreach operations refuse to write to conjugate and negative views.
    is_lazy = dtype.is_complex or not is_plain or any(map(Tensor.is_neg, group))
    if foreach is not False and not is_lazy and _device_has_foreach_support(factor.device):
        torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
            list(group), factor
        )
        return
    for tensor in group:
        tensor.mul_(factor)


def _multiply_or_leave_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply complex tensors in place, unless the factor is 1: inf * 1 would contain a nan."""
    for tensor in tensors:
        for piece in upcast.slices_of(tensor, upcast.MAX_SLICE_SIZE):
            piece.copy_(torch.where(factor == 1, piece, piece * factor))


def multiply_rounding_once_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply 16-bit tensors in place by a float32 factor, rounding each product once.

    On other devices than the CPU torch would first round the factor to 16 bits.

    Args:
        tensors: 16-bit tensors, all on the device of ``factor``.
        factor: 0-dim float32 tensor.
    """
    for tensor in tensors:
        for piece in upcast.slices_of(tensor, upcast.MAX_SLICE_SIZE):
            piece.copy_(piece.to(torch.float32) * factor)
