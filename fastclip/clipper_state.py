"""What a checkpoint holds of a GradClipper, and the checks of what one gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class ClipperState(NamedTuple):
    """The entries of ``GradClipper.state_dict()``."""

    max_norm: float | Tensor
    norm_type: float
    error_if_nonfinite: bool
    names: list[str]


def checked_state(state_dict: Mapping[str, object], names: Sequence[str]) -> ClipperState:
    """Return a state that a GradClipper with these names can take.

    Raises:
        KeyError, TypeError, ValueError: see ``GradClipper.load_state_dict``.
    """
    given, max_norm, norm_type, error_if_nonfinite = (
        state_dict[key] for key in ("names", "max_norm", "norm_type", "error_if_nonfinite")
    )
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"GradClipper: names must be a list (got {_kind(given)})")
    if list(given) != list(names):
        raise ValueError(
            "GradClipper: the state must be of a GradClipper with the same names "
            f"({_difference(given, names)})"
        )
    if not isinstance(max_norm, (int, float, Tensor)):
        raise TypeError(
            f"GradClipper: max_norm must be a number or a tensor (got {_kind(max_norm)})"
        )
    check_dimension(max_norm)
    if not isinstance(norm_type, (int, float)):
        raise TypeError(f"GradClipper: norm_type must be a number (got {_kind(norm_type)})")
    if not isinstance(error_if_nonfinite, bool):
        raise TypeError(
            f"GradClipper: error_if_nonfinite must be a bool (got {_kind(error_if_nonfinite)})"
        )
    return ClipperState(max_norm, float(norm_type), bool(error_if_nonfinite), list(given))


def check_dimension(max_norm: float | Tensor) -> None:
    """Raise ValueError for a tensor that is not 0-dim."""
    if isinstance(max_norm, Tensor) and max_norm.dim() != 0:
        raise ValueError(f"GradClipper: max_norm must be 0-dim (got shape {tuple(max_norm.shape)})")


def _difference(given: Sequence[object], held: Sequence[str]) -> str:
    """Say in a few words how two lists of names differ."""
    if len(given) != len(held):
        return f"got {len(given)} names, not {len(held)}"
    first = next(i for i, (a, b) in enumerate(zip(given, held, strict=True)) if a != b)
    return f"got {given[first]!r} at position {first}, not {held[first]!r}"


def _kind(value: object) -> str:
    return type(value).__name__
