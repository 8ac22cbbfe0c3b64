"""One rank of the tests of FullyShardedDataParallel: ours against the module's own method.

``python fsdp_worker.py RANK RANKS STORE`` prints the name of each check that it passed.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore
from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp
from torch.distributed.fsdp import ShardingStrategy

import fastclip

TOLERANCE = 1e-6
"""Relative: the module's own norm is a float32 norm of float32 norms."""


def wrapped(
    use_orig_params: bool,
    inner: ShardingStrategy = ShardingStrategy.FULL_SHARD,
    outer: ShardingStrategy = ShardingStrategy.FULL_SHARD,
    dtype: torch.dtype = torch.float32,
) -> Fsdp:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(7, 5), torch.nn.Linear(5, 3), torch.nn.Linear(3, 3, bias=False)
    ).to(dtype)
    options = {"use_orig_params": use_orig_params, "device_id": torch.device("cpu")}
    layers[0] = Fsdp(layers[0], sharding_strategy=inner, **options)  # pyright: ignore
    return Fsdp(layers, sharding_strategy=outer, **options)  # pyright: ignore


def backward(module: Fsdp, scale: float = 1.0) -> None:
    module.zero_grad()
    dtype = next(module.parameters()).dtype
    inputs = torch.arange(14.0).reshape(2, 7).to(dtype) + dist.get_rank()
    (module(inputs).square().sum() * scale).backward()


def gradients(module: Fsdp) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def same(norm: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(norm.double(), other.double(), rtol=TOLERANCE, atol=0)
    gathered = [torch.zeros_like(norm) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, norm)
    assert all(torch.equal(each, norm) for each in gathered), "ranks differ"


def check_methods_result() -> None:
    strategies = (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP)
    plain = ShardingStrategy.NO_SHARD
    pairs = [*product(strategies, strategies), (plain, strategies[0]), (strategies[0], plain)]
    for use_orig_params, (inner, outer), norm_type, max_norm in product(
        (False, True), [*pairs, (plain, plain)], (2.0, 1.0, 3.0, math.inf), (0.5, 1e9)
    ):
        ours = wrapped(use_orig_params, inner, outer)
        theirs = wrapped(use_orig_params, inner, outer)
        backward(ours)
        backward(theirs)
        norm = fastclip.clip_grad_norm_(ours, max_norm, norm_type)  # pyright: ignore
        same(norm, theirs.clip_grad_norm_(max_norm, norm_type))
        for a, b in zip(gradients(ours), gradients(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=0)
    print("method's result")


def check_known_norm() -> None:
    """Compare with the norm of the whole gradients, in float64."""
    module = wrapped(True)
    backward(module)
    with Fsdp.summon_full_params(module, with_grads=True):
        whole = torch.cat([grad.double().flatten() for grad in gradients(module)])
    same(fastclip.clip_grad_norm_(module, 1e9), whole.norm())  # pyright: ignore
    print("known norm")


def check_sixteen_bits() -> None:
    module = wrapped(True, dtype=torch.bfloat16)
    backward(module)
    norm = fastclip.clip_grad_norm_(module, 1e9)  # pyright: ignore
    assert norm.dtype == torch.float32
    print("bfloat16")


def check_nonfinite() -> None:
    for value, norm_type in product((math.inf, math.nan), (2.0, math.inf)):
        module = wrapped(True)
        backward(module)
        held = [p for p in module.parameters() if p.grad is not None and p.numel()]
        if dist.get_rank() == dist.get_world_size() - 1:
            held[0].grad.view(-1)[0] = value  # pyright: ignore
        before = gradients(module)
        message = ""
        try:
            fastclip.clip_grad_norm_(module, 1.0, norm_type, error_if_nonfinite=True)  # pyright: ignore
        except RuntimeError as error:
            message = str(error)
        assert "is non-finite" in message, "no error on this rank"
        assert "weight" in message or "none on this rank" in message, message
        for a, b in zip(gradients(module), before, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        norm = fastclip.clip_grad_norm_(module, 1.0, norm_type)  # pyright: ignore
        assert math.isnan(norm) if math.isnan(value) else math.isinf(norm), norm
    print("not finite")


def check_ignored() -> None:
    """A gradient that FSDP does not manage is not finite on one rank: every rank raises."""
    for norm_type in (2.0, math.inf):
        layers = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
        module = Fsdp(layers, ignored_modules=[layers[1]], device_id=torch.device("cpu"))
        backward(module)
        if dist.get_rank() == 0:
            layers[1].weight.grad[0, 0] = math.inf  # pyright: ignore
        try:
            fastclip.clip_grad_norm_(module, 1.0, norm_type, error_if_nonfinite=True)  # pyright: ignore
        except RuntimeError as error:
            assert "is non-finite" in str(error)
        else:
            raise AssertionError("no error on this rank")
    print("ignored")


def check_refusals() -> None:
    module = wrapped(True)
    backward(module)
    inner = next(m for m in module.modules() if isinstance(m, Fsdp) and m is not module)
    try:
        fastclip.clip_grad_norm_(inner, 1.0)  # pyright: ignore
    except RuntimeError as error:
        assert "should only be called on the root FSDP instance" in str(error)
        print("refused")


def main() -> None:
    rank, ranks, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=FileStore(store, ranks), rank=rank, world_size=ranks)
    check_methods_result()
    check_known_norm()
    check_sixteen_bits()
    check_nonfinite()
    check_ignored()
    check_refusals()
    dist.barrier()  # nobody closes a connection that another rank still reads
    dist.destroy_process_group()
    # FSDP's modules hold threads of gloo's that would otherwise end while Python does.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
