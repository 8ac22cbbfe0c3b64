"""A run of bench gpu as one picture: how many times faster than stock, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.gpu.entrants import STOCK
from bench.gpu.report import GpuReport, provenance, title
from bench.gpu.rows import GpuRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP*Xdh<>"
INCHES_PER_LINE = 0.34
INCHES_AROUND = 2.4


def draw(report: GpuReport, file: Path) -> None:
    """Draw stock's time over each entrant's, not clipped and clipped.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    # Imported here: only a picture needs it.
    from matplotlib.figure import Figure

    rows = report["rows"]
    labels = list(dict.fromkeys(_label(row) for row in rows))
    names = [n for n in dict.fromkeys(n for row in rows for n in row["entries"]) if n != STOCK]
    figure = Figure(figsize=(13, INCHES_AROUND + INCHES_PER_LINE * len(labels)))
    figure.set_layout_engine("constrained")
    panels: list[Axes] = list(figure.subplots(1, 2, sharex=True, sharey=True))
    for panel, clipped in zip(panels, (False, True), strict=True):
        chosen = [row for row in rows if row["clipped"] is clipped]
        _draw(panel, chosen, labels, names)
        panel.set_title("clipped" if clipped else "not clipped")
        panel.set_xlabel("stock's time / the entrant's, on the device (log scale)")
    panels[0].set_yticks([-i for i in range(len(labels))], labels, fontsize=8)
    handles, found = panels[0].get_legend_handles_labels()
    figure.legend(handles, found, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    failed = "FAILED, see report.md: " if report["failures"] else ""
    figure.suptitle(
        f"{failed}{title(report)}\n{report['device_name']}\n{provenance(report)}", fontsize=9
    )
    figure.savefig(file, dpi=130)


def _label(row: GpuRow) -> str:
    return f"{row['case']} {row['dtype']}"


def _draw(panel: Axes, rows: Sequence[GpuRow], labels: Sequence[str], names: Sequence[str]) -> None:
    for name, marker in zip(names, MARKERS, strict=False):
        held = [row for row in rows if name in row["entries"]]
        x = [row["entries"][name]["stock_over"] for row in held]
        y = [-labels.index(_label(row)) for row in held]
        panel.plot(x, y, marker, label=name, markersize=5, alpha=0.8)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:g}x")
    panel.axvline(1, color="black", linewidth=1)
    panel.grid(alpha=0.3)
    panel.set_axisbelow(True)
