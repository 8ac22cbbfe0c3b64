"""Write the lists of gradients for bench/cuda/launchers_bench.cu: name, tensors, elements of each.

python bench launcher_lists > lists.txt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import prod

from bench.core.shapes import CASES

# Beside the benchmark's cases: one tensor of middling size, and a few small ones.
EXTRA = {"1x4e6": (4_000_000,), "1x25e6": (25_000_000,), "64x64k": (65536,) * 64}


def lines() -> list[str]:
    """Return a line for each list."""
    lists = {name: tuple(map(prod, case.shapes)) for name, case in CASES.items()} | EXTRA
    return [" ".join(map(str, (name, len(counts), *counts))) for name, counts in lists.items()]


def main(arguments: Sequence[str]) -> int:
    """Print all lists."""
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    print("\n".join(lines()))
    return 0
