"""Print by how many bytes one clip raises this process's peak memory, as JSON.

A process for this alone: memory that an earlier measurement freed and did not return to the system
would be reused unseen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import fastclip
from bench.core.gradients import DTYPES

N_TENSORS = 250
MAX_NORM = 1e-3

NOT_MEASURABLE = 3
"""The exit status where this system does not let the peak be measured."""


def status_bytes(key: str) -> int:
    """Return one of the kernel's figures on this process, VmRSS or VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status does not hold {key}")


def reset_peak() -> None:
    """Set VmHWM back to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def growth(call: Callable[[], object]) -> int:
    """Return by how many bytes the peak rises above what was resident before ``call``."""
    reset_peak()
    before = status_bytes("VmRSS")
    call()
    return status_bytes("VmHWM") - before


def main(arguments: Sequence[str]) -> int:
    """Build gradients of the given size, clip once to warm up, and measure the second clip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=10**9)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--backend")
    options = parser.parse_args(arguments)
    dtype, backend = DTYPES[options.dtype], options.backend
    shape = (options.bytes // N_TENSORS // dtype.itemsize,)
    held = [torch.nn.Parameter(torch.empty(shape, dtype=dtype)) for _ in range(N_TENSORS)]
    for parameter in held:
        # Written, so that every page is there: an untouched one would count as growth.
        parameter.grad = torch.full_like(parameter, 0.5)
    calls: dict[str, Callable[[], object]] = {
        "list": lambda: fastclip.clip_grad_norm_(held, MAX_NORM, backend=backend),
        "clipper": fastclip.GradClipper(held, MAX_NORM, backend=backend).clip_,
        "stock": lambda: torch.nn.utils.clip_grad_norm_(held, MAX_NORM),
    }
    grown: dict[str, int] = {}
    try:
        for name, call in calls.items():
            call()
            grown[name] = growth(call)
    except OSError as error:  # this system does not tell, or does not let the peak be reset
        print(error, file=sys.stderr)
        return NOT_MEASURABLE
    print(json.dumps(grown))
    return 0
