"""DTensors on one mesh, in processes that are its ranks: one to four."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed
from source_tree import SUPPORT

WORKER = SUPPORT / "dtensor_worker.py"
SECONDS = 300
CHECKS = (
    "known values",
    "partial",
    "refused",
    "named backend",
    "without a say",
    "clipper's warning",
    "training",
    "flags",
    "inf in a shard",
    "gathers",
    "nothing alone",
    "tensors",
)


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch is built without torch.distributed"
)
@pytest.mark.parametrize("world_size", (1, 2, 3, 4))
def test_dtensors_on_one_mesh(world_size: int, tmp_path: Path) -> None:
    from sharded_lists import cases

    outputs = run_ranks(world_size, tmp_path / "store")
    if is_transport_failure(outputs):
        outputs = run_ranks(world_size, tmp_path / "second_store")
    everything = "\n".join(output for _, output in outputs)
    names = {f"case {name}" for name, case in cases().items() if case.ranks == world_size}
    for status, output in outputs:
        assert status == 0, everything
        lines = output.splitlines()
        assert names | set(CHECKS) <= set(lines), everything
        assert ("outside" in lines) == ("outside flags" in lines) == (world_size > 2)


def run_ranks(world_size: int, store: Path) -> list[tuple[int, str]]:
    """Run a process for each rank; return their exit statuses and outputs."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world_size), str(store)],
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


def is_transport_failure(outputs: list[tuple[int, str]]) -> bool:
    """Return whether only gloo failed: an error of the package shows on the rank that raised it."""
    failed = [output for status, output in outputs if status != 0]
    return len(failed) > 0 and all("third_party/gloo" in output for output in failed)
