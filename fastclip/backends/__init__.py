"""The backends, in the order in which they are preferred, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch._compile import _disable_dynamo
from torch.autograd import profiler

from .base import Backend, UnsupportedError, unsupported_message, warn_once
from .native import NativeBackend
from .native import instruction_set as instruction_set
from .reference_backend import ReferenceBackend
from .triton import TritonBackend, is_interpreted

T = TypeVar("T")

NATIVE = NativeBackend()
TRITON = TritonBackend()
REFERENCE = ReferenceBackend()
BACKENDS: tuple[Backend, ...] = (NATIVE, TRITON, REFERENCE)
NAMES = tuple(backend.name for backend in BACKENDS)


def backend_report(device_type: str = "cpu") -> dict[str, list[str]]:
    """Say of every backend why it cannot run on this machine.

    Args:
        device_type: where the gradients would lie: "cpu", "cuda" or another of torch's; for "cuda"
            the current GPU is asked.

    Returns:
        Backend name to reasons, in order of preference; a backend with no reasons can run.

    Raises:
        ValueError: ``FASTCLIP_CLIP_MODE`` or ``FASTCLIP_ISA`` names what there is not.
    """
    return {backend.name: backend.unavailable_reasons(device_type) for backend in BACKENDS}


def check_backend(who: str, name: str | None, foreach: bool | None) -> None:
    """Raise ValueError for an unknown name and for a name that contradicts ``foreach=False``."""
    if name is not None and name not in NAMES:
        raise ValueError(f"{who}: backend must be one of {', '.join(NAMES)} or None (got {name!r})")
    if foreach is False and name not in (None, REFERENCE.name):
        raise ValueError(f'{who}: foreach=False needs backend "reference" or None (got {name!r})')


def is_traced(who: str, name: str | None, foreach: bool | None) -> bool:
    """Say whether torch.compile is tracing the call, which the reference backend alone can be.

    Raises:
        ValueError: see ``check_backend``.
        RuntimeError: the caller named another backend.
    """
    if not torch.compiler.is_compiling():
        return False
    check_backend(who, name, foreach)
    if name not in (None, REFERENCE.name):
        raise RuntimeError(unsupported_message(who, name, ["torch.compile is tracing it"]))
    return True


def dispatch(
    who: str, name: str | None, foreach: bool | None, attempt: Callable[[Backend], T]
) -> T:
    """Run ``attempt`` with the backend that the caller named, or else with the first that can.

    Raises:
        ValueError: see ``check_backend``; or ``FASTCLIP_CLIP_MODE`` or ``FASTCLIP_ISA`` in the
            environment names what there is not.
        RuntimeError: the backend that the caller named cannot run this; says every reason.
    """
    if torch.compiler.is_compiling():
        # After a break of the graph: what backends do inside would be traced piece by piece.
        return _dispatch_outside_graph(who, name, foreach, attempt)
    if profiler._is_profiler_enabled:  # in any thread
        with profiler.record_function(f"fastclip::{who}"):
            return _dispatch(who, name, foreach, attempt)
    return _dispatch(who, name, foreach, attempt)


def _dispatch(
    who: str, name: str | None, foreach: bool | None, attempt: Callable[[Backend], T]
) -> T:
    check_backend(who, name, foreach)
    warnings: list[str] = []
    for backend in _candidates(name, foreach):
        if backend is REFERENCE:
            for warning in warnings:
                warn_once(warning)
        try:
            return attempt(backend)
        except UnsupportedError as error:
            if name is not None:
                raise RuntimeError(unsupported_message(who, name, error.reasons)) from None
            warnings += [] if error.warning is None else [error.warning]
    raise AssertionError("the reference backend runs everything or raises torch's own error")


# torch.compiler.disable would import torch._dynamo, which takes more than a second.
_dispatch_outside_graph = _disable_dynamo(_dispatch)


def _candidates(name: str | None, foreach: bool | None) -> Iterator[Backend]:
    if foreach is False:
        yield REFERENCE
        return
    for backend in BACKENDS:
        # Interpreted kernels are for those who name them.
        is_chosen = name is None and not (backend is TRITON and is_interpreted())
        if is_chosen or name == backend.name:
            yield backend
