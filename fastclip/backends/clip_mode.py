"""How a clip on a GPU is launched: two kernels, or one cooperative kernel, with the same bits.

A cooperative kernel begins when every other kernel on the GPU is done. Beside a kernel of one block
that ran for 2 ms on another stream, a clip of 268 MB took 1,994 us fused and 83 us split (NVIDIA
H200, 2026-11-28: bench/results/2026-11-28-h200/beside-and-steps.txt). Where nothing else ran, fused
native clips that left the gradients alone took 0.1 to 1.8 us less (rows.jsonl there).
"""

from __future__ import annotations

import os
from collections.abc import Callable

VARIABLE = "FASTCLIP_CLIP_MODE"

AUTO, FUSED, SPLIT = MODES = ("auto", "fused", "split")
"""What fastclip thinks best, which is two kernels; one kernel, or an error; two kernels."""

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
    """Choose how the process launches its clips on GPUs from now on.

    Args:
        mode: "auto" or "split": two kernels. "fused": one, which waits for every other kernel on
            the GPU; an error where a device refuses it, also while a CUDA graph is captured.

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
