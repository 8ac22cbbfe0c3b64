"""A run of `bench gpu` as one picture: how many times faster than stock, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.chart import draw_panels
from bench.gpu.entrants import STOCK
from bench.gpu.report import GpuReport, provenance, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP*Xdh<>"


def draw(report: GpuReport, file: Path) -> None:
    """Draw stock's time over each entrant's, not clipped and clipped."""
    rows = report["rows"]
    labels = list(dict.fromkeys(f"{row['case']} {row['dtype']}" for row in rows))
    names = [n for n in dict.fromkeys(n for row in rows for n in row["entries"]) if n != STOCK]

    def draw_panel(panel: Axes, clipped: bool) -> None:
        for name, marker in zip(names, MARKERS, strict=False):
            held = [row for row in rows if row["clipped"] is clipped and name in row["entries"]]
            ratios = [row["entries"][name]["stock_over"] for row in held]
            heights = [-labels.index(f"{row['case']} {row['dtype']}") for row in held]
            panel.plot(ratios, heights, marker, label=name, markersize=5, alpha=0.8)

    failed = "FAILED, see report.md: " if report["failures"] else ""
    draw_panels(
        file,
        labels,
        draw_panel,
        title=f"{failed}{title(report)}\n{report['device_name']}\n{provenance(report)}",
        ratio="stock's time / the entrant's, on the device",
        inches_per_label=0.34,
    )
