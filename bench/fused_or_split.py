"""Which form of the clip should be the default on a device, from the times of both."""

from __future__ import annotations

from collections.abc import Sequence
from operator import truediv
from statistics import geometric_mean, median
from typing import TypedDict

from entrants import form_name
from gpu_rows import GpuRow

MARGIN = 0.01
"""Forms whose times differ by less, in the geometric mean over all cases, count as equal."""


class Ratio(TypedDict):
    """Fused time over split time of some cases: geometric mean, extremes, and their number."""

    mean: float
    lowest: float
    highest: float
    n_cases: int


class Choice(TypedDict):
    """What a device's times say of one backend; ``default`` is None where they say nothing."""

    backend: str
    default: str | None
    told: str
    ratios: dict[str, Ratio]


def choose(rows: Sequence[GpuRow], backend: str, is_gpu: bool, absent: str | None) -> Choice:
    """Compare the forms of one backend over all rows that hold both."""
    if absent is not None:
        return _unknown(backend, f"not measured: {absent}")
    ratios = {
        title: found
        for title, clipped in (("all", None), ("not clipped", False), ("clipped", True))
        if (found := _ratio(rows, backend, clipped)) is not None
    }
    if not ratios:
        return _unknown(backend, "not measured: no case was timed in both forms")
    if not is_gpu:
        return _unknown(backend, "no choice: this is NOT a GPU measurement", ratios)
    mean = ratios["all"]["mean"]
    if abs(mean - 1) < MARGIN:
        default = "either"
        told = f"fused and split are equal within {MARGIN:.0%}: leave the default as it is"
    else:
        default = "fused" if mean < 1 else "split"
        told = f"{default} should be the default on this device"
    return Choice(
        backend=backend, default=default, told=f"{told}: {_numbers(ratios)}", ratios=ratios
    )


def _unknown(backend: str, told: str, ratios: dict[str, Ratio] | None = None) -> Choice:
    return Choice(backend=backend, default=None, told=told, ratios=ratios or {})


def _ratio(rows: Sequence[GpuRow], backend: str, clipped: bool | None) -> Ratio | None:
    found: list[float] = []
    for row in rows:
        fused, split = (row["entries"].get(form_name(backend, form)) for form in ("fused", "split"))
        if fused is None or split is None or clipped not in (None, row["clipped"]):
            continue
        rounds = (fused["device"]["rounds"], split["device"]["rounds"])
        found.append(median(map(truediv, *rounds)))
    if not found:
        return None
    return Ratio(
        mean=geometric_mean(found), lowest=min(found), highest=max(found), n_cases=len(found)
    )


def _numbers(ratios: dict[str, Ratio]) -> str:
    parts = [f"{title} {found['mean']:.3f}" for title, found in ratios.items()]
    of_all = ratios["all"]
    return (
        f"fused time / split time, geometric means: {', '.join(parts)};"
        f" {of_all['n_cases']} cases from {of_all['lowest']:.3f} to {of_all['highest']:.3f}"
    )
