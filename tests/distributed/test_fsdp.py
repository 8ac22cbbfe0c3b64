"""FullyShardedDataParallel modules, in processes that are its ranks: two and three."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from source_tree import SUPPORT

import fastclip
from fastclip import distributed

SECONDS = 300
CHECKS = ["method's result", "known norm", "bfloat16", "not finite", "ignored", "refused"]


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch is built without torch.distributed"
)
@pytest.mark.parametrize("world_size", (2, 3))
def test_a_root_module_is_clipped_as_by_its_own_method(world_size: int, tmp_path: Path) -> None:
    command = [sys.executable, str(SUPPORT / "fsdp_worker.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(tmp_path / "store")],
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
        assert process.returncode == 0, "\n".join(outputs)
        assert output.splitlines() == CHECKS, "\n".join(outputs)


@pytest.mark.parametrize("module", (torch.nn.Linear(2, 2), torch.nn.Identity()))
def test_other_modules_raise_as_in_stock(module: torch.nn.Module) -> None:
    assert not distributed.is_fully_sharded(module)
    for clip in (fastclip.clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        with pytest.raises(TypeError, match="object is not iterable"):
            clip(module, 1.0)  # pyright: ignore
