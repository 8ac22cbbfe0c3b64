"""A run as one picture: how many times faster than stock, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.chart import draw_panels
from bench.cpu.measure import row_name
from bench.cpu.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"float32": "#1f5a94", "bfloat16": "#d9822b", "float16": "#4a9a5b"}
BAR_HEIGHT = 0.26


def draw(report: Report, file: Path) -> None:
    """Draw stock's time over fastclip's, not clipped and clipped, with the targets."""
    rows, machine = report["rows"], report["machine"]
    cases = {row_name(row): row for row in rows}
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    targets = {
        (found["case"], found["dtype"], found["clipped"]): found["target"]
        for found in report["targets"]
        if found["contender"] == "list"
    }

    def draw_dtype(panel: Axes, dtype: str, clipped: bool) -> None:
        chosen = [row for row in rows if row["dtype"] == dtype and row["clipped"] is clipped]
        names = [row_name(row) for row in chosen]
        # The middle dtype sits on the case's tick; the first case is at the top.
        below = (dtypes.index(dtype) - (len(dtypes) - 1) / 2) * BAR_HEIGHT
        heights = [-list(cases).index(name) - below for name in names]
        ratios = [row["stock_over_list"] for row in chosen]
        clippers = [row["stock_over_clipper"] for row in chosen]
        held = [targets.get((name, dtype, clipped)) for name in names]
        is_first = dtype == dtypes[0]
        # A bar on a log scale starts at 1, where stock is, and points left where stock wins.
        widths, colour = [ratio - 1 for ratio in ratios], COLOURS[dtype]
        panel.barh(heights, widths, BAR_HEIGHT, left=1, color=colour, label=f"{dtype}, list call")
        label = "GradClipper" if is_first else None
        panel.plot(clippers, heights, "o", color="black", mfc="white", markersize=4.5, label=label)
        label = "target of the list call" if is_first else None
        points = [(target or float("nan")) for target in held]
        panel.plot(points, heights, "D", color="crimson", markersize=5, label=label)
        for at, ratio, clipper, target in zip(heights, ratios, clippers, held, strict=True):
            # Beside the last mark, not upon it.
            end = (max(ratio, clipper, target or 1.0, 1.0), at)
            panel.annotate(
                f"{ratio:.1f}", end, (6, 0), textcoords="offset points", va="center", size=8
            )

    def draw_panel(panel: Axes, clipped: bool) -> None:
        for dtype in dtypes:
            draw_dtype(panel, dtype, clipped)
        # Room for the number beside the longest bar.
        panel.margins(x=0.12, y=0.02)

    draw_panels(
        file,
        [
            f"{name}\n{_count(row['n_tensors'], 'tensor')}\n{_count(row['n_elements'], 'element')}"
            for name, row in cases.items()
        ],
        draw_panel,
        title=f"fastclip {machine['fastclip']} against torch.nn.utils, torch {machine['torch']}\n"
        f"{machine['cpu']}, {_count(machine['threads'], 'thread')}, {machine['date'][:10]}",
        ratio="stock's time / fastclip's time, numbers: list call",
        inches_per_label=0.75,
    )


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"
