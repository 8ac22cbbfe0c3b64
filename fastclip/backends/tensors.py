"""What a list of gradients may hold, and arguments that are tensors: for every backend."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._foreach_utils import _device_has_foreach_support
from typing_extensions import TypeIs

from .request import EPS

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Key = TypeVar("Key", torch.device, torch.dtype)

PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})
"""Types that redefine no operation; any other type may redefine all of them."""

_layout_of = operator.attrgetter("layout")
_is_nested = operator.attrgetter("is_nested")
_is_on_cpu = operator.attrgetter("is_cpu")


class PlainTensors(list[Tensor]):
    """Tensors that ``are_plain``, with properties that are read only once for several steps."""

    @cached_property
    def addresses(self) -> list[int]:
        """Where the elements of each begin."""
        return list(map(Tensor.data_ptr, self))

    @cached_property
    def sizes(self) -> list[int]:
        """How many elements each has."""
        return list(map(Tensor.numel, self))

    @cached_property
    def dtypes(self) -> set[torch.dtype]:
        """All their dtypes."""
        return {t.dtype for t in self}

    @cached_property
    def devices(self) -> set[torch.device]:
        """All their devices."""
        if len(self) > 0 and all(map(_is_on_cpu, self)):
            return {torch.device("cpu")}  # this takes half the time
        return {t.device for t in self}


def is_dtensor(tensor: object) -> TypeIs[DTensor]:
    """Return whether ``tensor`` is a DTensor, without importing the class if nobody has."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def has_dtensors(tensors: Iterable[object]) -> bool:
    """Return whether a DTensor is among ``tensors``, which may be anything."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    if torch.compiler.is_compiling():
        return any(isinstance(tensor, module.DTensor) for tensor in tensors)
    return any(issubclass(kind, module.DTensor) for kind in set(map(type, tensors)))


def is_sharded(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> bool:
    """Return whether the ranks of a mesh take the norm of these gradients together.

    They do if a gradient is a DTensor, and if a DTensor has no gradient on this rank: other ranks
    may have one, and then wait for this rank to take its part.
    """
    if has_dtensors(grads):
        return True
    return has_dtensors(parameters) and any(map(may_have_gradient, filter(is_dtensor, parameters)))


def may_have_gradient(parameter: Tensor) -> bool:
    """Return whether a parameter without a gradient on this rank may have one on others."""
    return getattr(parameter, "requires_grad", True)


def as_plain(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return ``PlainTensors`` of the tensors if they are plain, else the sequence itself."""
    if isinstance(tensors, PlainTensors) or not are_plain(tensors):
        return tensors
    return PlainTensors(tensors)


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Return whether every tensor is of torch's own types and lies in strided memory, not nested.

    Wrappers (subclasses, functorch), sparse tensors and tensors that are being traced are not
    plain: they have no address, or the host cannot read their values. While forward-mode
    differentiation runs, no tensor is: a tangent would be lost in a buffer.
    """
    if isinstance(tensors, PlainTensors):
        return True
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return False
    if not PLAIN_TYPES.issuperset(map(type, tensors)):
        return False
    return set(map(_layout_of, tensors)) <= {torch.strided} and not any(map(_is_nested, tensors))


def without_empty(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Drop the tensors without elements."""
    if isinstance(tensors, PlainTensors) and 0 not in tensors.sizes:
        return tensors
    return as_plain([t for t in tensors if t.numel() > 0])


def sizes_of(tensors: Sequence[Tensor]) -> list[int]:
    """Count the elements of every tensor."""
    return tensors.sizes if isinstance(tensors, PlainTensors) else [t.numel() for t in tensors]


def dtypes_of(tensors: Sequence[Tensor]) -> set[torch.dtype]:
    """Collect the dtypes of the tensors."""
    return tensors.dtypes if isinstance(tensors, PlainTensors) else {t.dtype for t in tensors}


def by_dtype(tensors: Sequence[Tensor]) -> dict[torch.dtype, Sequence[Tensor]]:
    """Group tensors by dtype, both in order of appearance."""
    return _grouped(tensors, dtypes_of(tensors), lambda t: t.dtype)


def by_device(tensors: Sequence[Tensor]) -> dict[torch.device, Sequence[Tensor]]:
    """Group tensors by device, both in order of appearance."""
    is_known = isinstance(tensors, PlainTensors)
    devices = tensors.devices if is_known else {t.device for t in tensors}
    return _grouped(tensors, devices, lambda t: t.device)


