"""What is known about GPUs and launches: finding out may take seconds and is done once."""

from __future__ import annotations

import torch

from ..base import Reason, ReasonKind, RefusedError, without_kernels

LaunchKey = tuple[object, ...]
"""A kernel's name, its device and its constants."""


class Answers:
    """What was learned in this process.

    Attributes:
        usable: the numbers of the GPUs that can run the kernels.
        unusable: for the number of a GPU, why it cannot.
        refused: for a launch, why it was refused.
    """

    def __init__(self) -> None:
        self.usable: set[int] = set()
        self.unusable: dict[int, str] = {}
        self.refused: dict[LaunchKey, str] = {}

    def are_known(self, index: int) -> bool:
        """Return whether it is known if a GPU can run the kernels."""
        return index in self.usable or index in self.unusable


ANSWERS = Answers()


class LaunchError(RefusedError):
    """Triton or the driver refused a launch: the kernel has not run."""

    def __init__(self, reason: str) -> None:
        super().__init__([Reason(ReasonKind.DEVICE, reason)], without_kernels(reason))


def is_transient(error: Exception) -> bool:
    """Return whether the next call may succeed: memory, files and captures change."""
    origin = error.__cause__ if isinstance(error, LaunchError) else error
    if isinstance(origin, (OSError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error).lower() for text in ("out of memory", "captur"))


def first_line_of(error: Exception) -> str:
    """Return an error's type and the first line of its text."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
