"""What is promised beyond the table: host time, zeros, peak memory, and the price of extras."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

import fastclip
from bench.core.gradients import DTYPES, NORM_TOLERANCE, Gradients
from bench.core.shapes import CASES
from bench.core.text import row_title
from bench.core.timing import Contender, alternate, median_ratio
from bench.cpu import targets
from bench.cpu.measure import Bench, Row, row_text
from bench.cpu.peak_memory import NOT_MEASURABLE

DOOR = Path(__file__).resolve().parents[1]


class NotMeasurableError(Exception):
    """This system does not let a section be measured; the message says why."""


class Finding(TypedDict):
    """One measured number and the bound that it is held to."""

    section: str
    what: str
    value: float
    unit: str
    bound: float
    at_most: bool
    reached: bool
    detail: str


@dataclass(frozen=True)
class Scale:
    """The sizes that the sections measure at."""

    few_tensors: int
    many_tensors: int
    zeros_elements: int
    memory_bytes: int
    memory_dtypes: tuple[str, ...]
    norms_cases: tuple[str, ...]


FULL = Scale(1000, 100_000, 1 << 26, 10**9, tuple(DTYPES), ("gpt2-124m", "1000x64"))
QUICK = Scale(100, 2000, 1 << 20, 10**8, ("float32",), ("1000x64",))


def finding(
    section: str,
    what: str,
    value: float,
    bound: float,
    detail: str,
    *,
    at_most: bool = True,
    unit: str = "x",
) -> Finding:
    """Hold ``value`` against ``bound``."""
    return Finding(
        section=section,
        what=what,
        value=value,
        unit=unit,
        bound=bound,
        at_most=at_most,
        reached=value <= bound if at_most else value >= bound,
        detail=detail,
    )


def host_time(bench: Bench, scale: Scale) -> Iterator[Finding]:
    """Compare the time per tensor of a very long list with that of a usual one."""
    few, many = scale.few_tensors, scale.many_tensors
    lists = [_parameters(((64,),) * n, torch.float32, 1.0) for n in (few, many)]
    calls = {
        "list": [_list_call(parameters, bench) for parameters in lists],
        "clipper": [
            fastclip.GradClipper(parameters, float("inf"), backend=bench.backend).clip_
            for parameters in lists
        ],
    }
    for name, (call_few, call_many) in calls.items():
        ratio, many_ms, few_ms = _compared(bench, call_many, call_few)
        yield finding(
            "host time per tensor",
            f"{name}, {many} tensors of 64 over {few}",
            ratio * few / many,
            targets.HOST_TIME_GROWTH,
            f"{many_ms * 1e6 / many:.0f} ns against {few_ms * 1e6 / few:.0f} ns a tensor",
        )


def zeros(bench: Bench, scale: Scale) -> Iterator[Finding]:
    """Compare all-zero gradients with others: the rescue of underflow must not trip over them."""
    for name, dtype in DTYPES.items():
        shapes = ((scale.zeros_elements // 16,),) * 16
        calls = (_list_call(_parameters(shapes, dtype, factor), bench) for factor in (0.0, 1.0))
        ratio, zero_ms, other_ms = _compared(bench, *calls, before=bench.streams.evict)
        yield finding(
            "all-zero gradients",
            f"{name}, {scale.zeros_elements * dtype.itemsize / 1e6:.0f} MB, over N(0, 1)",
            ratio,
            targets.ZEROS_OVER_OTHERS,
            f"{zero_ms:.3f} ms against {other_ms:.3f} ms",
        )


def parameter_norms(bench: Bench, scale: Scale) -> Iterator[Finding]:
    """Compare a clip whose parameter_norms are read with one whose are not."""
    for name in scale.norms_cases:
        gradients = Gradients(CASES[name], "float32")
        clipper = fastclip.GradClipper(
            gradients.parameters, gradients.max_norm(False), backend=bench.backend
        )
        ratio, read_ms, plain_ms = _compared(
            bench, lambda c=clipper: (c.clip_(), c.parameter_norms), clipper.clip_
        )
        yield finding(
            "parameter_norms",
            f"{name} float32, read over not read",
            ratio,
            targets.PARAMETER_NORMS_OVER_NONE,
            f"{read_ms:.4f} ms against {plain_ms:.4f} ms",
        )


def peak_memory(bench: Bench, scale: Scale) -> Iterator[Finding]:
    """Measure in another process what one clip adds to the peak of resident memory."""
    for dtype in scale.memory_dtypes:
        command = [sys.executable, str(DOOR), "peak_memory", "--dtype", dtype]
        command += ["--bytes", str(scale.memory_bytes)]
        command += [] if bench.backend is None else ["--backend", bench.backend]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == NOT_MEASURABLE:
            raise NotMeasurableError(done.stderr.strip())
        if done.returncode != 0:
            raise RuntimeError(f"peak_memory ended with {done.returncode}:\n{done.stderr}")
        grown: dict[str, int] = json.loads(done.stdout)
        for name in ("list", "clipper"):
            yield finding(
                "peak memory of a clip",
                f"{name}, {dtype}, {scale.memory_bytes / 1e6:.0f} MB of gradients",
                grown[name] / 1e6,
                targets.PEAK_MEMORY_GROWTH_MB,
                f"stock {grown['stock'] / 1e6:.2f} MB",
                unit="MB",
            )


def reference(rows: Sequence[Row]) -> list[Finding]:
    """Hold the reference backend against stock, where stock's norm is right."""
    return [
        finding(
            "reference backend",
            row_text(row),
            row["stock_over_reference"],
            targets.REFERENCE_OVER_STOCK,
            f"stock is off by {row['stock_error']:.1e}",
            at_most=False,
            unit="x stock",
        )
        for row in rows
        if row["stock_error"] <= NORM_TOLERANCE
    ]


