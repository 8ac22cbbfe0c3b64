"""``fastclip demo``: the same training without clipping, with torch's and with fastclip's."""

import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import fastclip

from .demo_model import draw_batches, load_text
from .demo_training import (
    LEARNING_RATE,
    MAX_NORM,
    Clip,
    Run,
    Runs,
    choose_backend,
    fastclip_with,
    float64_clip,
    no_clip,
    stock_clip,
    train,
)

DEFAULT_STEPS = 300
REQUIRED = ("matplotlib", "tqdm")
LEARNED = 0.6
"""A clipped run has learned if its final loss is below this share of the first."""

NORM_BOUND = 2 * 2.0**-24
"""The relative error that fastclip's norm of 16- and 32-bit gradients stays within."""


@dataclass(frozen=True)
class DemoOptions:
    """What to run.

    Attributes:
        steps: of each run.
        seed: of weights and batches.
        device: "cpu" or "cuda"; None takes cuda where there is one.
        threads: CPU threads; None leaves torch's own choice.
        chart: path of the PNG.
        record: path of a JSON file with every step's numbers, or None.
    """

    steps: int
    seed: int
    device: str | None
    threads: int | None
    chart: Path
    record: Path | None


def run_demo(options: DemoOptions) -> int:
    """Train four times, print a table, write a chart, and check what they show.

    Args:
        options: what to run.

    Returns:
        The exit status: 0 if training without clipping failed and both clipped runs learned, 1 if
        not, 2 if something stands in the way (a package, the device, a folder, a setting).
    """
    fastclip.unpatch_torch()  # "torch's clip" is to be torch's own
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    obstacle = _obstacle(options, name)
    if obstacle is not None:
        _say(f"demo: {obstacle}")
        return 2
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(name)
    backend = choose_backend(device)
    runs = _train_all(options, device, backend)
    print("\n".join(table(runs, backend)))
    where = f"{device}, fastclip's backend {backend}"
    _write(options, runs, where)
    found = problems(runs)
    for problem in found:
        _say(f"demo: {problem}")
    return 1 if found else 0


def _obstacle(options: DemoOptions, device: str) -> str | None:
    """Return what prevents the demo from running, before time is spent on training, or None."""
    missing = missing_packages()
    if missing:
        return f"needs {' and '.join(missing)}: pip install {' '.join(missing)}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it is built for CUDA
        reason = str(error).splitlines()[0]
        return f"device must be one that this torch can use (got {device!r}: {reason})"
    try:
        fastclip.backend_report()
    except ValueError as error:  # a setting in the environment that no clip accepts
        return str(error)
    for path in (options.chart, options.record):
        if path is not None and not path.parent.is_dir():
            return f"the folder of {path} must exist"
    return None


def missing_packages() -> list[str]:
    """Return the packages of the extra "demo" that are not installed."""
    return [name for name in REQUIRED if importlib.util.find_spec(name) is None]


def problems(runs: Runs) -> list[str]:
    """Return a sentence for each thing that the demo should show and does not."""
    found = []
    first, last = runs.unclipped.initial_loss, runs.unclipped.final_loss
    if last <= first:
        found.append(
            f"training without clipping should end above its first loss {first:.3f} or not finite, "
            f"and ended at {last:.3f}"
        )
    for run in (runs.stock, runs.ours):
        limit = LEARNED * run.initial_loss
        # Written so that NaN is a problem as well.
        if not run.final_loss < limit:
            found.append(
                f"training with {run.name} should end under {limit:.3f} "
                f"({LEARNED:.0%} of its first loss), and ended at {run.final_loss:.3f}"
            )
    error = runs.ours.largest_norm_error()
    if not error <= NORM_BOUND:
        found.append(
            f"fastclip's norm should be within {NORM_BOUND:.2g} of float64's, and was off by "
            f"{error:.2g}"
        )
    return found


