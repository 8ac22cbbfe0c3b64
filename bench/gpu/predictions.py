"""What docs/roofline.md predicts of the entrants of a run, beside what they took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.core.shapes import CASES
from bench.gpu.entrants import CLIPPER, STOCK
from bench.gpu.rows import GpuRow
from bench.model.roofline import (
    LAUNCH_MICROSECONDS,
    Work,
    fastclip_work,
    known_gpu,
    significant,
    stock_work,
)
from bench.model.stock_launches import Limits, limits_of

if TYPE_CHECKING:
    from bench.gpu.report import GpuReport


def predicted_work(row: GpuRow, name: str, limits: Limits) -> Work | None:
    """Return the work that docs/roofline.md expects of an entrant, if it speaks of it.

    Stock's launches depend on the CUDA that its torch is built with: on the limits of one.
    """
    case = CASES[row["case"]]
    if name == STOCK:
        return stock_work(case, limits)
    if name == "native fused":
        return fastclip_work(case, row["clipped"])
    if name in ("native auto", "native split", f"native {CLIPPER}"):
        return fastclip_work(case, row["clipped"], split=True)
    return None


def _bandwidth(report: GpuReport) -> float:
    gpu = known_gpu(report["device_name"]) if report["is_gpu"] else None
    return report["copy_gb_per_s"] * 1e9 if gpu is None else gpu.bytes_per_second


def predictions_note(report: GpuReport) -> str:
    """Say what the predictions are made of, and of which torch stock's are."""
    gpu = known_gpu(report["device_name"]) if report["is_gpu"] else None
    whose = (
        f"the measured copy's ({report['copy_gb_per_s']:.0f} GB/s), since docs/roofline.md does"
        " not hold this device"
        if gpu is None
        else f"the data sheet's ({gpu.said}), as in docs/roofline.md"
    )
    return (
        f"Predicted: bytes / bandwidth + launches x {LAUNCH_MICROSECONDS:g} us (assumed)."
        f" The bandwidth is {whose}. Stock's launches are those of {_built(report['cuda'])}, which"
        f" takes up to {limits_of(report['cuda']).max_tensors} tensors in one."
    )


def _built(cuda: str | None) -> str:
    return "a torch built without CUDA" if cuda is None else f"a torch built with CUDA {cuda}"


def predictions(report: GpuReport) -> list[tuple[GpuRow, str, list[str]]]:
    """Return by row and entrant the measured time, the predicted one, and their ratio."""
    found: list[tuple[GpuRow, str, list[str]]] = []
    limits = limits_of(report["cuda"])
    for row in report["rows"]:
        for name, entry in row["entries"].items():
            work = predicted_work(row, name, limits)
            if work is None:
                continue
            predicted = work.seconds(row["gradient_bytes"], _bandwidth(report)) * 1e6
            measured = entry["device"]["median"] * 1e3
            cells = [significant(measured), significant(predicted), f"{measured / predicted:.2f}"]
            found.append((row, name, cells))
    return found
