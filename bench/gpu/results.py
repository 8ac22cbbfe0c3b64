"""What was measured on a GPU, read from the files of bench/results."""

from __future__ import annotations

import json
import re
from pathlib import Path

H200 = Path(__file__).parents[1] / "results" / "2026-11-28-h200"
H200_RUN = """\
One NVIDIA H200, driver 580.159.04, torch 2.11.0+cu130, fastclip a0b1021, L2 flushed, 2026-11-28"""

Row = tuple[str, str, bool]
"""A case, a dtype, and whether it is clipped."""


def device_microseconds(entrant: str) -> dict[Row, float]:
    """Return the median time on the device of an entrant of `bench gpu`, by row."""
    lines = (H200 / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        (row["case"], row["dtype"], row["clipped"]): row["entries"][entrant]["device"]["median"]
        * 1e3
        for row in map(json.loads, lines)
    }


def stock_launches() -> dict[str, int]:
    """Return how many kernels stock's call launched, as torch's profiler counted them, by case."""
    text = (H200 / "launches.txt").read_text(encoding="utf-8")
    counted = re.findall(r"^launches (\S+) float32 stock no: (\d+) kernels", text, re.MULTILINE)
    return {case: int(kernels) for case, kernels in counted}
