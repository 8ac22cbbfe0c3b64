"""FullyShardedDataParallel modules, in processes that are its ranks: two and three."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed
from ranks import run_ranks
from source_tree import SUPPORT

import fastclip
from fastclip import distributed

CHECKS = ["method's result", "known norm", "bfloat16", "not finite", "ignored", "refused"]


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch is built without torch.distributed"
)
@pytest.mark.parametrize("world_size", (2, 3))
def test_a_root_module_is_clipped_as_by_its_own_method(world_size: int, tmp_path: Path) -> None:
    outputs = run_ranks(SUPPORT / "fsdp_worker.py", world_size, tmp_path / "store")
    everything = "\n".join(output for _, output in outputs)
    for status, output in outputs:
        assert status == 0, everything
        assert output.splitlines() == CHECKS, everything


@pytest.mark.parametrize("module", (torch.nn.Linear(2, 2), torch.nn.Identity()))
def test_other_modules_raise_as_in_stock(module: torch.nn.Module) -> None:
    assert not distributed.is_fully_sharded(module)
    for clip in (fastclip.clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        with pytest.raises(TypeError, match="object is not iterable"):
            clip(module, 1.0)  # pyright: ignore
