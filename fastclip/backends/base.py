"""What a backend is, what its lists can do, and the errors and warnings that all share."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .request import ClipRequest, Factor, Kind, Norms, Sums

NO_CLIP_YET = "GradClipper: parameter_norms needs a call of clip_() first"

MAX_LISTED = 10
"""How many gradients an error names before it only counts the rest."""


class ReasonKind(IntEnum):
    """What a backend cannot run.

    CALL: an argument. TENSORS: gradients of this kind. NOT_BUILT: gradients on a GPU, in a build
    without CUDA kernels. DEVICE: gradients on a GPU that refuses the kernels. The numbers are those
    of ReasonKind in csrc/binding/walk/reasons.h.
    """

    CALL = 0
    TENSORS = 1
    NOT_BUILT = 2
    DEVICE = 3


class Reason(NamedTuple):
    """One reason why a backend cannot run a call: its kind, and a phrase that users can act on."""

    kind: ReasonKind
    text: str


class RefusedError(Exception):
    """A backend cannot run this call; nothing has been written.

    Attributes:
        reasons: every reason found.
        warning: a text to warn with once, if another backend is chosen instead.
    """

    def __init__(self, reasons: Sequence[Reason], warning: str | None = None) -> None:
        super().__init__("; ".join(reason.text for reason in reasons))
        self.reasons = list(reasons)
        self.warning = warning


class UnsupportedError(RuntimeError):
    """The backend that the caller named cannot run this call; nothing has been written.

    Attributes:
        backend: its name.
        reasons: every reason, in words.
    """

    def __init__(self, who: str, backend: str, reasons: Sequence[str]) -> None:
        super().__init__(unsupported_message(who, backend, reasons))
        self.backend = backend
        self.reasons = list(reasons)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (self.args[0], self.backend, self.reasons)


def _rebuilt(message: str, backend: str, reasons: list[str]) -> UnsupportedError:
    error = UnsupportedError("", backend, reasons)
    error.args = (message,)
    return error


class NonFiniteError(Exception):
    """The norm is not finite and the caller asked for an error; nothing has been written.

    Attributes:
        positions: positions, among the sources, of the gradients that hold inf or nan.
        norms: what the clip found.
    """

    def __init__(self, positions: Sequence[int], norms: Norms) -> None:
        super().__init__(list(positions))
        self.positions = list(positions)
        self.norms = norms


class GradList(Protocol):
    """The gradients of some sources, as one backend works on them.

    Each operation reads them in its own walk: ``.grad`` may change between operations. ``hold()``
    reads them once, for several operations on the same gradients.

    Every operation checks before it writes, and raises ``RefusedError`` where the backend cannot
    run it. No operation waits for a device, except for ``error_if_nonfinite`` and for what is
    copied between a GPU and the CPU. ``inv_scale`` and ``found_inf`` are as in ``ClipRequest``, in
    every
    operation: gradients are multiplied by the first. The second is set if a gradient is not finite,
    before anything is written; if it is set, nothing is written.
    """

    def hold(self, *, takes_norm: bool = True) -> GradList:
        """Read and check the gradients now; the result owns them as long as it lives.

        Args:
            takes_norm: whether their norm will be taken, which the ranks of a mesh do together.
        """
        ...

    def clip(self, request: ClipRequest) -> Norms:
        """Find the norm and, where it exceeds ``max_norm``, rescale the gradients in place.

        Raises:
            NonFiniteError: the norm is not finite, and the request asks for an error.
            RuntimeError: it asks for one while a CUDA graph is captured.
        """
        ...

    def reduce(
        self,
        norm_type: float,
        *,
        dtype: torch.dtype | None = None,
        found_inf: Tensor | None = None,
    ) -> Sums:
        """Sum up each gradient, and all of them; ``dtype`` is as in ``ClipRequest``."""
        ...

    def finish(self, sums: Sums, request: ClipRequest) -> Norms:
        """Compute the norm and the coefficient from a total; no gradient is read or written.

        Args:
            sums: of this list; their ``total`` may come from elsewhere (``Sums.with_total``).
            request: its ``max_norm`` and ``inv_scale`` count.
        """
        ...

    def scale(
        self, by: Factor, *, inv_scale: Tensor | None = None, found_inf: Tensor | None = None
    ) -> bool:
        """Multiply the gradients in place; a factor of 1 or more writes nothing by itself.

        If ``reduce()`` has checked a held list for the same ``found_inf``, its gradients are not
        checked again.

        Returns:
            Whether there are gradients.
        """
        ...

    def scale_into(
        self,
        targets: Sequence[Tensor],
        by: Factor,
        *,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Write the products to other tensors, whatever the factor and whatever is found.

        Args:
            targets: one for each distinct gradient, in order: of its shape, strides, dtype and
                device, in memory that nothing else shares.
            by, inv_scale, found_inf: as for ``scale``.
        """
        ...

    def clamp(
        self,
        clip_value: float,
        *,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> bool:
        """Clamp the gradients, multiplied by ``inv_scale``, in place to [-clip_value, clip_value].

        Returns:
            Whether there are gradients.
        """
        ...


class Backend(Protocol):
    """What runs the operations: one kind of kernels, or torch."""

    name: str

    def unavailable_reasons(self, device_type: str) -> list[str]:
        """Return why this backend cannot run for tensors on such a device; empty when it can."""
        ...

    def gather(self, sources: list[Tensor], kind: Kind, *, foreach: bool | None = None) -> GradList:
        """Return the list of the sources' gradients.

        Args:
            sources: parameters or tensors, as ``kind`` says; kept as they are.
            kind: which of the two, and whether they may be written.
            foreach: torch's argument; False takes one tensor at a time where torch's own operations
                do the work.
        """
        ...


def check_finite(total_norm: Tensor, norms: Norms, grads: GradList) -> None:
    """Raise ``NonFiniteError`` when a norm is inf or nan. Waits for its device.

    Args:
        total_norm: ``norms.total_norm`` as a plain tensor.
        norms: what the clip found.
        grads: the list; it has not been written.
    """
    if not bool(torch.isfinite(total_norm)):
        _name_nonfinite(norms, grads)


# This runs outside the graph, because torch 2.10's torch.compile cannot raise our exception.
@_disable_dynamo
def _name_nonfinite(norms: Norms, grads: GradList) -> NoReturn:
    raise NonFiniteError(nonfinite_positions(grads), norms)


def nonfinite_positions(grads: GradList) -> list[int]:
    """Return the positions of the sources whose gradients hold inf or nan. Waits for devices.

    It uses maxima, because a sum may be inf although every gradient is finite.
    """
    maxima = grads.reduce(math.inf)
    is_finite = [value for part in maxima.parts for value in torch.isfinite(part).tolist()]
    places = range(len(is_finite)) if maxima.places is None else maxima.places.tolist()
    return [i for i, place in enumerate(places) if place >= 0 and not is_finite[place]]


@functools.cache
def warn_once(text: str) -> None:
    """Emit a RuntimeWarning the first time, at the user's line that called the package."""
    warn(text)


def warn(text: str) -> None:
    """Emit a RuntimeWarning at the user's line that called the package."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def unsupported_message(who: str, backend: str, reasons: Sequence[str]) -> str:
    """Return the text of ``UnsupportedError``."""
    return f'{who}: backend "{backend}" cannot run this: {"; ".join(reasons)}'


def without_kernels(reason: str) -> str:
    """Return the warning for CUDA gradients that no kernels can clip."""
    return f"fastclip: CUDA gradients are clipped with torch operations: {reason}"


def nonfinite_message(norm_type: float, labels: Sequence[str]) -> str:
    """Return torch's error text, followed by the gradients that hold inf or nan."""
    message = (
        f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, "
        "so it cannot be clipped. To disable this error and scale the gradients by the non-finite "
        "norm anyway, set `error_if_nonfinite=False`"
    )
    if not labels:
        return message + "; every gradient is finite, their norm overflows"
    listed = ", ".join(labels[:MAX_LISTED])
    rest = len(labels) - MAX_LISTED
    return f"{message}; non-finite gradients: {listed}" + (f" and {rest} more" if rest > 0 else "")
