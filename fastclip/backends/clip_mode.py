"""How a clip on a GPU is launched: two kernels, or one cooperative kernel, with the same bits.

A cooperative kernel begins when every other kernel on the GPU is done. Beside a kernel of one block
that ran for 2 ms on another stream, a clip of 268 MB took 1,994 us fused and 83 us split (NVIDIA
H200, 2026-11-28: bench/results/2026-11-28-h200/beside-and-steps.txt). Where nothing else ran, fused
native clips that left the gradients alone took 0.1 to 1.8 us less (rows.jsonl there).
"""

from __future__ import annotations

import os

VARIABLE = "FASTCLIP_CLIP_MODE"

AUTO, FUSED, SPLIT = MODES = ("auto", "fused", "split")
"""fastclip's own choice, which is two kernels; one kernel, or an error; two kernels."""

_state: dict[str, str] = {}


def clip_mode() -> str:
    """Return the mode in use: what ``set_clip_mode`` chose, else ``FASTCLIP_CLIP_MODE``.

    Raises:
        ValueError: the environment names an unknown mode.
    """
    if VARIABLE not in _state:
        _choose(os.environ.get(VARIABLE) or AUTO, VARIABLE)
    return _state[VARIABLE]


def set_clip_mode(mode: str) -> None:
    """Choose how the process launches its clips on GPUs from now on.

    Args:
        mode: "auto" or "split": two kernels. "fused": one, which waits for every other kernel on
            the GPU; an error where a device refuses it, also while a CUDA graph is captured.

    Raises:
        ValueError: the mode is unknown.
    """
    _choose(mode, "set_clip_mode")


def is_fused() -> bool:
    """Return whether clips are to be launched as one kernel."""
    return clip_mode() == FUSED


def _choose(mode: str, who: str) -> None:
    if mode not in MODES:
        raise ValueError(f"{who}: mode must be one of {', '.join(MODES)} (got {mode!r})")
    _state[VARIABLE] = mode
