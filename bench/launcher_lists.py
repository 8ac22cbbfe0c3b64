"""Write the lists of gradients for bench/cuda/launchers_bench.cu: name, tensors, elements of each.

python bench/launcher_lists.py > lists.txt
"""

from __future__ import annotations

from math import prod

from shapes import CASES

# Beside the benchmark's cases: one tensor of middling size, and a few small ones.
EXTRA: dict[str, tuple[int, ...]] = {
    "1x4e6": (4_000_000,),
    "1x25e6": (25_000_000,),
    "64x64k": (65536,) * 64,
}


def lines() -> list[str]:
    """Return a line for each list."""
    lists = {name: tuple(map(prod, case.shapes)) for name, case in CASES.items()} | EXTRA
    return [" ".join(map(str, (name, len(counts), *counts))) for name, counts in lists.items()]


def main() -> None:
    """Print all lists."""
    print("\n".join(lines()))


if __name__ == "__main__":
    main()
