"""Measure what a call of the Triton backend costs the host, with its launches recorded.

    TRITON_INTERPRET=0 python bench triton_host [--rounds N] [--json FILE]

Everything is done except the copy to a GPU, the driver's own launch and the kernels: walk, checks,
packing, memory and Triton's launch path. It needs no GPU; `bench gpu` measures the whole on one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch

import fastclip
from bench.core.timing import wall_clock
from fastclip.backends import extension
from fastclip.backends.base import Reason, ReasonKind

# The recorder is a test double, which the tests of the launches share.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from recorded_triton import Recorder, record

SIZES = (10, 100, 1000)
ELEMENTS = 64
MISSING = (Reason(ReasonKind.CALL, "fastclip._C is not built"),)


def microseconds(call: Callable[[], object], rounds: int, recorder: Recorder) -> float:
    """Return the median time of a call, without the first tenth of the rounds."""
    taken: list[float] = []
    call()
    for _ in range(rounds):
        taken.append(wall_clock(call)[1])
        recorder.launches.clear()
    return median(taken[rounds // 10 :]) / 1e3


def row(size: int, rounds: int, recorder: Recorder) -> dict[str, float]:
    """Measure a list call and a GradClipper, packed by the extension and by torch's operations."""
    held: list[torch.Tensor] = [torch.zeros(ELEMENTS) for _ in range(size)]
    for parameter in held:
        parameter.grad = torch.ones(ELEMENTS)
    found: dict[str, float] = {"tensors": size}
    load = extension.load
    for packer, loaded in (("extension", load), ("torch", lambda: MISSING)):
        if packer == "extension" and load():
            continue
        with patch.object(extension, "load", loaded):
            clipper = fastclip.GradClipper(held, 1.0, backend="triton")
            calls = {
                "list": lambda: fastclip.clip_grad_norm_(held, 1.0, backend="triton"),
                "clipper": clipper.clip_,
            }
            for name, call in calls.items():
                time = microseconds(call, rounds, recorder)
                found[f"{name}, packed by {packer}, us"] = time
    return found


def main(arguments: Sequence[str]) -> int:
    """Print a line for each list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    recorder = record()
    rows = [row(size, options.rounds, recorder) for size in SIZES]
    for found in rows:
        print(", ".join(f"{name} {value:.0f}" for name, value in found.items()))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0
