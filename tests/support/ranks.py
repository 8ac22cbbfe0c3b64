"""Processes that are the ranks of a group."""

import subprocess
import sys
from pathlib import Path

SECONDS = 300


def run_ranks(worker: Path, world_size: int, store: Path) -> list[tuple[int, str]]:
    """Run ``worker RANK RANKS STORE`` for each rank; return their exit statuses and outputs."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(world_size), str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [(process.returncode, output) for process, output in zip(ranks, outputs, strict=True)]
