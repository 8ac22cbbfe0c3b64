"""The backends, in the order in which they are preferred, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch._compile import _disable_dynamo
from torch.autograd import profiler

from .base import Backend, RefusedError, UnsupportedError, unsupported_message, warn_once
from .clip_mode import clip_mode as _clip_mode
from .extension import instruction_set as instruction_set
from .native import NativeBackend
from .reference import ReferenceBackend
from .triton import TritonBackend, is_interpreted

T = TypeVar("T")

NATIVE = NativeBackend()
TRITON = TritonBackend()
REFERENCE = ReferenceBackend()
BACKENDS: tuple[Backend, ...] = (NATIVE, TRITON, REFERENCE)
NAMES = tuple(backend.name for backend in BACKENDS)


def backend_report(device_type: str = "cpu") -> dict[str, list[str]]:
    """Return, for every backend, why it cannot run on this machine.

    Args:
        device_type: where the gradients would lie: "cpu", "cuda" or another of torch's; for "cuda"
            the current GPU is asked.

    Returns:
        Backend name to reasons, in order of preference; a backend with no reasons can run.

    Raises:
        ValueError: ``FASTCLIP_CLIP_MODE`` or ``FASTCLIP_ISA`` has an unknown value.
    """
    _clip_mode()
    return {backend.name: backend.unavailable_reasons(device_type) for backend in BACKENDS}


def check_backend(who: str, name: str | None, foreach: bool | None) -> None:
    """Raise ValueError for an unknown name and for a name that contradicts ``foreach=False``."""
    if name is not None and name not in NAMES:
        raise ValueError(f"{who}: backend must be one of {', '.join(NAMES)} or None (got {name!r})")
    if foreach is False and name not in (None, REFERENCE.name):
        raise ValueError(f'{who}: foreach=False needs backend "reference" or None (got {name!r})')


def is_traced(who: str, name: str | None, foreach: bool | None) -> bool:
    """Return whether torch.compile is tracing the call; it can trace only the reference backend.

    Raises:
        ValueError: see ``check_backend``.
        RuntimeError: the caller named another backend. The error is meant to break the graph, so
            that the call runs outside of it; with ``fullgraph=True`` it ends the compilation.
    """
    if not torch.compiler.is_compiling():
        return False
    check_backend(who, name, foreach)
    if name not in (None, REFERENCE.name):
        # A RuntimeError breaks the graph where it is raised. UnsupportedError would break it where
        # it is constructed, and would then be raised outside.
        raise RuntimeError(unsupported_message(who, name, ["torch.compile is tracing it"]))
    return True


def dispatch(
    who: str, name: str | None, foreach: bool | None, attempt: Callable[[Backend], T]
) -> T:
    """Run ``attempt`` with the backend that the caller named, or else with the first that can.

    Raises:
        ValueError: see ``check_backend``; or ``FASTCLIP_CLIP_MODE`` or ``FASTCLIP_ISA`` has an
            unknown value.
        UnsupportedError: the backend that the caller named cannot run this; says every reason.
    """
    if torch.compiler.is_compiling():
        # The graph is broken here: otherwise what backends do would be traced piece by piece.
        return _dispatch_outside_graph(who, name, foreach, attempt)
    if profiler._is_profiler_enabled:  # true in every thread
        with profiler.record_function(f"fastclip::{who}"):
            return _dispatch(who, name, foreach, attempt)
    return _dispatch(who, name, foreach, attempt)


def _dispatch(
    who: str, name: str | None, foreach: bool | None, attempt: Callable[[Backend], T]
) -> T:
    if name is not None or foreach is False:
        check_backend(who, name, foreach)
        chosen = REFERENCE if name is None else BACKENDS[NAMES.index(name)]
        try:
            return attempt(chosen)
        except RefusedError as error:
            reasons = [reason.text for reason in error.reasons]
            raise UnsupportedError(who, chosen.name, reasons) from None
    try:
        return attempt(NATIVE)
    except RefusedError as error:
        warnings = [error.warning]
    if not is_interpreted():  # interpreted kernels run only if the caller names them
        try:
            return attempt(TRITON)
        except RefusedError as error:
            warnings.append(error.warning)
    for warning in warnings:
        if warning is not None:
            warn_once(warning)
    return attempt(REFERENCE)


# torch.compiler.disable would import torch._dynamo, which takes more than a second.
_dispatch_outside_graph = _disable_dynamo(_dispatch)
