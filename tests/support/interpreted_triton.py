"""Triton's interpreter for the tests: it runs kernels on CPU tensors, one program after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType as Function
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pytest

if TYPE_CHECKING:
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

# This must be set before anything imports triton, whose functions are made for one mode or the
# other.
os.environ.setdefault("TRITON_INTERPRET", "1")


class Scope(Protocol):
    """The values that undo a patch of the interpreter."""

    def restore(self) -> None: ...


def why_not_interpreted() -> str | None:
    """Return why the kernels cannot be interpreted here, or None."""
    from fastclip.backends import TRITON

    reasons = TRITON.unavailable_reasons("cpu")
    if not reasons:
        return None
    return f"the backend triton cannot be interpreted here: {'; '.join(reasons)}"


def pack_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's lists be packed as without the extension; other backends keep it."""
    from fastclip.backends.base import Reason, ReasonKind
    from fastclip.backends.triton import packing

    missing = (Reason(ReasonKind.CALL, "fastclip._C is not built"),)
    monkeypatch.setattr(packing, "extension", SimpleNamespace(load=lambda: missing))


class _PatchOnce:
    """Patches triton.language once for each launch; the interpreter does so at every call.

    That would take two thirds of its time.
    """

    def __init__(self, patch_lang: Callable[[Function], Scope]) -> None:
        self._patch_lang = patch_lang
        self._scopes: list[Scope] = []
        self._patched: set[int] = set()

    def __call__(self, fn: Function) -> Scope:
        module = id(fn.__globals__)
        if not self._scopes or module not in self._patched:
            self._scopes.append(self._patch_lang(fn))
            self._patched.add(module)
        return self

    def restore(self) -> None:
        """Undo everything at the end of the launch."""
        for scope in reversed(self._scopes):
            scope.restore()
        self._scopes.clear()
        self._patched.clear()


@contextmanager
def in_use(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the interpreter compute as GPUs do."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "cast_impl", _rounding(builder.cast_impl))
    if not hasattr(interpreter._interpreter, "fma_fp32"):  # before triton 3.9
        monkeypatch.setattr(builder, "create_fma", _fused(builder.create_fma))
    monkeypatch.setattr(interpreter, "_patch_lang", _PatchOnce(interpreter._patch_lang))
    # Some of the tests are about infinities, NaN and overflows.
    with np.errstate(all="ignore"):
        yield


def _rounding(
    cast_impl: Callable[[InterpreterBuilder, TensorHandle, tl.dtype], TensorHandle],
) -> Callable[[InterpreterBuilder, TensorHandle, tl.dtype], TensorHandle]:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def cast(self: InterpreterBuilder, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        """Convert bfloat16 exactly and round to it: the interpreter loses denormals and bits."""
        if src.dtype.scalar == tl.bfloat16 and dst_type.scalar == tl.float32:
            wide = src.data.astype(np.uint32) << 16
            return TensorHandle(wide.view(np.float32), tl.float32)
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
            return cast_impl(self, src, dst_type)
        bits = src.data.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        kept = np.where(np.isnan(src.data), bits >> 16 | 0x40, rounded)
        return TensorHandle(kept.astype(np.uint16), tl.bfloat16)

    return cast


def _fused(
    create_fma: Callable[
        [InterpreterBuilder, TensorHandle, TensorHandle, TensorHandle], TensorHandle
    ],
) -> Callable[[InterpreterBuilder, TensorHandle, TensorHandle, TensorHandle], TensorHandle]:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def fma(
        self: InterpreterBuilder, x: TensorHandle, y: TensorHandle, z: TensorHandle
    ) -> TensorHandle:
        """Multiply float32 exactly: the interpreter rounds the product before it adds."""
        if x.dtype.scalar != tl.float32:
            return create_fma(self, x, y, z)
        exact = x.data.astype(np.float64) * y.data
        return TensorHandle((exact + z.data).astype(np.float32), tl.float32)

    return fma
