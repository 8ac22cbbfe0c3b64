"""A run as one picture: how many times faster than stock, case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cpu.measure import Row, row_name
from bench.cpu.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"float32": "#1f5a94", "bfloat16": "#d9822b", "float16": "#4a9a5b"}
BAR_HEIGHT = 0.26
INCHES_PER_CASE = 0.75
INCHES_AROUND = 2.2


def draw(report: Report, file: Path) -> None:
    """Draw stock's time over fastclip's, not clipped and clipped, with the targets.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    # Imported here: only a picture needs it.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    cases = list(dict.fromkeys(row_name(row) for row in report["rows"]))
    dtypes = list(dict.fromkeys(row["dtype"] for row in report["rows"]))
    height = INCHES_AROUND + INCHES_PER_CASE * len(cases)
    figure = Figure(figsize=(12, height), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 2, sharex=True, sharey=True))
    for panel, clipped in zip(panels, (False, True), strict=True):
        rows = [row for row in report["rows"] if row["clipped"] is clipped]
        _draw_ratios(panel, rows, _list_targets(report, clipped), cases, dtypes)
        panel.set_title("clipped" if clipped else "not clipped")
        panel.set_xlabel("stock's time / fastclip's time (log scale; numbers: list call)")
    _label_cases(panels[0], report["rows"], cases)
    handles = [
        *(Patch(color=COLOURS[dtype], label=f"{dtype}, list call") for dtype in dtypes),
        Line2D([], [], linestyle="", marker="o", color="black", mfc="white", label="GradClipper"),
        Line2D([], [], linestyle="", marker="D", color="crimson", label="target of the list call"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(_title(report), fontsize=11)
    figure.savefig(file, dpi=130)


def _draw_ratios(
    panel: Axes,
    rows: Sequence[Row],
    targets: Mapping[tuple[str, str], float],
    cases: Sequence[str],
    dtypes: Sequence[str],
) -> None:
    for row in rows:
        at = _height(row_name(row), row["dtype"], cases, dtypes)
        ratio, clipper = row["stock_over_list"], row["stock_over_clipper"]
        target = targets.get((row_name(row), row["dtype"]))
        # A bar on a log scale starts at 1, where stock is, and points left where stock wins.
        panel.barh(at, ratio - 1, BAR_HEIGHT, left=1, color=COLOURS[row["dtype"]])
        panel.plot([clipper], [at], "o", color="black", markerfacecolor="white", markersize=4.5)
        if target is not None:
            panel.plot([target], [at], "D", color="crimson", markersize=5)
        # Beside the last mark, not upon it.
        beyond = max(ratio, clipper, target or 1.0, 1.0)
        panel.annotate(
            f"{ratio:.1f}", (beyond, at), (6, 0), textcoords="offset points", va="center", size=8
        )
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:g}x")
    # Room for the number beside the longest bar.
    panel.margins(x=0.12, y=0.02)
    panel.axvline(1, color="black", linewidth=1)
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)


def _list_targets(report: Report, clipped: bool) -> dict[tuple[str, str], float]:
    return {
        (outcome["case"], outcome["dtype"]): outcome["target"]
        for outcome in report["targets"]
        if outcome["clipped"] is clipped and outcome["contender"] == "list"
    }


def _height(case: str, dtype: str, cases: Sequence[str], dtypes: Sequence[str]) -> float:
    # The middle dtype sits on the case's tick; the first case is at the top.
    middle = (len(dtypes) - 1) / 2
    return -cases.index(case) - (dtypes.index(dtype) - middle) * BAR_HEIGHT


def _label_cases(panel: Axes, rows: Sequence[Row], cases: Sequence[str]) -> None:
    tensors = {row_name(row): row["n_tensors"] for row in rows}
    elements = {row_name(row): row["n_elements"] for row in rows}
    labels = [
        f"{case}\n{_count(tensors[case], 'tensor')}\n{_count(elements[case], 'element')}"
        for case in cases
    ]
    panel.set_yticks([-float(i) for i in range(len(cases))], labels, fontsize=8)


def _title(report: Report) -> str:
    machine = report["machine"]
    return (
        f"fastclip {machine['fastclip']} against torch.nn.utils, torch {machine['torch']}\n"
        f"{machine['cpu']}, {_count(machine['threads'], 'thread')}, {machine['date'][:10]}"
    )


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"
