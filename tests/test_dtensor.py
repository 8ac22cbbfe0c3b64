"""DTensors on one mesh, in processes that are its ranks: one to four."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

WORKER = Path(__file__).with_name("dtensor_worker.py")
SECONDS = 300
CHECKS = (
    "known values",
    "partial",
    "refused",
    "named backend",
    "without a say",
    "clipper's warning",
    "training",
)


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch is built without torch.distributed"
)
@pytest.mark.parametrize("world_size", (1, 2, 3, 4))
def test_dtensors_on_one_mesh(world_size: int, tmp_path: Path) -> None:
    from sharded_lists import cases

    store = tmp_path / "store"
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
    for process, output in zip(ranks, outputs, strict=True):
        assert process.returncode == 0, output
        lines = output.splitlines()
        for check in CHECKS:
            assert check in lines
        assert ("outside" in lines) == (world_size > 2)
        names = {f"case {name}" for name, case in cases().items() if case.ranks == world_size}
        assert names <= set(lines)
