"""The command line that the programs share which plant faults, and how they end."""

from __future__ import annotations

import argparse


def parse(description: str) -> argparse.Namespace:
    """Read the command line: ``only``, which faults' names must hold, and ``jobs``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", default="", help="only faults whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time; default 2")
    return parser.parse_args()


def conclude(caught: int, planted: int, seconds: float) -> int:
    """Say how many faults were caught; return the exit status, 0 if that is all, and any."""
    print(f"{caught} of {planted} faults were caught, in {seconds:.0f} s")
    return 0 if 0 < planted == caught else 1
