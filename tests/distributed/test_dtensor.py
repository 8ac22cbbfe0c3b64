"""DTensors on one mesh, in processes that are its ranks: one to four."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed
from ranks import run_ranks
from source_tree import SUPPORT

WORKER = SUPPORT / "dtensor_worker.py"
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

    outputs = run_ranks(WORKER, world_size, tmp_path / "store")
    if is_transport_failure(outputs):
        outputs = run_ranks(WORKER, world_size, tmp_path / "second_store")
    everything = "\n".join(output for _, output in outputs)
    names = {f"case {name}" for name, case in cases().items() if case.ranks == world_size}
    for status, output in outputs:
        assert status == 0, everything
        lines = output.splitlines()
        assert names | set(CHECKS) <= set(lines), everything
        assert ("outside" in lines) == ("outside flags" in lines) == (world_size > 2)


def is_transport_failure(outputs: list[tuple[int, str]]) -> bool:
    """Return whether only gloo failed: an error of the package shows on the rank that raised it."""
    failed = [output for status, output in outputs if status != 0]
    return len(failed) > 0 and all("third_party/gloo" in output for output in failed)
