"""What a clip should take on a GPU: its bytes over the bandwidth, and its launches.

`python bench roofline` writes docs/roofline.md again; tests/bench/test_roofline.py compares it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.core.shapes import CASES, Case
from bench.core.text import significant, table
from bench.gpu import results
from bench.model.stock_launches import (
    CHUNK_SIZE,
    CUDA_13,
    MAX_CLEANED,
    MAX_STACKED,
    OLDER,
    Limits,
    stock_launches,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "roofline.md"

LAUNCH_MICROSECONDS = 2.0
"""Assumed, not measured: what each launch adds, the same on every GPU and for every kernel."""

MAX_IN_ARGUMENTS = 1630
"""kLongTable of csrc/gpu_work.h: a longer list is written to memory first, so many rows a launch.
tests/bench/test_roofline.py compares the launches with those that docs/counted-work.md counted."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2}

STOCK_PASSES = (2, 1)
"""The reads and writes of every gradient byte: stock multiplies whether anything is clipped."""


class Gpu(NamedTuple):
    """A GPU, the name by which torch knows it, and what its maker says of its memory."""

    name: str
    torch_name: str
    bytes_per_second: float
    said: str
    source: str


DATA_SHEETS = "https://www.nvidia.com/en-us/data-center"
GPUS = (
    Gpu(
        *("A100 SXM 80 GB", "NVIDIA A100-SXM4-80GB", 2.039e12, "2,039 GB/s"),
        f"[NVIDIA A100 data sheet]({DATA_SHEETS}/a100/), 80 GB SXM",
    ),
    Gpu(
        *("H100 SXM", "NVIDIA H100 80GB HBM3", 3.35e12, "3.35 TB/s"),
        f"[NVIDIA H100 data sheet]({DATA_SHEETS}/h100/), SXM",
    ),
    Gpu(
        *("H200", "NVIDIA H200", 4.8e12, "4.8 TB/s"),
        f"[NVIDIA H200 data sheet]({DATA_SHEETS}/h200/)",
    ),
    Gpu(
        *("B200", "NVIDIA B200", 8e12, "8 TB/s per GPU"),
        f"[NVIDIA HGX data sheet]({DATA_SHEETS}/hgx/), HGX B200",
    ),
)


class Work(NamedTuple):
    """What a clip does: launches, and how often it reads and writes every gradient byte."""

    launches: int
    reads: int
    writes: int

    def seconds(self, gradient_bytes: int, bytes_per_second: float) -> float:
        """Return the predicted time: bytes / bandwidth + launches x the assumed cost of one."""
        moved = (self.reads + self.writes) * gradient_bytes
        return moved / bytes_per_second + self.launches * LAUNCH_MICROSECONDS * 1e-6


def passes(clipped: bool) -> tuple[int, int]:
    """Return fastclip's reads and writes: the norm reads once; a scale reads and writes once."""
    return (2, 1) if clipped else (1, 0)


def stock_work(case: Case, limits: Limits = CUDA_13) -> Work:
    """Return the work of ``torch.nn.utils.clip_grad_norm_(foreach=True)``."""
    return Work(sum(stock_launches(case, limits).values()), *STOCK_PASSES)


