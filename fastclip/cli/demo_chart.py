"""The demo's chart: loss, gradient norm and distance from the float64 run, step by step."""

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .demo_training import LEARNING_RATE, MAX_NORM, Run, Runs

RED, BLUE, ORANGE, GREY = "#c0392b", "#1f5fa8", "#e59e2c", "#777777"
HEADROOM = 1.6
"""The loss axis ends at this multiple of the first loss; an exploding loss leaves the chart."""


def write_chart(path: Path, runs: Runs, where: str) -> None:
    """Draw the runs and write a PNG.

    Args:
        path: of the PNG.
        runs: the four runs.
        where: device and backend, for the title.
    """
    figure = Figure(figsize=(9, 9.6), dpi=120, layout="constrained")
    axes: Sequence[Axes] = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2.4, 1.8))
    figure.suptitle(
        f"A small GPT trained with SGD at learning rate {LEARNING_RATE:g}, on {where}",
        fontsize=12,
    )
    _draw_loss(axes[0], runs.unclipped, runs.stock, runs.ours)
    _draw_norm(axes[1], runs.unclipped, runs.stock, runs.ours)
    _draw_difference(axes[2], runs.stock, runs.ours, runs.yardstick)
    for axis in axes:
        axis.grid(True, color="#e6e6e6", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[2].set_xlabel("step")
    axes[2].set_xlim(0, max(1, len(runs.ours.loss) - 1))
    figure.savefig(path, format="png")


def _draw_loss(axis: Axes, unclipped: Run, stock: Run, ours: Run) -> None:
    top = HEADROOM * ours.initial_loss
    axis.axhline(ours.initial_loss, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.annotate(
        "first loss", (1, ours.initial_loss), (-4, 3), textcoords="offset points",
        xycoords=("axes fraction", "data"), ha="right", color=GREY, fontsize=9,
    )  # fmt: skip
    axis.plot(unclipped.loss, color=RED, linewidth=1.6, label=unclipped.name)
    _draw_pair(axis, stock.loss, ours.loss, (stock.name, ours.name))
    axis.set_ylim(0, top)
    axis.set_ylabel("loss (nats per byte)")
    left = next((i for i, loss in enumerate(unclipped.loss) if not loss <= top), None)
    if left is not None:
        axis.annotate(
            _fate(unclipped), (left, top), (10, -8), textcoords="offset points",
            va="top", color=RED, fontsize=9.5,
        )  # fmt: skip
    axis.legend(loc="lower left", frameon=False, ncols=3, fontsize=9.5)


def _fate(unclipped: Run) -> str:
    """Return how the run without clipping went on above the axis, in words."""
    finite = [loss for loss in unclipped.loss if math.isfinite(loss)]
    text = f"no clipping: loss up to {max(finite):.3g}"
    return text if unclipped.end is None else f"{text}, not finite from step {unclipped.end} on"


def _draw_norm(axis: Axes, unclipped: Run, stock: Run, ours: Run) -> None:
    axis.axhline(MAX_NORM, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.annotate(
        f"max_norm {MAX_NORM:g}", (1, MAX_NORM), (-4, 3), textcoords="offset points",
        xycoords=("axes fraction", "data"), ha="right", color=GREY, fontsize=9,
    )  # fmt: skip
    axis.plot(_finite(unclipped.norm), color=RED, linewidth=1.6)
    _draw_pair(axis, _finite(stock.norm), _finite(ours.norm), (None, None))
    axis.set_yscale("log")
    axis.set_ylim(bottom=MAX_NORM / 3)
    axis.set_ylabel("gradient norm before the clip")


def _draw_difference(axis: Axes, stock: Run, ours: Run, yardstick: Run) -> None:
    for run, color, width in ((stock, ORANGE, 2.6), (ours, BLUE, 1.1)):
        pairs = zip(run.loss, yardstick.loss, strict=True)
        so_far = accumulate((abs(mine - theirs) for mine, theirs in pairs), max)
        # A log axis has no 0: the line begins with the first difference.
        axis.plot(
            [gap or math.nan for gap in so_far],
            color=color,
            linewidth=width,
            drawstyle="steps-post",
        )
    axis.set_yscale("log")
    differences = [run.largest_loss_difference(yardstick) for run in (stock, ours)]
    axis.set_ylim(1e-7, 3 * max([1e-5, *(d for d in differences if math.isfinite(d))]))
    axis.set_ylabel("loss: largest distance so\nfar from the float64 clip")


def _draw_pair(
    axis: Axes,
    stock: Sequence[float],
    ours: Sequence[float],
    labels: tuple[str | None, str | None],
) -> None:
    """Draw torch's line wide and fastclip's thin above it, because they nearly coincide."""
    axis.plot(stock, color=ORANGE, linewidth=3.2, label=labels[0])
    axis.plot(ours, color=BLUE, linewidth=1.2, label=labels[1])


def _finite(series: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in series]
