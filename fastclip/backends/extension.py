"""The compiled extension ``fastclip._C``: its import, its errors. Only this module imports it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

from .._build import build_info, torch_mismatch
from .base import Reason, ReasonKind, RefusedError, warn_once, without_kernels

if TYPE_CHECKING:
    # With this, calls are checked against the stub: to a type checker, a module that a function
    # returns could be any module.
    from .. import _C as binding
    from .._C import GradList as BoundList  # noqa: F401 - for annotations
    from .._C import Remains as BoundRemains  # noqa: F401
else:
    binding = None
    """The extension, once ``load()`` has found that it can be used."""

ISA_VARIABLE = "FASTCLIP_ISA"

NO_KERNELS = "fastclip._C has no CUDA kernels"

P = ParamSpec("P")
T = TypeVar("T")


class Kernels(IntEnum):
    """Whose kernels a list is for; the numbers are those of csrc/binding/walk/purpose.h."""

    NATIVE = 0
    TRITON_ON_GPU = 1
    TRITON_INTERPRETED = 2


@functools.cache
def load() -> tuple[Reason, ...]:
    """Import the extension once, as ``binding``.

    Everything that could crash on import is checked before it.

    Returns:
        The reasons why it cannot be used; none where it can.

    Raises:
        ValueError: ``FASTCLIP_ISA`` names an unknown instruction set.
    """
    info = build_info()
    if not info["native"]:
        return _reasons(f"fastclip._C is not built: {info['reason']}")
    mismatch = torch_mismatch(torch.__version__)
    if mismatch is not None:
        return _reasons(mismatch)
    if torch.version.hip is not None:
        return _reasons("this torch is built for ROCm")
    try:
        from .. import _C
    except ImportError as error:
        return _reasons(f"fastclip._C cannot be imported: {error}")
    global binding  # noqa: PLW0603 - a module is the one object that a type checker gives a stub
    binding = _C
    _select_instruction_set()
    return ()


def require() -> None:
    """Raise ``RefusedError`` if there is no extension; also warn if users expect one."""
    reasons = load()
    if reasons:
        _warn_unusable(reasons)
        raise RefusedError(reasons)


def call_translating_errors(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of the extension, and raise its errors as those of ``base``."""
    try:
        return function(*args, **kwargs)
    except binding.UnsupportedError as error:
        raise refusal_of(error) from None


def refusal_of(error: Exception) -> RefusedError:
    """Return the error of ``base`` for an ``UnsupportedError`` of the extension."""
    reasons = [Reason(ReasonKind(kind), text) for kind, text in error.args[0]]
    return RefusedError(reasons, _warning_of(reasons))


def cuda_reasons() -> list[str]:
    """Return why the CUDA kernels cannot run on torch's current GPU; empty when they can."""
    reasons = load()
    if reasons:
        return [reason.text for reason in reasons]
    info = build_info()
    if info["cuda"] is None:
        return [f"{NO_KERNELS}: {info['cuda_reason']}"]
    if torch.version.cuda is None:
        return [f"torch {torch.__version__} is built without CUDA"]
    if not torch.cuda.is_available():
        return [*binding.cuda_reasons(0), "torch sees no GPU"]
    return binding.cuda_reasons(torch.cuda.current_device())


def instruction_set() -> str | None:
    """Return the instruction set that the native CPU kernels use, or None without them.

    Returns:
        "avx512", "avx2" or "baseline": the best that this CPU has, or what ``FASTCLIP_ISA`` names.

    Raises:
        ValueError: ``FASTCLIP_ISA`` names one that this build or this CPU does not have.
    """
    return None if load() else binding.instruction_set()


def _reasons(text: str) -> tuple[Reason, ...]:
    return (Reason(ReasonKind.CALL, text),)


def _warning_of(reasons: list[Reason]) -> str | None:
    """Return the warning, if one is due, for CUDA gradients clipped without CUDA kernels."""
    info = build_info()
    for kind, text in reasons:
        if kind is ReasonKind.DEVICE:
            return without_kernels(text)
        if kind is ReasonKind.NOT_BUILT and info["mode"] != "cpu":
            return without_kernels(f"{NO_KERNELS}: {info['cuda_reason']}")
    return None


def _warn_unusable(reasons: tuple[Reason, ...]) -> None:
    """Warn if there is no extension, or none for this torch, unless that was asked for."""
    info = build_info()
    if info["mode"] == "python" or torch.version.hip is not None:
        return
    why = reasons[0].text
    if not info["native"]:
        why = f"the native extension was not built: {info['reason']}"
    warn_once(f"fastclip: {why}; gradients are clipped with torch operations")


def _select_instruction_set() -> None:
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return
    runnable = binding.instruction_sets()
    if wanted not in runnable:
        known = ", ".join(runnable)
        raise ValueError(f"{ISA_VARIABLE}: must be one of {known} on this CPU (got {wanted!r})")
    binding.set_instruction_set(wanted)
