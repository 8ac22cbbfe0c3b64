"""Which form of the clip is faster on a device where nothing else runs, from the times of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import truediv
from statistics import geometric_mean, median
from typing import TypedDict

from bench.core.shapes import CASES, Case
from bench.gpu.entrants import form_name
from bench.gpu.rows import GpuRow

MARGIN = 0.01
"""Forms whose times over all models differ by less count as equal."""

AGAINST = 0.02
"""A case goes against the verdict if its other form is faster by more."""

CAVEAT = (
    "A fused clip is a cooperative launch, which waits until every other kernel on the GPU is done,"
    " as a collective on another stream: that is why split is fastclip's default. The forms ran"
    " alone on the device: the wait is not in these times"
)


class Ratio(TypedDict):
    """Fused time over split time of some cases: geometric mean, extremes, and their number.

    For information: a mean counts a list that takes microseconds as much as a model.
    """

    mean: float
    lowest: float
    highest: float
    n_cases: int


class Choice(TypedDict):
    """What a device's times say of one backend; ``faster`` is None where they say nothing.

    ``fused_over_split`` compares the sums of the medians over all models, and decides; ``against``
    names the cases, of models or not, in which the other form is clearly faster.
    """

    backend: str
    faster: str | None
    told: str
    fused_over_split: float | None
    against: list[str]
    ratios: dict[str, Ratio]


@dataclass(frozen=True)
class _Pair:
    """A row that holds both forms: the medians in milliseconds, and the ratio within a round.

    ``is_late``: in half of the rounds of a form or more the host was late, so that the median is of
    its time, too.
    """

    row: GpuRow
    fused_ms: float
    split_ms: float
    ratio: float
    is_late: bool

    def title(self) -> str:
        clipped = "clipped" if self.row["clipped"] else "not clipped"
        return f"{self.row['case']} {self.row['dtype']}, {clipped}: {self.ratio:.3f}"


def choose(rows: Sequence[GpuRow], backend: str, is_gpu: bool, absent: str | None) -> Choice:
    """Compare the time that the forms of one backend take for all models together."""
    if absent is not None:
        return _unknown(backend, f"not measured: {absent}")
    measured = _pairs(rows, backend)
    if not measured:
        return _unknown(backend, "not measured: no case was timed in both forms")
    pairs = [pair for pair in measured if not pair.is_late]
    late = [pair.title() for pair in measured if pair.is_late]
    left_out = [f"left out, as the host was late there: {'; '.join(late)}"] if late else []
    models = [pair for pair in pairs if CASES[pair.row["case"]].is_model]
    small = [pair for pair in pairs if _is_many_small(CASES[pair.row["case"]])]
    ratios = {
        title: _ratio(chosen)
        for title, chosen in (("models", models), ("lists of many small tensors", small))
        if chosen
    }
    if not is_gpu:
        return _unknown(backend, "no choice: this is NOT a GPU measurement", ratios)
    if not models:
        parts = ["no choice: no model was timed in both forms", *left_out, _means(ratios)]
        return _unknown(backend, "; ".join(filter(None, parts)), ratios)
    over = sum(pair.fused_ms for pair in models) / sum(pair.split_ms for pair in models)
    faster, told = _verdict(over)
    against = [pair.title() for pair in pairs if _goes_against(faster, pair.ratio)]
    parts = [f"{told}: fused time / split time of all models together {over:.3f}", *left_out]
    parts.append(_means(ratios))
    if against:
        parts.insert(1, f"mixed, since these cases go against it: {'; '.join(against)}")
    return Choice(
        backend=backend,
        faster=faster,
        told="; ".join(parts),
        fused_over_split=over,
        against=against,
        ratios=ratios,
    )


def _unknown(backend: str, told: str, ratios: dict[str, Ratio] | None = None) -> Choice:
    return Choice(
        backend=backend,
        faster=None,
        told=told,
        fused_over_split=None,
        against=[],
        ratios=ratios or {},
    )


def _pairs(rows: Sequence[GpuRow], backend: str) -> list[_Pair]:
    found: list[_Pair] = []
    for row in rows:
        fused, split = (row["entries"].get(form_name(backend, form)) for form in ("fused", "split"))
        if fused is None or split is None:
            continue
        times = fused["device"], split["device"]
        ratio = median(map(truediv, times[0]["rounds"], times[1]["rounds"]))
        late = [2 * entry["rounds_not_ahead"] for entry in (fused, split)]
        is_late = max(late) >= len(times[0]["rounds"])
        found.append(_Pair(row, times[0]["median"], times[1]["median"], ratio, is_late))
    return found


def _is_many_small(case: Case) -> bool:
    return not case.is_model and case.n_tensors > 1


def _verdict(over: float) -> tuple[str, str]:
    if abs(over - 1) < MARGIN:
        return "either", f"fused and split are equal within {MARGIN:.0%}"
    faster = "fused" if over < 1 else "split"
    return faster, f"{faster} is faster where nothing else runs on this device"


def _goes_against(faster: str, ratio: float) -> bool:
    is_split_faster, is_fused_faster = ratio > 1 + AGAINST, ratio < 1 - AGAINST
    return (is_split_faster and faster != "split") or (is_fused_faster and faster != "fused")


def _ratio(pairs: Sequence[_Pair]) -> Ratio:
    found = [pair.ratio for pair in pairs]
    return Ratio(
        mean=geometric_mean(found), lowest=min(found), highest=max(found), n_cases=len(found)
    )


def _means(ratios: dict[str, Ratio]) -> str:
    parts = [
        f"{title} {found['mean']:.3f} ({found['n_cases']} cases from {found['lowest']:.3f} to"
        f" {found['highest']:.3f})"
        for title, found in ratios.items()
    ]
    return f"geometric means, for information: {', '.join(parts) or 'none'}"
