"""The backend "native": the compiled extension ``fastclip._C``. Only this module imports it."""

from __future__ import annotations

import functools
import os
import sys
import types
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .._build import build_info, torch_mismatch
from .base import NonFiniteError, UnsupportedError

ISA_VARIABLE = "FASTCLIP_ISA"

T = TypeVar("T")


class NativeBackend:
    """Run every operation in compiled kernels; tensors that they do not know are refused."""

    name = "native"

    def unavailable_reasons(self) -> list[str]:
        return list(_load()[1])

    def clip_grad_norm_(
        self,
        parameters: list[Tensor],
        max_norm: float | Tensor,
        norm_type: float,
        error_if_nonfinite: bool,
        foreach: bool | None,
    ) -> Tensor:
        c = _extension()
        return _run(
            c, c.clip_grad_norm_, parameters, _limit(max_norm), norm_type, error_if_nonfinite
        )

    def get_total_norm(
        self,
        tensors: list[Tensor],
        norm_type: float,
        error_if_nonfinite: bool,
        foreach: bool | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        c = _extension()
        return _run(c, c.get_total_norm, tensors, norm_type, error_if_nonfinite, dtype)

    def clip_grads_with_norm_(
        self,
        parameters: list[Tensor],
        max_norm: float | Tensor,
        total_norm: Tensor,
        foreach: bool | None,
    ) -> None:
        c = _extension()
        if not isinstance(total_norm, Tensor):
            raise UnsupportedError(["total_norm is no tensor"])
        _run(c, c.clip_grads_with_norm_, parameters, _limit(max_norm), total_norm)

    def clip_grad_value_(
        self, parameters: list[Tensor], clip_value: float, foreach: bool | None
    ) -> None:
        c = _extension()
        _run(c, c.clip_grad_value_, parameters, clip_value)

    def prepare(self, parameters: list[Tensor]) -> NativeParameters:
        return NativeParameters(parameters)


class NativeParameters:
    """A parameter set held in C++; ``.grad`` is read anew at each clip."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._c = _extension()
        self._list = self._c.ParameterList(parameters)

    def clip_grad_norm_(
        self, max_norm: float | Tensor, norm_type: float, error_if_nonfinite: bool
    ) -> Tensor:
        """Clip in one walk. Raises ``UnsupportedError`` or ``NonFiniteError`` before any write."""
        limit = _limit(max_norm)
        return _run(self._c, self._list.clip_grad_norm_, limit, norm_type, error_if_nonfinite)

    def parameter_norms(self) -> Tensor:
        """Return the last call's norm per parameter, shape (number of parameters,)."""
        return self._list.parameter_norms()


def _run(c: types.ModuleType, function: Callable[..., T], *arguments: object) -> T:
    """Call a function of the extension; its errors become those of ``base``."""
    try:
        return function(*arguments)
    except c.UnsupportedError as error:
        raise UnsupportedError(error.args[0]) from None
    except c.NonFiniteError as error:
        raise NonFiniteError(error.args[1]) from None


def cuda_reasons() -> list[str]:
    """Say why the CUDA kernels cannot run on torch's current GPU; empty when they can."""
    c, reasons = _load()
    if c is None:
        return list(reasons)
    if not torch.cuda.is_available():
        return [*(c.cuda_reasons(0) if torch.version.cuda else ()), "torch sees no GPU"]
    return c.cuda_reasons(torch.cuda.current_device())


def instruction_set() -> str | None:
    """Return the instruction set that the native CPU kernels use, or None without them.

    Returns:
        "avx512", "avx2" or "baseline": the best that this CPU has, or what ``FASTCLIP_ISA`` names.

    Raises:
        ValueError: ``FASTCLIP_ISA`` names one that this build or this CPU does not have.
    """
    c = _load()[0]
    return None if c is None else c.instruction_set()


def _limit(max_norm: float | Tensor) -> float | Tensor:
    """Return a number, or a tensor that lies on another device: no wait for that device here."""
    if not isinstance(max_norm, Tensor):
        return float(max_norm)
    return float(max_norm.detach()) if max_norm.is_cpu else max_norm.detach()


def _extension() -> types.ModuleType:
    c, reasons = _load()
    if c is None:
        _warn_unbuilt()
        raise UnsupportedError(reasons)
    return c


@functools.cache
def _warn_unbuilt() -> None:
    """Warn once, at the caller's line, when there is no extension and nobody asked for that."""
    info = build_info()
    if info["native"] or info["mode"] == "python":
        return
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"fastclip: the native extension was not built: {info['reason']}; gradients are clipped "
        "with torch operations",
        RuntimeWarning,
        stacklevel=level,
    )


@functools.cache
def _load() -> tuple[types.ModuleType | None, tuple[str, ...]]:
    """Import the extension once, or collect the reasons why it cannot be used.

    Everything that could crash on import is checked before it.
    """
    info = build_info()
    if not info["native"]:
        return None, (f"fastclip._C is not built: {info['reason']}",)
    mismatch = torch_mismatch(torch.__version__)
    if mismatch is not None:
        return None, (mismatch,)
    if torch.version.hip is not None:
        return None, ("this torch is built for ROCm",)
    try:
        from .. import _C
    except ImportError as error:
        return None, (f"fastclip._C cannot be imported: {error}",)
    _select_instruction_set(_C)
    return _C, ()


def _select_instruction_set(c: types.ModuleType) -> None:
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return
    runnable = c.instruction_sets()
    if wanted not in runnable:
        known = ", ".join(runnable)
        raise ValueError(f"{ISA_VARIABLE}: must be one of {known} on this CPU (got {wanted!r})")
    c.set_instruction_set(wanted)
