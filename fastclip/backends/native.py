"""The backend "native": the compiled extension ``fastclip._C``. Only this module imports it."""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .._build import build_info, torch_mismatch
from .base import NonFiniteError, UnsupportedError, warn_once
from .clip_mode import FUSED, follow_clip_mode

ISA_VARIABLE = "FASTCLIP_ISA"

NO_KERNELS = "fastclip._C has no CUDA kernels"
"""As the extension words it."""

T = TypeVar("T")


class NativeBackend:
    """Run every operation in compiled kernels; tensors that they do not know are refused."""

    name = "native"

    def unavailable_reasons(self, device_type: str) -> list[str]:
        if device_type == "cuda":
            return cuda_reasons()
        reasons = list(_load()[1])
        return reasons if device_type == "cpu" else [*reasons, _other_device(device_type)]

    def clip_grad_norm_(
        self,
        parameters: list[Tensor],
        max_norm: float | Tensor,
        norm_type: float,
        error_if_nonfinite: bool,
        foreach: bool | None,
    ) -> Tensor | None:
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
    ) -> bool:
        c = _extension()
        if not isinstance(total_norm, Tensor):
            raise UnsupportedError(["total_norm is no tensor"])
        return _run(c, c.clip_grads_with_norm_, parameters, _limit(max_norm), total_norm)

    def clip_grad_value_(
        self, parameters: list[Tensor], clip_value: float, foreach: bool | None
    ) -> bool:
        c = _extension()
        return _run(c, c.clip_grad_value_, parameters, clip_value)

    def prepare(self, parameters: list[Tensor]) -> NativeParameters:
        return NativeParameters(parameters)


class NativeParameters:
    """A parameter set held in C++; ``.grad`` is read anew at each clip."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._c = _extension()
        self._list = self._c.ParameterList(parameters)

    def clip_grad_norm_(
        self, max_norm: float | Tensor, norm_type: float, error_if_nonfinite: bool
    ) -> Tensor | None:
        """Clip in one walk. Raises ``UnsupportedError`` or ``NonFiniteError`` before any write."""
        limit = _limit(max_norm)
        return _run(self._c, self._list.clip_grad_norm_, limit, norm_type, error_if_nonfinite)

    def parameter_norms(self) -> Tensor:
        """Return the last call's norm per parameter, shape (number of parameters,)."""
        return self._list.parameter_norms()


def translated(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of what ``packer`` returned; its errors become those of ``base``."""
    return _run(_extension(), function, *arguments)


def _run(c: types.ModuleType, function: Callable[..., T], *arguments: object) -> T:
    """Call a function of the extension; its errors become those of ``base``."""
    try:
        return function(*arguments)
    except c.UnsupportedError as error:
        reasons = error.args[0]
        raise UnsupportedError(reasons, _warning_of(reasons)) from None
    except c.NonFiniteError as error:
        raise NonFiniteError(error.args[1]) from None


def cuda_reasons() -> list[str]:
    """Say why the CUDA kernels cannot run on torch's current GPU; empty when they can."""
    c, reasons = _load()
    if c is None:
        return list(reasons)
    info = build_info()
    if info["cuda"] is None:
        return [f"{NO_KERNELS}: {info['cuda_reason']}"]
    if torch.version.cuda is None:
        return [f"torch {torch.__version__} is built without CUDA"]
    if not torch.cuda.is_available():
        return [*c.cuda_reasons(0), "torch sees no GPU"]
    return c.cuda_reasons(torch.cuda.current_device())


def _other_device(device_type: str) -> str:
    return f"device {device_type} (supported: cpu, cuda)"


def _warning_of(reasons: Sequence[str]) -> str | None:
    """Return what to say where CUDA gradients have to do without CUDA kernels."""
    info = build_info()
    for reason in reasons:
        if reason.startswith("the CUDA kernels cannot run on"):
            return without_kernels(reason)
        if reason.startswith("device cuda") and NO_KERNELS in reason and info["mode"] != "cpu":
            return without_kernels(f"{NO_KERNELS}: {info['cuda_reason']}")
    return None


def without_kernels(reason: str) -> str:
    """Return the warning for CUDA gradients that no kernels can clip."""
    return f"fastclip: CUDA gradients are clipped with torch operations: {reason}"


def packer() -> types.ModuleType | None:
    """Return the extension if it can pack lists for other backends' kernels."""
    return _load()[0]


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
        _warn_unusable(reasons)
        raise UnsupportedError(reasons)
    return c


def _warn_unusable(reasons: Sequence[str]) -> None:
    """Warn when there is no extension, or none for this torch, and nobody asked for that."""
    info = build_info()
    if info["mode"] == "python" or torch.version.hip is not None:
        return
    why = reasons[0] if info["native"] else f"the native extension was not built: {info['reason']}"
    warn_once(f"fastclip: {why}; gradients are clipped with torch operations")


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
    follow_clip_mode(lambda mode: _C.fuse_clips(mode == FUSED))
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
