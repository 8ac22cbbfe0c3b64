"""A run as one picture: stock's time over that of others, not clipped and clipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.text import clipped_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES_AROUND = 2.4


def draw_panels(
    file: Path,
    labels: Sequence[str],
    draw: Callable[[Axes, bool], None],
    *,
    title: str,
    ratio: str,
    inches_per_label: float,
) -> None:
    """Draw two panels beside each other, with the labels at the heights 0, -1, -2 ...

    ``draw`` draws the rows that are not clipped, and those that are; ``ratio`` is what the
    horizontal axis shows.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    # Imported here: only a picture needs it.
    from matplotlib.figure import Figure

    height = INCHES_AROUND + inches_per_label * len(labels)
    figure = Figure(figsize=(13, height), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 2, sharex=True, sharey=True))
    for panel, clipped in zip(panels, (False, True), strict=True):
        draw(panel, clipped)
        panel.set_title(clipped_text(clipped))
        panel.set_xlabel(f"{ratio} (log scale)")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}x")
        panel.axvline(1, color="black", linewidth=1)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    panels[0].set_yticks([-float(i) for i in range(len(labels))], labels, fontsize=8)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=130)
