"""What docs/roofline.md predicts of the entrants of a run, beside what they took."""

from __future__ import annotations

from collections.abc import Sequence

from bench.core.shapes import CASES
from bench.core.text import clipped_text, significant
from bench.gpu.entrants import CLIPPER, STOCK
from bench.gpu.rows import GpuRow
from bench.model.roofline import LAUNCH_MICROSECONDS, Work, fastclip_work, known_gpu, stock_work
from bench.model.stock_launches import Limits, limits_of

SPLIT = ("native auto", "native split", f"native {CLIPPER}")


def predicted_work(row: GpuRow, name: str, limits: Limits) -> Work | None:
    """Return the work that docs/roofline.md expects of an entrant, if it speaks of it."""
    case = CASES[row["case"]]
    if name == STOCK:
        return stock_work(case, limits)
    if name == "native fused" or name in SPLIT:
        return fastclip_work(case, row["clipped"], split=name in SPLIT)
    return None


def predictions_note(device_name: str, copy_gb_per_s: float, cuda: str | None) -> str:
    """Say what the predictions are made of, and of which torch stock's are."""
    gpu = known_gpu(device_name)
    whose = (
        f"the measured copy's ({copy_gb_per_s:.0f} GB/s), since docs/roofline.md does not hold this"
        " device"
        if gpu is None
        else f"the data sheet's ({gpu.said}), as in docs/roofline.md"
    )
    built = "without CUDA" if cuda is None else f"with CUDA {cuda}"
    return (
        f"Predicted: bytes / bandwidth + launches x {LAUNCH_MICROSECONDS:g} us (assumed)."
        f" The bandwidth is {whose}. Stock's launches are those of a torch built {built}, which"
        f" takes up to {limits_of(cuda).max_tensors} tensors in one."
    )


def predictions(
    rows: Sequence[GpuRow], device_name: str, copy_gb_per_s: float, cuda: str | None
) -> list[list[str]]:
    """Return by row and entrant the measured time, the predicted one, and their ratio."""
    gpu, limits = known_gpu(device_name), limits_of(cuda)
    bandwidth = copy_gb_per_s * 1e9 if gpu is None else gpu.bytes_per_second
    found: list[list[str]] = []
    for row in rows:
        for name, entry in row["entries"].items():
            work = predicted_work(row, name, limits)
            if work is None:
                continue
            predicted = work.seconds(row["gradient_bytes"], bandwidth) * 1e6
            measured = entry["device"]["median"] * 1e3
            head = [row["case"], row["dtype"], clipped_text(row["clipped"]), name]
            times = [significant(measured), significant(predicted), f"{measured / predicted:.2f}"]
            found.append(head + times)
    return found