def table(runs: Runs, backend: str) -> list[str]:
    """Return the results as lines of text."""
    rows: list[tuple[str, ...]] = [
        ("", "final loss", "steps clipped", "clip total", "clip median", "norm off", "loss off"),
        (runs.unclipped.name, _loss(runs.unclipped), "", "", "", "", ""),
    ]
    for run in (runs.stock, runs.ours, runs.yardstick):
        off = (
            f"{run.largest_norm_error():.1e}",
            f"{run.largest_loss_difference(runs.yardstick):.1e}",
        )
        rows.append(
            (
                run.name,
                _loss(run),
                f"{run.steps_clipped} of {len(run.loss)}",
                f"{1e3 * sum(run.seconds):.1f} ms",
                f"{1e3 * _median(run.seconds):.3f} ms",
                *(("", "") if run is runs.yardstick else off),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_aligned(row, widths) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    return [
        *lines,
        f"backend used by fastclip: {backend}",
        "norm off: largest relative difference of the returned norm from float64's",
        "loss off: largest difference of the loss from the run clipped in float64, at any step",
    ]


def _train_all(options: DemoOptions, device: torch.device, backend: str) -> Runs:
    batches = draw_batches(load_text(), options.steps, options.seed).to(device)
    print(
        f"a small GPT on Python's own documentation: {options.steps} steps of SGD, learning rate "
        f"{LEARNING_RATE:g}, max_norm {MAX_NORM:g}, seed {options.seed}, on {device} "
        f"with {torch.get_num_threads()} threads"
    )

    def run(name: str, clip: Clip) -> Run:
        return _train_with_bar(name, clip, batches, options.seed)

    return Runs(
        unclipped=run("no clipping", no_clip),
        stock=run("torch.nn.utils", stock_clip),
        ours=run("fastclip", fastclip_with(backend)),
        yardstick=run("float64 clip", float64_clip),
    )


def _train_with_bar(name: str, clip: Clip, batches: torch.Tensor, seed: int) -> Run:
    from tqdm import tqdm

    with tqdm(total=len(batches), desc=f"{name:<14}", unit="step", mininterval=0.5) as bar:

        def on_step(loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()

        return train(name, clip, batches, seed, on_step)


def _write(options: DemoOptions, runs: Runs, where: str) -> None:
    """Write the chart and, if asked for, the record."""
    from .demo_chart import write_chart

    write_chart(options.chart, runs, where)
    print(f"chart: {options.chart}")
    if options.record is not None:
        record = [_as_record(run, runs.yardstick) for run in runs.all()]
        text = json.dumps({"where": where, "problems": problems(runs), "runs": record}, indent=1)
        options.record.write_text(text + "\n", encoding="utf-8")
        print(f"record: {options.record}")


def _as_record(run: Run, yardstick: Run) -> dict[str, object]:
    return {
        "name": run.name,
        "initial_loss": run.initial_loss,
        "final_loss": _number(run.final_loss),
        "steps_clipped": run.steps_clipped,
        "clip_seconds": sum(run.seconds),
        "clip_seconds_median": _median(run.seconds),
        "largest_norm_error": _number(run.largest_norm_error()),
        "largest_loss_difference": _number(run.largest_loss_difference(yardstick)),
        "loss": [_number(loss) for loss in run.loss],
        "norm": [_number(norm) for norm in run.norm],
        "seconds": run.seconds,
    }


def _number(value: float) -> float | None:
    """Return the number, or None for NaN and inf, which JSON does not have."""
    return value if math.isfinite(value) else None


def _loss(run: Run) -> str:
    if run.end is None:
        return f"{run.final_loss:.3f}"
    return f"{run.loss[run.end]:.0f} from step {run.end}"


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Format a row: the first column to the left, the others to the right."""
    pairs = list(zip(row, widths, strict=True))
    cells = [f"{pairs[0][0]:<{pairs[0][1]}}", *(f"{cell:>{width}}" for cell, width in pairs[1:])]
    return "  ".join(cells)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
