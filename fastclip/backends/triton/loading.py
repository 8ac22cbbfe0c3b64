"""Whether Triton's kernels can run here: its import and each GPU are tried once."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..base import Reason, ReasonKind, RefusedError, without_kernels
from ..request import is_capturing
from .answers import ANSWERS, first_line_of, is_transient

if TYPE_CHECKING:
    from .launches import Launches

INTERPRET_VARIABLE = "TRITON_INTERPRET"
"""Triton's own variable: if it is set, an interpreter runs the kernels, on CPU tensors."""

NO_GPU = "torch sees no GPU"

OLDEST = (3, 6)
"""The release of triton that comes with the oldest supported torch."""


def is_interpreted() -> bool:
    """Return whether Triton's interpreter is to run the kernels, on CPU tensors."""
    return os.environ.get(INTERPRET_VARIABLE, "0").lower() in ("1", "true", "on", "yes", "y")


def supported_device() -> str:
    """Return the type of the devices that kernels run on."""
    return "cpu" if is_interpreted() else "cuda"


def launches_on(device: torch.device) -> Launches:
    """Return what launches kernels on a device, after checking that they can run there.

    Raises:
        RefusedError: the kernels cannot run there.
        RuntimeError: whether they can is not known yet, and a CUDA graph is captured.
    """
    reasons = import_reasons()
    if reasons:
        raise _without_kernels(reasons)
    if device.type == "cuda":
        _check_gpu(device)
    return _launches_on(device)


@functools.cache
def _launches_on(device: torch.device) -> Launches:
    from .launches import Launches

    return Launches(device)


def gpu_reasons() -> list[str]:
    """Return why kernels cannot run on torch's current GPU; empty when they can."""
    if not _has_gpu():
        return [NO_GPU]
    reason = _why_gpu_cannot(torch.cuda.current_device())
    return [] if reason is None else [reason]


def import_reasons() -> tuple[str, ...]:
    """Import triton and the kernels once; return why they cannot be used; empty when they can."""
    reasons = _import_reasons()
    if reasons:
        return reasons
    from .call import are_interpreted

    if are_interpreted() == is_interpreted():
        return ()
    state = "set" if is_interpreted() else "unset"
    return (f"{INTERPRET_VARIABLE} was {state} after triton was imported",)


@functools.cache
def _import_reasons() -> tuple[str, ...]:
    try:
        import triton

        version = triton.__version__
        is_old = tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST
    except Exception as error:  # noqa: BLE001 - what is found by that name may raise anything
        return (f"triton cannot be imported: {error}",)
    if is_old:
        oldest = ".".join(map(str, OLDEST))
        return (f"triton {version} is too old (supported: {oldest} and later)",)
    try:
        from . import launches as launches
    except Exception as error:  # noqa: BLE001
        return (f"triton {version} cannot be used: {error}",)
    return ()


@functools.cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _check_gpu(device: torch.device) -> None:
    if not ANSWERS.are_known(device.index) and is_capturing(device):
        raise RuntimeError(
            "fastclip: the Triton backend must be called once before a CUDA graph is captured: it "
            "compiles and loads its kernels then"
        )
    reason = _why_gpu_cannot(device.index)
    if reason is not None:
        raise _without_kernels([reason])


def _without_kernels(reasons: Sequence[str]) -> RefusedError:
    refusals = [Reason(ReasonKind.DEVICE, reason) for reason in reasons]
    return RefusedError(refusals, without_kernels("; ".join(reasons)))


def _why_gpu_cannot(index: int) -> str | None:
    """Return why kernels cannot run on a GPU, or None; try it once, unless that may change."""
    if index in ANSWERS.usable:
        return None
    if index in ANSWERS.unusable:
        return ANSWERS.unusable[index]
    reasons = import_reasons()
    if reasons:
        return "; ".join(reasons)
    from . import launches

    try:
        launches.check(index)
    except Exception as error:  # noqa: BLE001 - a compiler or a driver may raise anything
        if isinstance(error, RefusedError):
            reason = str(error)
        else:
            reason = f"Triton cannot run on device cuda:{index}: {first_line_of(error)}"
        if not is_transient(error):
            ANSWERS.unusable[index] = reason
        return reason
    ANSWERS.usable.add(index)
    return None