def _grouped(
    tensors: Sequence[Tensor], distinct: set[Key], key_of: Callable[[Tensor], Key]
) -> dict[Key, Sequence[Tensor]]:
    if len(distinct) == 1:
        return {next(iter(distinct)): tensors}
    groups: dict[Key, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(key_of(tensor), []).append(tensor)
    return {key: as_plain(group) for key, group in groups.items()}


def unique_gradients(grads: Sequence[Tensor]) -> Sequence[Tensor]:
    """Drop every gradient that equals an earlier one, keeping the order.

    Two gradients with the same address, dtype, strides and shape (dimensions of size 1 aside) are
    equal. A tensor without an address (meta, fake, sparse, a subclass, an empty one) equals only
    itself.

    Args:
        grads: gradients of any kind, on any devices.

    Returns:
        The gradients without repetitions, in order of first appearance.
    """
    if torch.compiler.is_compiling():
        return _unique_objects(grads)
    grads = as_plain(grads)
    if isinstance(grads, PlainTensors) and len(set(grads.addresses)) == len(grads):
        return grads
    unique: dict[Hashable, Tensor] = {}
    for grad in grads:
        unique.setdefault(identity(grad), grad)
    return list(unique.values())


def _unique_objects(grads: Sequence[Tensor]) -> list[Tensor]:
    # Tensors of a graph that is being traced have no address, and hashing one would break the
    # graph.
    unique: list[Tensor] = []
    for grad in grads:
        if not _is_among(grad, unique):
            unique.append(grad)
    return unique


def _is_among(grad: Tensor, others: Sequence[Tensor]) -> bool:
    return any(grad is other for other in others)


def identity(grad: Tensor) -> Hashable:
    """Return a key that is the same for two gradients exactly when they are equal.

    Args:
        grad: a gradient of any kind, alive as long as the key is used.
    """
    if torch.compiler.is_compiling():
        return id(grad)  # tensors of a graph that is being traced have no address
    address = grad.data_ptr() if are_plain([grad]) else 0
    if address == 0:
        return id(grad)
    # The stride of a dimension of size 1 has no effect: a column is its own transpose.
    sizes = tuple(size for size in grad.shape if size != 1)
    return address, sizes, grad.dtype, grad.stride(), grad.device


def check_writable(grads: Sequence[Tensor]) -> None:
    """Raise torch's own error for a gradient that cannot be written in place; change no value.

    Args:
        grads: gradients of any kind, on any devices.

    Raises:
        RuntimeError: a gradient is expanded, so that its elements share memory, or is an inference
            tensor while inference mode is off.
    """
    if torch.compiler.is_compiling():
        return
    if not torch.is_inference_mode_enabled():
        for frozen in filter(Tensor.is_inference, grads):
            frozen.mul_(1)  # raises; the factor is 1 because torch raises after it has written
    grads = as_plain(grads)
    is_plain = isinstance(grads, PlainTensors)
    if not is_plain or 0 in grads.addresses:
        for immutable in filter(Tensor._is_zerotensor, grads):
            immutable.mul_(1)  # raises
    if is_plain and all(map(Tensor.is_contiguous, grads)):
        return
    for expanded in filter(_is_expanded, grads):
        expanded.mul_(1)  # raises before it writes


def _is_expanded(grad: Tensor) -> bool:
    if grad.layout is not torch.strided or grad.is_contiguous() or grad.numel() == 0:
        return False
    return any(
        stride == 0 and size > 1 for size, stride in zip(grad.shape, grad.stride(), strict=True)
    )


def check_foreach(grads: Sequence[Tensor], foreach: bool | None) -> None:
    """Raise torch's error when ``foreach=True`` meets a device without foreach operations.

    Args:
        grads: gradients of any kind, on any devices.
        foreach: torch's argument of that name.

    Raises:
        RuntimeError: the text names the device type.
    """
    if not foreach:
        return
    for device in {grad.device for grad in grads}:
        if not _device_has_foreach_support(device):
            raise RuntimeError(
                f"foreach=True was passed, but can't use the foreach API on {device.type} tensors"
            )


def check_scalars(inv_scale: Tensor | None, found_inf: Tensor | None) -> None:
    """Check the two tensors that every operation may take; see ``ClipRequest``.

    Raises:
        ValueError: one of them is no plain float32 tensor of one element.
    """
    for name, scalar in (("inv_scale", inv_scale), ("found_inf", found_inf)):
        if scalar is None:
            continue
        if not isinstance(scalar, Tensor) or is_dtensor(scalar):
            raise ValueError(
                f"fastclip: {name} must be a plain tensor or None (got {type(scalar).__name__})"
            )
        if scalar.dtype != torch.float32 or scalar.numel() != 1:
            raise ValueError(
                f"fastclip: {name} must be a float32 tensor of one element "
                f"(got {scalar.dtype}, shape {tuple(scalar.shape)})"
            )


def clip_coefficient(max_norm: float | Tensor, total_norm: Tensor) -> Tensor:
    """Compute the factor that brings ``total_norm`` down to ``max_norm``.

    ``min(1, (1 / (total_norm + EPS)) * max_norm)``; NaN stays NaN.

    Args:
        max_norm: the largest norm that the gradients keep, a number or a 0-dim tensor.
        total_norm: the norm of the gradients, on any device; no DTensor.

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
