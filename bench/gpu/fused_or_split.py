"""Which form of the clip is faster on a device where nothing else runs, from the times of both."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean
from typing import NamedTuple, TypedDict

from bench.core.shapes import CASES
from bench.core.text import row_title
from bench.core.timing import median_ratio
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
    summary: str
    fused_over_split: float | None
    against: list[str]
    ratios: dict[str, Ratio]


class _Pair(NamedTuple):
    """Both forms in one row: the medians, and the ratio within a round.

    ``is_late``: in half of the rounds of a form or more the host was late, so that the median is of
    its time as well.
    """

    case: str
    title: str
    fused_ms: float
    split_ms: float
    ratio: float
    is_late: bool


def choose(rows: Sequence[GpuRow], backend: str, is_gpu: bool, absent: str | None) -> Choice:
    """Compare the time that the forms of one backend take for all models together."""
    choice = Choice(
        backend=backend, faster=None, summary="", fused_over_split=None, against=[], ratios={}
    )
    measured = _pairs(rows, backend)
    if absent is not None or not measured:
        choice["summary"] = f"not measured: {absent or 'no case was timed in both forms'}"
        return choice
    pairs = [pair for pair in measured if not pair.is_late]
    models = [pair for pair in pairs if CASES[pair.case].is_model]
    if is_gpu and models:
        _decide(choice, pairs, models)
    reason = "no model was timed in both forms" if is_gpu else "this is NOT a GPU measurement"
    parts = [choice["summary"] or f"no choice: {reason}"]
    for what, titles in (
        ("mixed, since these cases go against it", choice["against"]),
        ("left out, as the host was late there", [p.title for p in measured if p.is_late]),
    ):
        parts += [f"{what}: {'; '.join(titles)}"] if titles else []
    small = [p for p in pairs if not CASES[p.case].is_model and CASES[p.case].n_tensors > 1]
    choice["ratios"] = {
        title: _ratio([pair.ratio for pair in chosen])
        for title, chosen in (("models", models), ("lists of many small tensors", small))
        if chosen
    }
    choice["summary"] = "; ".join(parts)
    return choice


def _decide(choice: Choice, pairs: Sequence[_Pair], models: Sequence[_Pair]) -> None:
    over = sum(pair.fused_ms for pair in models) / sum(pair.split_ms for pair in models)
    faster = _faster(over, MARGIN)
    verdict = (
        f"fused and split are equal within {MARGIN:.0%}"
        if faster == "either"
        else f"{faster} is faster where nothing else runs on this device"
    )
    choice["faster"], choice["fused_over_split"] = faster, over
    choice["summary"] = f"{verdict}: fused time / split time of all models together {over:.3f}"
    against = [pair for pair in pairs if _faster(pair.ratio, AGAINST) not in (faster, "either")]
    choice["against"] = [pair.title for pair in against]


def _pairs(rows: Sequence[GpuRow], backend: str) -> list[_Pair]:
    found: list[_Pair] = []
    for row in rows:
        fused, split = (row["entries"].get(form_name(backend, form)) for form in ("fused", "split"))
        if fused is None or split is None:
            continue
        times = fused["device"], split["device"]
        ratio = median_ratio(*times)
        late = 2 * max(entry["rounds_not_ahead"] for entry in (fused, split))
        is_late = late >= len(times[0]["rounds"])
        title = f"{row_title(row)}: {ratio:.3f}"
        medians = times[0]["median"], times[1]["median"]
        found.append(_Pair(row["case"], title, *medians, ratio, is_late))
    return found


def _faster(over: float, margin: float) -> str:
    if abs(over - 1) <= margin:
        return "either"
    return "fused" if over < 1 else "split"


def _ratio(found: Sequence[float]) -> Ratio:
    return Ratio(
        mean=geometric_mean(found), lowest=min(found), highest=max(found), n_cases=len(found)
    )
