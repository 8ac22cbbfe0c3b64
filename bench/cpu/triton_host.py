"""Measure what a call of the Triton backend costs the host, with its launches recorded.

    TRITON_INTERPRET=0 python bench triton_host [--rounds N] [--json FILE]

Everything is done but the copy to a GPU, the driver's own launch and the kernels: walk, checks,
packing, memory and Triton's launch path. It needs no GPU; bench gpu measures the whole on one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

import fastclip
from fastclip.backends import extension
from fastclip.backends.base import Reason, ReasonKind

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from recorded_triton import Recorder, record

SIZES = (10, 100, 1000)
ELEMENTS = 64


def parameters(size: int) -> list[torch.Tensor]:
    """Return parameters with small gradients."""
    made: list[torch.Tensor] = [torch.zeros(ELEMENTS) for _ in range(size)]
    for parameter in made:
        parameter.grad = torch.ones(ELEMENTS)
    return made


@contextmanager
def packed_by(has_extension: bool) -> Iterator[None]:
    """Let lists be packed by the extension, or by torch's operations."""
    load = extension.load
    if not has_extension:
        missing = (Reason(ReasonKind.CALL, "fastclip._C is not built"),)
        extension.load = lambda: missing
    try:
        yield
    finally:
        extension.load = load


def microseconds(call: Callable[[], object], rounds: int, recorder: Recorder) -> float:
    """Return the median time of a call."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
        recorder.launches.clear()
    return 1e6 * median(taken[rounds // 10 :])


def measure(rounds: int) -> list[dict[str, object]]:
    """Measure a list call and a GradClipper, packed in both ways, for each list."""
    recorder = record()
    rows: list[dict[str, object]] = []
    for size in SIZES:
        held = parameters(size)
        row: dict[str, object] = {"tensors": size}
        for has_extension in (True, False):
            if has_extension and extension.load():
                continue
            with packed_by(has_extension):
                clipper = fastclip.GradClipper(held, 1.0, backend="triton")
                calls = {
                    "list": lambda held=held: fastclip.clip_grad_norm_(held, 1.0, backend="triton"),
                    "clipper": clipper.clip_,
                }
                by = "extension" if has_extension else "torch"
                for name, call in calls.items():
                    call()
                    row[f"{name}, packed by {by}, us"] = microseconds(call, rounds, recorder)
        rows.append(row)
    return rows


def main(arguments: Sequence[str]) -> int:
    """Print a line for each list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    rows = measure(options.rounds)
    for row in rows:
        print(", ".join(f"{name} {value:.0f}" for name, value in row.items()))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0
