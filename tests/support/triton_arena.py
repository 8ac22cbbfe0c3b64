"""Memory with guard regions around every tensor, in which each access of a kernel is checked.

Triton's interpreter reads and writes whatever an address says: a missing mask is silent there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from triton.runtime.interpreter import TensorHandle

GUARD = 1 << 16
"""Bytes before, between and after the tensors: more than any batch of a kernel."""

ALIGNMENT = 64
FILL = 0xA5


class Arena:
    """Copies of tensors in one buffer, each as far from a 16-byte boundary as asked.

    Attributes:
        tensors: the copies, in the order given.
        outside: accesses of kernels that lay outside of every tensor, as (kind, byte offset).
        untrue: values that kernels declare to be multiples of something, and that are not.
    """

    def __init__(self, values: Sequence[Tensor], misalignments: Sequence[int] = (0,)) -> None:
        shifts = [misalignments[i % len(misalignments)] for i in range(len(values))]
        begins, end = [], GUARD
        for value, shift in zip(values, shifts, strict=True):
            begins.append(end + shift)
            end = -(-(begins[-1] + value.nbytes) // ALIGNMENT) * ALIGNMENT + GUARD
        whole = torch.full((end + ALIGNMENT,), FILL, dtype=torch.uint8)
        skipped = -whole.data_ptr() % ALIGNMENT
        self._bytes = whole[skipped : skipped + end]
        self._inside = np.zeros(end, dtype=bool)
        self.reads = np.zeros(end, dtype=np.int32)
        self.writes = np.zeros(end, dtype=np.int32)
        self.outside: list[tuple[str, int]] = []
        self.untrue: list[str] = []
        self.tensors = []
        self._spans = []
        for value, begin in zip(values, begins, strict=True):
            span = slice(begin, begin + value.nbytes)
            self._inside[span] = True
            self._spans.append(span)
            tensor = self._bytes[span].view(value.dtype).view(value.shape)
            self.tensors.append(tensor.copy_(value))

    def note(self, kind: str, ptrs: TensorHandle, mask: TensorHandle) -> None:
        """Count what a kernel accesses, where it is the arena's."""
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        begin = self._bytes.data_ptr()
        offsets = ptrs.data[mask.data].astype(np.int64).ravel() - begin
        offsets = offsets[(offsets > -size) & (offsets < len(self._inside))]
        touched = (offsets[:, None] + np.arange(size)).ravel()
        touched = touched.clip(0, len(self._inside) - 1)
        self.outside += [(kind, int(offset)) for offset in touched[~self._inside[touched]]]
        np.add.at(self.reads if kind == "load" else self.writes, touched, 1)

    def note_hint(self, handle: TensorHandle, name: str, values: Sequence[int]) -> None:
        """Check a kernel's hints to the compiler: on a GPU, misaligned vectors are errors."""
        if name == "tt.divisibility":
            self.untrue += [f"{n} % {values[0]}" for n in handle.data.ravel() if n % values[0]]

    def check(self) -> None:
        """Raise if a kernel left the tensors, or a guard has other values than before."""
        assert self.outside == []
        assert self.untrue == []
        guards = self._bytes.numpy()[~self._inside]
        assert (guards == FILL).all()

    def counts(self, position: int) -> tuple[set[int], set[int]]:
        """Return how often the bytes of a tensor were read, and how often written."""
        span = self._spans[position]
        return set(self.reads[span].tolist()), set(self.writes[span].tolist())

    def clear(self) -> None:
        """Start counting again from zero."""
        self.reads[:] = 0
        self.writes[:] = 0


@contextmanager
def watched(arena: Arena) -> Iterator[None]:
    """Let the arena see what kernels access; check it at the end."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    set_attr = TensorHandle.set_attr
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def noting_load(
        self: InterpreterBuilder, ptrs: TensorHandle, mask: TensorHandle, *rest: object
    ) -> TensorHandle:
        arena.note("load", ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def noting_store(
        self: InterpreterBuilder,
        ptrs: TensorHandle,
        value: TensorHandle,
        mask: TensorHandle,
        *rest: object,
    ) -> None:
        arena.note("store", ptrs, mask)
        store(self, ptrs, value, mask, *rest)

    def noting_hint(self: TensorHandle, name: str, values: Sequence[int]) -> None:
        arena.note_hint(self, name, values)
        set_attr(self, name, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorHandle, "set_attr", noting_hint)
        patch.setattr(InterpreterBuilder, "create_masked_load", noting_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", noting_store)
        yield
    arena.check()
