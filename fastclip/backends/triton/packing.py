"""Packing sources into a list: in C++ if there is the extension, else by torch operations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .. import extension
from ..extension import Kernels
from ..request import Kind
from .torch_list import TorchList, pack


class PackedList(Protocol):
    """A list cut into work for the kernels; it holds its tensors.

    Attributes:
        size: the number of tensors.
        device: the number of their GPU; -1 for the CPU and for an empty list.
        chunk_size: elements in a chunk.
        groups: pieces of work.
        mix: a bit for the code of each dtype in the list.
        has_float64: whether a tensor is float64.
        places: for each source its position in the list, -1 where it has no gradient: int64 on the
            CPU. None stands for 0, 1, 2, ...
    """

    size: int
    device: int
    chunk_size: int
    groups: int
    mix: int
    has_float64: bool
    places: Tensor | None

    def write(self, words: Tensor, fields: list[int], targets: list[int]) -> None:
        """Write the words that kernels read to a host tensor.

        Args:
            words: int64, as long as the fields and three or four words for each tensor.
            fields: the values of all fields.
            targets: addresses, one for each tensor, or none.

        Raises:
            ValueError: ``words`` has another length or dtype, gaps, or lies on a GPU.
        """
        ...

    def addresses_of(self, targets: list[Tensor]) -> list[int]:
        """Check the tensors that results are written to, and return where they begin.

        Raises:
            ValueError: they are not one for each tensor, of its dtype, shape, strides and device,
                in memory that nothing else shares.
        """
        ...

    def holds(self, address: int) -> bool:
        """Return whether an address lies in the memory of a tensor."""
        ...

    def hold(self, takes_norm: bool) -> PackedList:
        """Pack the same tensors again, because they may have been given other memory."""
        ...

    def bump_versions(self) -> None:
        """Let autograd know that every tensor was written."""
        ...


Pack = Callable[[bool], PackedList]
"""Packs the gradients that sources have when it is called.

Its argument says whether their norm will be taken, which the ranks of a mesh do together. It raises
``RefusedError`` if the kernels cannot take a gradient; nothing has been written.
"""


def pack_of(sources: list[Tensor], kind: Kind, is_interpreted: bool) -> Pack:
    """Return what packs the gradients of sources."""
    if extension.load():
        return functools.partial(pack, sources, kind, is_interpreted)
    kernels = Kernels.TRITON_INTERPRETED if is_interpreted else Kernels.TRITON_ON_GPU
    bound = extension.binding.gather(sources, kind, kernels)
    return functools.partial(extension.call_translating_errors, bound.hold)


def held_pack(packed: PackedList) -> Pack:
    """Return what packs the tensors of a list again."""
    if isinstance(packed, TorchList):
        return packed.hold
    return functools.partial(extension.call_translating_errors, packed.hold)


def device_of(packed: PackedList) -> torch.device:
    """Return the device of a list."""
    return torch.device("cpu") if packed.device < 0 else torch.device("cuda", packed.device)