def fastclip_work(case: Case, clipped: bool, split: bool = False) -> Work:
    """Return the work of fastclip's CUDA kernels, fused into one launch or split into two."""
    n = case.n_tensors
    tables = -(-n // MAX_IN_ARGUMENTS) if n > MAX_IN_ARGUMENTS else 0
    return Work(tables + (2 if split else 1), *passes(clipped))


def known_gpu(torch_name: str) -> Gpu | None:
    """Return the GPU of exactly this name; a part of one, or another form of it, is another."""
    return next((gpu for gpu in GPUS if gpu.torch_name == torch_name), None)


def document() -> str:
    """Write docs/roofline.md."""
    row_head = ["", "list", "dtype", "clipped"]
    parts = [
        INTRODUCTION,
        table(["GPU", "bandwidth", "source"], [[gpu.name, gpu.said, gpu.source] for gpu in GPUS]),
        MODEL,
        table(["", "list", "tensors", *STEPS, "stock", "fastclip"], _launch_rows()),
        TIMES,
        table([*row_head, "MB", *(gpu.name for gpu in GPUS)], _time_rows()),
        MEASURED_LAUNCHES,
        table(
            ["", "list", "tensors", "measured", "counted, CUDA 13", "counted, older"],
            _measured_launch_rows(),
        ),
        MEASURED_TIMES,
        table([*row_head, "stock", "fastclip"], _measured_time_rows()),
    ]
    return "\n".join(parts) + "\n"


def _launch_rows() -> list[list[str]]:
    return [
        ["prediction", f"`{case.name}`", f"{case.n_tensors:,}"]
        + [str(n) for n in stock_launches(case).values()]
        + [str(stock_work(case).launches), str(fastclip_work(case, False, split=True).launches)]
        for case in CASES.values()
    ]


def _row_cells(kind: str, case: Case, dtype: str, clipped: bool) -> list[str]:
    return [kind, f"`{case.name}`", dtype, "yes" if clipped else "no"]


def _time_rows() -> list[list[str]]:
    return [
        [*_row_cells("prediction", case, dtype, clipped), significant(n_bytes / 1e6)]
        + [_times(case, n_bytes, clipped, gpu) for gpu in GPUS]
        for case in CASES.values()
        for dtype, item_bytes in ITEM_BYTES.items()
        for n_bytes in [case.n_elements * item_bytes]
        for clipped in (False, True)
    ]


def _times(case: Case, n_bytes: int, clipped: bool, gpu: Gpu) -> str:
    works = stock_work(case), fastclip_work(case, clipped, split=True)
    stock, split = (work.seconds(n_bytes, gpu.bytes_per_second) * 1e6 for work in works)
    return f"{significant(stock)} / {significant(split)} / {stock / split:.1f}"


def _measured_launch_rows() -> list[list[str]]:
    return [
        ["measured", f"`{name}`", f"{CASES[name].n_tensors:,}", str(measured)]
        + [str(stock_work(CASES[name], limits).launches) for limits in (CUDA_13, OLDER)]
        for name, measured in results.stock_launches().items()
    ]


def _measured_time_rows() -> list[list[str]]:
    gpu = next(gpu for gpu in GPUS if gpu.name == "H200")
    stock, fused = map(results.device_microseconds, ("stock", "native fused"))
    rows: list[list[str]] = []
    for (name, dtype, clipped), stock_us in stock.items():
        case = CASES[name]
        cells = _row_cells("measured", case, dtype, clipped)
        for measured, work in (
            (stock_us, stock_work(case)),
            (fused[name, dtype, clipped], fastclip_work(case, clipped)),
        ):
            n_bytes = case.n_elements * ITEM_BYTES[dtype]
            predicted = work.seconds(n_bytes, gpu.bytes_per_second) * 1e6
            times = f"{significant(measured)} / {significant(predicted)}"
            cells.append(f"{times} / {measured / predicted:.2f}")
        rows.append(cells)
    return rows


STEPS = list(stock_launches(CASES["1x1e8"]))
MAX_TENSORS, MAX_BLOCKS = CUDA_13.max_tensors, CUDA_13.max_blocks
STOCK_MOVES = sum(STOCK_PASSES)
MOVES = {clipped: sum(passes(clipped)) for clipped in (False, True)}

INTRODUCTION = f"""\
# What a clip should take on a GPU

**Every line marked "prediction" is one.** Predictions are what the counted bytes and launches come
to, so that a measurement has something to be held against: `make gpu` puts both side by side. One
H200 has been measured, and [the end of this file](#measured-on-an-h200) holds what it took against
what is predicted for it; nobody has measured the other GPUs.

    time = bytes moved / bandwidth + launches x {LAUNCH_MICROSECONDS:g} us

- **Bytes.** N bytes of gradients: stock moves {STOCK_MOVES} N, clipped or not: one read for the
  norm, one read and one write for the product. fastclip moves {MOVES[False]} N when nothing is
  clipped and {MOVES[True]} N when something is (docs/counted-work.md). Caches are left out: what L2
  still holds of the gradients makes both faster than this. Partial sums are left out as well: they
  are small against N, except in lists of thousands of small tensors, for which
  docs/counted-work.md counts fastclip's.
- **Launches.** {LAUNCH_MICROSECONDS:g} us for each is an assumption and not a measurement, the same
  for every kernel and GPU, with a host that is far enough ahead never to be waited for. Where
  launches outweigh bytes the prediction says little more than how many there are. The grid sync of
  the fused kernel is not charged.
- **Bandwidth** is what the maker says; copies reach less. Of B200s, drivers have been seen to
  report 7.67 TB/s ([pytorch/ao#4002](https://github.com/pytorch/ao/pull/4002)).

`python bench roofline` writes this file; tests/bench/test_roofline.py compares it.
"""

MODEL = f"""
## Launches

Stock's are counted from torch's source, for a torch 2.13 built with CUDA 13 (older builds put fewer
tensors into a launch), foreach, p = 2, one dtype: `foreach_norm` and `foreach_mul` launch once for
every {MAX_TENSORS} tensors or {MAX_BLOCKS:,} chunks of {CHUNK_SIZE:,} elements, whichever comes
first; chunks' sums start as zeros, and a cleanup kernel finishes {MAX_CLEANED:,} norms a launch;
`stack` copies {MAX_STACKED} of them a launch; then `vector_norm`, and the coefficient in `add`,
`reciprocal`, `mul` and `clamp`. The limits of the cleanup kernel and of `stack` are of torch's main
branch and not in the headers that torch installs. fastclip's are the norm, then the coefficient and
the rescale, and a launch for every {MAX_IN_ARGUMENTS:,} rows of a table too long for arguments
(driver 12.1 and later). A fused clip launches one less. `GradClipper` launches the same.
"""

TIMES = """
## Times

Predicted microseconds of stock / predicted microseconds of fastclip, native, and of `GradClipper`,
whose work on the GPU is the same / their ratio.
"""

MEASURED_LAUNCHES = f"""
## Measured on an H200

{results.H200_RUN}:
[bench/results](../bench/results/2026-11-28-h200/README.md) holds the raw numbers.

Kernels that stock's call launched, as torch's profiler counts them, beside those counted for a
torch built with CUDA 13 and for older builds. This torch 2.11 was built with CUDA 13.0 and launched
as an older build: 23 and 60 are exactly what is counted for one. For the longest lists the count is
4 and 21 short; of one tensor, a copy takes the place of a kernel.
"""

MEASURED_TIMES = """
Microseconds on the device: measured / predicted / measured over predicted. The predictions are
those of the table above, less one launch, since fastclip's clips were fused. On lists of small
tensors its time is neither bytes nor launches: too few blocks shared the work, each of them read
all partial sums, and writing a table of 2,000 rows took 10 us.
"""


def main(arguments: Sequence[str]) -> int:
    """Write the document again."""
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    DOCUMENT.write_text(document(), encoding="utf-8")
    return 0
