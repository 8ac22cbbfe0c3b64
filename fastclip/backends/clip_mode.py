"""How a clip on a GPU is launched: one cooperative kernel, or two kernels."""

from __future__ import annotations

import os
from collections.abc import Callable

VARIABLE = "FASTCLIP_CLIP_MODE"

AUTO, FUSED, SPLIT = MODES = ("auto", "fused", "split")
"""One kernel where the device takes it and no CUDA graph is captured; one, or an error; two."""

_state: dict[str, str] = {}
_followers: list[Callable[[str], None]] = []


def clip_mode() -> str:
    """Return the mode in use: what ``set_clip_mode`` chose, else ``FASTCLIP_CLIP_MODE``.

    Raises:
        ValueError: the environment names an unknown mode.
    """
    if VARIABLE not in _state:
        set_clip_mode(os.environ.get(VARIABLE) or AUTO)
    return _state[VARIABLE]


def set_clip_mode(mode: str) -> None:
    """Choose how the process launches its clips on GPUs from now on. The bits are the same.

    Args:
        mode: "auto", "fused" or "split". "fused" raises where a device refuses the launch.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"{VARIABLE}: must be one of {', '.join(MODES)} (got {mode!r})")
    _state[VARIABLE] = mode
    for follow in _followers:
        follow(mode)


def follow_clip_mode(follow: Callable[[str], None]) -> None:
    """Call ``follow`` with the mode, now and at every change."""
    follow(clip_mode())
    _followers.append(follow)
