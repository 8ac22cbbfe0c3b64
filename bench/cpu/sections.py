"""What is promised beyond the table: host time, zeros, peak memory, and the price of extras."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

import fastclip
from bench.core.gradients import DTYPES, NORM_TOLERANCE, Gradients
from bench.core.shapes import CASES
from bench.core.timing import Contender, Sample, alternate, median_ratio
from bench.cpu import targets
from bench.cpu.measure import Row, Settings, row_name
from bench.cpu.peak_memory import NOT_MEASURABLE
from bench.cpu.streams import Streams


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


@dataclass(frozen=True)
class Bench:
    """What the sections work with."""

    scale: Scale
    settings: Settings
    streams: Streams


FULL = Scale(1000, 100_000, 1 << 26, 10**9, tuple(DTYPES), ("gpt2-124m", "1000x64"))
QUICK = Scale(100, 2000, 1 << 20, 10**8, ("float32",), ("1000x64",))


def finding(
    section: str, what: str, value: float, bound: float, *, at_most: bool, unit: str, detail: str
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


def host_time(bench: Bench) -> list[Finding]:
    """Compare the time per tensor of a very long list with that of a usual one."""
    scale, backend = bench.scale, bench.settings.backend
    findings: list[Finding] = []
    lists = {
        n: _parameters(((64,),) * n, torch.float32, 1.0)
        for n in (scale.few_tensors, scale.many_tensors)
    }
    calls: dict[str, Callable[[], object]] = {}
    for n, parameters in lists.items():
        calls[f"list {n}"] = _list_call(parameters, backend)
        clipper = fastclip.GradClipper(parameters, float("inf"), backend=backend)
        calls[f"clipper {n}"] = clipper.clip_
    samples = _alternate(calls, bench.settings, _nothing)
    for contender in ("list", "clipper"):
        few, many = (samples[f"{contender} {n}"] for n in lists)
        few_ns, many_ns = (samples[f"{contender} {n}"].median_ms * 1e6 / n for n in lists)
        findings.append(
            finding(
                "host time per tensor",
                f"{contender}, {scale.many_tensors} tensors of 64 over {scale.few_tensors}",
                median_ratio(many, few) * scale.few_tensors / scale.many_tensors,
                targets.HOST_TIME_GROWTH,
                at_most=True,
                unit="x",
                detail=f"{many_ns:.0f} ns against {few_ns:.0f} ns a tensor",
            )
        )
    return findings


def zeros(bench: Bench) -> list[Finding]:
    """Compare all-zero gradients with others: the rescue of underflow must not trip over them."""
    n_elements, backend = bench.scale.zeros_elements, bench.settings.backend
    findings: list[Finding] = []
    for name, dtype in DTYPES.items():
        shapes = ((n_elements // 16,),) * 16
        calls: dict[str, Callable[[], object]] = {
            "zeros": _list_call(_parameters(shapes, dtype, 0.0), backend),
            "others": _list_call(_parameters(shapes, dtype, 1.0), backend),
        }
        samples = _alternate(calls, bench.settings, bench.streams.evict)
        zero_ms, other_ms = samples["zeros"].median_ms, samples["others"].median_ms
        findings.append(
            finding(
                "all-zero gradients",
                f"{name}, {n_elements * dtype.itemsize / 1e6:.0f} MB, over N(0, 1)",
                median_ratio(samples["zeros"], samples["others"]),
                targets.ZEROS_OVER_OTHERS,
                at_most=True,
                unit="x",
                detail=f"{zero_ms:.3f} ms against {other_ms:.3f} ms",
            )
        )
    return findings


def parameter_norms(bench: Bench) -> list[Finding]:
    """Compare a clip whose parameter_norms are read with one whose are not."""
    findings: list[Finding] = []
    for name in bench.scale.norms_cases:
        gradients = Gradients(CASES[name], "float32")
        clipper = fastclip.GradClipper(
            gradients.parameters, gradients.max_norm(False), backend=bench.settings.backend
        )
        samples = _alternate(
            {"without": clipper.clip_, "with": lambda c=clipper: (c.clip_(), c.parameter_norms)},
            bench.settings,
            _nothing,
        )
        read_ms, plain_ms = samples["with"].median_ms, samples["without"].median_ms
        findings.append(
            finding(
                "parameter_norms",
                f"{name} float32, read over not read",
                median_ratio(samples["with"], samples["without"]),
                targets.PARAMETER_NORMS_OVER_NONE,
                at_most=True,
                unit="x",
                detail=f"{read_ms:.4f} ms against {plain_ms:.4f} ms",
            )
        )
    return findings


def peak_memory(bench: Bench) -> list[Finding]:
    """Measure what one clip adds to the peak of resident memory, in a process of its own."""
    door = Path(__file__).resolve().parents[1]
    n_bytes, backend = bench.scale.memory_bytes, bench.settings.backend
    findings: list[Finding] = []
    for dtype in bench.scale.memory_dtypes:
        command = [
            sys.executable,
            str(door),
            "peak_memory",
            "--bytes",
            str(n_bytes),
            "--dtype",
            dtype,
        ]
        if backend is not None:
            command += ["--backend", backend]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == NOT_MEASURABLE:
            raise NotMeasurableError(done.stderr.strip())
        if done.returncode != 0:
            raise RuntimeError(f"bench peak_memory ended with {done.returncode}:\n{done.stderr}")
        grown: dict[str, int] = json.loads(done.stdout)
        for contender in ("list", "clipper"):
            findings.append(
                finding(
                    "peak memory of a clip",
                    f"{contender}, {dtype}, {n_bytes / 1e6:.0f} MB of gradients",
                    grown[contender] / 1e6,
                    targets.PEAK_MEMORY_GROWTH_MB,
                    at_most=True,
                    unit="MB",
                    detail=f"stock {grown['stock'] / 1e6:.2f} MB",
                )
            )
    return findings


def reference(rows: Sequence[Row]) -> list[Finding]:
    """Hold the reference backend against stock, where stock's norm is right."""
    return [
        finding(
            "reference backend",
            f"{row_name(row)} {row['dtype']}, {'' if row['clipped'] else 'not '}clipped",
            row["stock_over_reference"],
            targets.REFERENCE_OVER_STOCK,
            at_most=False,
            unit="x stock",
            detail=f"stock is off by {row['stock_error']:.1e}",
        )
        for row in rows
        if row["stock_error"] <= NORM_TOLERANCE
    ]


