"""What a backend is, how one is chosen, and the message texts that all of them share."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

NO_CLIP_YET = "GradClipper: parameter_norms needs a call of clip_() first"

MAX_LISTED = 10
"""How many gradients an error names before it only counts the rest."""


class UnsupportedError(Exception):
    """A backend cannot run this call; nothing has been written.

    Attributes:
        reasons: every reason found, each a phrase that a user can act on.
        warning: what to tell the user, once, where another backend is chosen instead.
    """

    def __init__(self, reasons: Sequence[str], warning: str | None = None) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)
        self.warning = warning


class NonFiniteError(Exception):
    """The norm is not finite and the caller asked for an error; nothing has been written.

    Attributes:
        positions: positions, in the caller's list, of the gradients that hold inf or nan.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        super().__init__(list(positions))
        self.positions = list(positions)


class PreparedParameters(Protocol):
    """A parameter set that one backend keeps ready for call after call."""

    def clip_grad_norm_(
        self, max_norm: float | Tensor, norm_type: float, error_if_nonfinite: bool
    ) -> Tensor | None:
        """Return the norm before clipping; None where no parameter has a gradient."""
        ...

    def parameter_norms(self) -> Tensor:
        """Return the last call's norm per parameter, shape (number of parameters,)."""
        ...


class Backend(Protocol):
    """The operations of ``clip_grad.py``, on lists already walked and arguments in range.

    Every operation checks before it writes, and raises ``UnsupportedError`` or ``NonFiniteError``.
    ``foreach`` is torch's argument of that name. Operations that write say whether they found a
    gradient: by None instead of a norm, or by a bool.
    """

    name: str

    def unavailable_reasons(self, device_type: str) -> list[str]:
        """Say why this backend cannot run for tensors on such a device; empty when it can."""
        ...

    def clip_grad_norm_(
        self,
        parameters: list[Tensor],
        max_norm: float | Tensor,
        norm_type: float,
        error_if_nonfinite: bool,
        foreach: bool | None,
    ) -> Tensor | None: ...

    def get_total_norm(
        self,
        tensors: list[Tensor],
        norm_type: float,
        error_if_nonfinite: bool,
        foreach: bool | None,
        dtype: torch.dtype | None,
    ) -> Tensor: ...

    def clip_grads_with_norm_(
        self,
        parameters: list[Tensor],
        max_norm: float | Tensor,
        total_norm: Tensor,
        foreach: bool | None,
    ) -> bool: ...

    def clip_grad_value_(
        self, parameters: list[Tensor], clip_value: float, foreach: bool | None
    ) -> bool: ...

    def prepare(self, parameters: list[Tensor]) -> PreparedParameters: ...


@functools.cache
def warn_once(text: str) -> None:
    """Emit a RuntimeWarning the first time, at the line of the user's that called the package."""
    warn(text)


def warn(text: str) -> None:
    """Emit a RuntimeWarning at the line of the user's that called the package."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def unsupported_message(who: str, backend: str, reasons: Sequence[str]) -> str:
    """Say that the backend the caller named cannot run, and every reason why."""
    return f'{who}: backend "{backend}" cannot run this: {"; ".join(reasons)}'


def nonfinite_message(norm_type: float, labels: Sequence[str]) -> str:
    """Build stock's error text, then the gradients that hold inf or nan, with their shapes."""
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
