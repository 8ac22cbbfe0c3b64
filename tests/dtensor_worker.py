"""One rank of a gloo group that clips DTensors: ``dtensor_worker.py RANK WORLD_SIZE STORE_FILE``.

Prints one line for each check; any difference is an error.
"""

from __future__ import annotations

import math
import sys

import oracle
import torch
import torch.distributed as dist
from samples import gradient
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

import fastclip

NORM_TYPES = (2.0, 1.0, math.inf, 3.0, 0.0, -1.0, -math.inf)


def wholes() -> list[Tensor]:
    """Return gradients whose shards are uneven, and for more than one rank empty, on some ranks."""
    shapes = ((5, 3), (1, 4), (64, 33), (7,))
    dtypes = (torch.float32, torch.bfloat16, torch.float32, torch.float16)
    return [
        gradient(shape, dtype, i)
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    ]


def sharded(mesh: DeviceMesh, whole: Tensor, placements: list[Placement]) -> Tensor:
    """Return a parameter whose gradient is ``whole``, spread over the mesh."""
    spread = [Shard(0) if isinstance(p, Shard) and whole.dim() == 1 else p for p in placements]
    parameter = torch.nn.Parameter(distribute_tensor(torch.zeros_like(whole), mesh, spread))
    parameter.grad = distribute_tensor(whole.clone(), mesh, spread)
    return parameter


def full(grad: Tensor | None) -> Tensor:
    assert isinstance(grad, DTensor)
    return grad.full_tensor()


def check_clip(mesh: DeviceMesh, placements: list[list[Placement]], norm_type: float) -> None:
    for foreach in (None, False):
        grads = wholes()
        held = [sharded(mesh, g, p) for g, p in zip(grads, placements, strict=True)]
        norm = fastclip.clip_grad_norm_(held, 0.5, norm_type, foreach=foreach)
        assert isinstance(norm, DTensor)
        assert all(isinstance(p, Replicate) for p in norm.placements)
        assert norm.device_mesh == mesh
        value = norm.full_tensor()
        expected = oracle.total_norm(grads, norm_type)
        assert oracle.is_norm(value.item(), expected, torch.float32), (value, expected, norm_type)
        coef = oracle.clip_coef(0.5, value)
        for parameter, grad in zip(held, grads, strict=True):
            assert parameter.grad is not None
            assert oracle.equal(full(parameter.grad), oracle.scaled(grad, coef))
            assert parameter.grad._version > 0
        print("clip", norm_type, foreach)


def check_unclipped(mesh: DeviceMesh) -> None:
    held = [sharded(mesh, g, [Shard(0)] * mesh.ndim) for g in wholes()]
    before = [p.grad._version for p in held if p.grad is not None]
    fastclip.clip_grad_norm_(held, 1e9)
    for parameter, grad, version in zip(held, wholes(), before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(full(parameter.grad), grad)
        assert parameter.grad._version > version
    print("unclipped")


def check_partial(mesh: DeviceMesh) -> None:
    ranks = mesh.size()
    share = DTensor.from_local(torch.full((4,), 3.0), mesh, [Partial()] * mesh.ndim)
    parameter = torch.nn.Parameter(share.detach().clone())
    parameter.grad = share
    norm = fastclip.clip_grad_norm_([parameter], 1.0)
    assert isinstance(norm, DTensor)
    assert norm.full_tensor().item() == 6.0 * ranks
    coef = oracle.clip_coef(1.0, norm.full_tensor())
    torch.testing.assert_close(full(parameter.grad), torch.full((4,), 3.0 * ranks * coef))
    print("partial")


def check_split_calls(mesh: DeviceMesh) -> None:
    grads = wholes()
    held = [sharded(mesh, g, [Shard(0)] * mesh.ndim) for g in grads]
    norm = fastclip.get_total_norm([p.grad for p in held if p.grad is not None])
    fastclip.clip_grads_with_norm_(held, 0.5, norm)
    fastclip.clip_grad_value_(held, 0.01)
    assert isinstance(norm, DTensor)
    coef = oracle.clip_coef(0.5, norm.full_tensor())
    for parameter, grad in zip(held, grads, strict=True):
        scaled = torch.from_numpy(oracle.scaled(grad, coef)).view(grad.shape).to(grad.dtype)
        assert oracle.equal(full(parameter.grad), oracle.clamped(scaled, 0.01))
    print("split calls")


def check_nonfinite(mesh: DeviceMesh) -> None:
    grads = wholes()
    grads[2][63, 0] = math.nan  # on the last rank alone
    held = [sharded(mesh, g, [Shard(0)] * mesh.ndim) for g in grads]
    try:
        fastclip.clip_grad_norm_(held, 1.0, error_if_nonfinite=True)
    except RuntimeError as error:
        assert "non-finite gradients: 2 (64, 33)" in str(error), error
    else:
        raise AssertionError("no error for a gradient with nan")
    assert torch.equal(full(held[0].grad), grads[0])
    print("nonfinite")


def main() -> None:
    rank, world_size, store_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group(
        "gloo", init_method=f"file://{store_file}", rank=rank, world_size=world_size
    )
    line = init_device_mesh("cpu", (world_size,))
    grid = init_device_mesh("cpu", (1, world_size))
    shard, replicate = Shard(0), Replicate()
    for norm_type in NORM_TYPES:
        check_clip(line, [[shard]] * 4, norm_type)
        check_clip(line, [[shard], [replicate], [Shard(1)], [shard]], norm_type)
        spread = [[replicate, shard], [shard, shard], [shard, Shard(1)], [shard, replicate]]
        check_clip(grid, spread, norm_type)
    check_unclipped(line)
    check_partial(line)
    check_split_calls(line)
    check_nonfinite(line)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