def memory_speed(rows: Sequence[Row]) -> list[Finding]:
    """Hold large gradients against the fastest streaming reader and the fastest update."""
    return [
        finding(
            "speed of memory",
            f"{row['case']} {row['dtype']}, {'clipped' if row['clipped'] else 'norm'}",
            row["fraction_of_ceiling"],
            targets.MEMORY_FRACTION,
            at_most=False,
            unit="of the ceiling",
            detail=f"{row['milliseconds']['list']['median']:.1f} ms, ceiling"
            f" {row['ceiling_ms']:.1f} ms, {row['gb_per_s']:.1f} GB/s",
        )
        for row in rows
        if row["gradient_bytes"] >= targets.LARGE_BYTES
    ]


Section = Callable[[Bench], list[Finding]]

SECTIONS: dict[str, Section] = {
    "host-time": host_time,
    "zeros": zeros,
    "parameter-norms": parameter_norms,
    "peak-memory": peak_memory,
}


def _parameters(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, scale: float
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(21)
    parameters: list[Tensor] = [torch.nn.Parameter(torch.empty(s, dtype=dtype)) for s in shapes]
    for parameter in parameters:
        # Written also where they are zeros: torch.zeros may map every page to the same one.
        values = torch.randn(parameter.shape, generator=generator)
        parameter.grad = values.mul_(scale).to(dtype)
    return parameters


def _list_call(parameters: list[Tensor], backend: str | None) -> Callable[[], object]:
    return lambda: fastclip.clip_grad_norm_(parameters, float("inf"), backend=backend)


def _alternate(
    calls: dict[str, Callable[[], object]], settings: Settings, before: Callable[[], None]
) -> dict[str, Sample]:
    contenders = {name: Contender(call, before, _ignore) for name, call in calls.items()}
    # More repetitions than the table takes: a bound of a few per cent asks for a steady median.
    effort = replace(
        settings.effort,
        min_repetitions=2 * settings.effort.min_repetitions + 1,
        max_repetitions=10 * settings.effort.max_repetitions,
    )
    return alternate(contenders, effort)


def _nothing() -> None:
    pass


def _ignore(_: object) -> None:
    pass