def memory_speed(rows: Sequence[Row]) -> list[Finding]:
    """Hold large gradients against the fastest streaming reader and the fastest update."""
    return [
        finding(
            "speed of memory",
            row_title(row),
            row["fraction_of_ceiling"],
            targets.MEMORY_FRACTION,
            f"{row['milliseconds']['list']['median']:.1f} ms, ceiling"
            f" {row['ceiling_ms']:.1f} ms, {row['gb_per_s']:.1f} GB/s",
            at_most=False,
            unit="of the ceiling",
        )
        for row in rows
        if row["gradient_bytes"] >= targets.LARGE_BYTES
    ]


SECTIONS: dict[str, Callable[[Bench, Scale], Iterator[Finding]]] = {
    "host-time": host_time,
    "zeros": zeros,
    "parameter-norms": parameter_norms,
    "peak-memory": peak_memory,
}


def _parameters(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, factor: float
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(21)
    parameters: list[Tensor] = [torch.nn.Parameter(torch.empty(s, dtype=dtype)) for s in shapes]
    for parameter in parameters:
        # Written also where they are zeros: torch.zeros may map every page to the same one.
        values = torch.randn(parameter.shape, generator=generator)
        parameter.grad = values.mul_(factor).to(dtype)
    return parameters


def _list_call(parameters: list[Tensor], bench: Bench) -> Callable[[], object]:
    return lambda: fastclip.clip_grad_norm_(parameters, float("inf"), backend=bench.backend)


def _compared(
    bench: Bench,
    over: Callable[[], object],
    under: Callable[[], object],
    before: Callable[[], object] = lambda: None,
) -> tuple[float, float, float]:
    """Return the ratio of the times of two calls, and the medians in milliseconds."""
    # More repetitions than the table takes: a bound of a few per cent asks for a steady median.
    effort = replace(
        bench.effort,
        min_repetitions=2 * bench.effort.min_repetitions + 1,
        max_repetitions=10 * bench.effort.max_repetitions,
    )
    contenders = {"over": Contender(over, before), "under": Contender(under, before)}
    samples = alternate(contenders, effort)
    ratio = median_ratio(samples["over"], samples["under"])
    return ratio, samples["over"]["median"], samples["under"]["median"]
