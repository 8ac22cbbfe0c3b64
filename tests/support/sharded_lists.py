"""Lists of sharded gradients for one rank of a group, and their norm on the whole gradients.

Every element of a gradient has the same magnitude on a rank, another on each rank, so that a copy
counted twice or a shard left out moves the norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

Parameters = list[Tensor]
Key = tuple[tuple[int, int], ...]


@dataclass
class Case:
    """A list of parameters on each of ``ranks`` ranks."""

    ranks: int
    make: Callable[[], Parameters]
    made: Parameters | None = None

    def parameters(self) -> Parameters:
        """Return the parameters, the same ones at every call, with new gradients.

        Meshes and groups are made once, because each gloo group has its own threads.
        """
        if self.made is None:
            self.made = self.make()
        for i, parameter in enumerate(self.made):
            _fill(parameter, i)
        return self.made


def cases() -> dict[str, Case]:
    """Return every list by its name."""
    shard, replicate = Shard(0), Replicate()
    return {
        "fsdp2 on 2": Case(2, lambda: _fsdp(("dp",), (2,))),
        "fsdp2 on 3": Case(3, lambda: _fsdp(("dp",), (3,))),
        "fsdp2 on 4": Case(4, lambda: _fsdp(("dp",), (4,))),
        "hsdp on 2 x 2": Case(4, lambda: _fsdp(("replicate", "dp"), (2, 2))),
        "tp on 2": Case(2, lambda: _fsdp(("tp",), (2,))),
        "fsdp2 + tp on 2 x 2": Case(4, lambda: _fsdp(("dp", "tp"), (2, 2))),
        "hsdp + tp on 2 x 1 x 2": Case(4, lambda: _fsdp(("replicate", "dp", "tp"), (2, 1, 2))),
        "one row on 2": Case(2, lambda: [_one((2,), (1,), [shard])]),
        "one row of six on 4": Case(4, lambda: [_one((4,), (1, 6), [shard])]),
        "nine rows on 4": Case(4, lambda: [_one((4,), (9, 4), [shard])]),
        "one copy each on 3": Case(3, lambda: [_one((3,), (5,), [replicate])]),
        "columns on 3": Case(3, lambda: [_one((3,), (5, 2), [Shard(1)])]),
        "mixed on 2 x 2": Case(4, _mixed),
        "without elements on 2": Case(2, lambda: [_one((2,), (0, 3), [shard])]),
    }


def with_plain(case: Case) -> Case:
    """Add plain tensors: one that all ranks have alike, and one that differs from rank to rank."""

    def make() -> Parameters:
        plain = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
        return [*case.parameters(), *plain]

    return Case(case.ranks, make)


def _one(mesh_shape: tuple[int, ...], shape: tuple[int, ...], spread: list[Placement]) -> Tensor:
    mesh = init_device_mesh("cpu", mesh_shape)
    return nn.Parameter(distribute_tensor(torch.zeros(shape), mesh, spread))


def _mixed() -> Parameters:
    shard, replicate = Shard(0), Replicate()
    spreads: list[tuple[tuple[int, ...], list[Placement]]] = [
        ((5, 3), [shard, shard]),
        ((1, 4), [replicate, shard]),
        ((6,), [replicate, replicate]),
        ((7, 2), [shard, replicate]),
        ((3, 3), [Shard(1), shard]),
    ]
    mesh = init_device_mesh("cpu", (2, 2))
    return [
        nn.Parameter(distribute_tensor(torch.zeros(shape), mesh, spread))
        for shape, spread in spreads
    ]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 4, bias=False),
        nn.Linear(4, 6),
        nn.Linear(6, 2),
        nn.Linear(2, 1),
        nn.Tanh(),  # FSDP2 warns where a module returns a view
    )


def shard_model(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard by columns and rows over "tp", and by FSDP2 over the other dimensions of the mesh."""
    names = mesh.mesh_dim_names or ()
    if "tp" in names:
        columns, rows = ColwiseParallel, RowwiseParallel
        # Each layer maps whole inputs to whole outputs.
        plan = {
            "0": columns(output_layouts=Replicate()),
            "1": columns(output_layouts=Replicate()),
            "2": rows(input_layouts=Replicate()),
            "3": rows(input_layouts=Replicate()),
        }
        parallelize_module(model, mesh["tp"], plan)
    outer = tuple(name for name in names if name != "tp")
    if outer:
        fully_shard(model, mesh=mesh[outer])
    return model


def _fsdp(names: tuple[str, ...], mesh_shape: tuple[int, ...]) -> Parameters:
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    return list(shard_model(small_model(), mesh).parameters())


def _fill(parameter: Tensor, position: int) -> None:
    """Set the gradient to one magnitude on this rank: of a DTensor, the same in all copies."""
    grad = torch.zeros_like(parameter)
    if isinstance(grad, DTensor):
        number = 1.0 + sum(index * (10 if dim else 1) for dim, index in key_of(grad))
    else:
        number = 10.0 / 3 ** (dist.get_rank() * (position % 2))
    local = local_of(grad)
    signs = 1.0 - 2.0 * (torch.arange(local.numel()) % 2)
    local.copy_((number * signs).view(local.shape))
    parameter.grad = grad.detach()


def key_of(tensor: Tensor) -> Key:
    """Name the shard that this rank has: its place along the mesh's dimensions that split it."""
    if not isinstance(tensor, DTensor):
        return ()
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    return tuple(
        (dim, coordinate[dim])
        for dim, placement in enumerate(tensor.placements)
        if not isinstance(placement, Replicate)
    )


def local_of(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class Whole:
    """What all ranks hold: for each parameter the shards, a weight with each."""

    shards: list[list[tuple[float, Tensor]]]

    def has_elements(self) -> bool:
        return any(t.numel() for shards in self.shards for _, t in shards)

    def norm(self, norm_type: float) -> float:
        """Compute the total norm in float64; for p <= 0 the norm of the tensors' norms."""
        held = [s for s in self.shards if any(t.numel() for _, t in s)]
        if norm_type > 0:
            return _norm_of([pair for shards in held for pair in shards], norm_type)
        each = [_norm_of(shards, norm_type) for shards in held]
        return _norm_of([(1.0, torch.tensor(each, dtype=torch.float64))], norm_type)

    def norms(self, norm_type: float) -> list[float]:
        """Compute the norm of each parameter's gradient in float64, of none: 0, or inf if p < 0."""
        return [
            _norm_of(shards, norm_type) if any(t.numel() for _, t in shards) else of_nothing
            for of_nothing in [math.inf if norm_type < 0 else 0.0]
            for shards in self.shards
        ]


def whole_of(parameters: Sequence[Tensor]) -> Whole:
    """Gather all gradients, without the library: shards once, copies at one n-th each."""
    grads = [p.grad for p in parameters]
    mine = [
        (key_of(p), None if g is None else local_of(g).clone())
        for p, g in zip(parameters, grads, strict=True)
    ]
    ranks: list[list[tuple[Key, Tensor | None]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, mine)
    whole: list[list[tuple[float, Tensor]]] = []
    for of_ranks in zip(*ranks, strict=True):
        keys = [key for key, _ in of_ranks]
        whole.append([(1 / keys.count(key), t) for key, t in of_ranks if t is not None])
    return Whole(whole)


def _norm_of(shards: Sequence[tuple[float, Tensor]], norm_type: float) -> float:
    values = [(weight, abs(x)) for weight, t in shards for x in t.double().flatten().tolist()]
    if any(math.isnan(x) for _, x in values):
        return math.nan
    if math.isinf(norm_type):
        extreme = max if norm_type > 0 else min
        return extreme((x for _, x in values), default=0.0)
    if norm_type == 0:
        return sum(weight for weight, x in values if x != 0)
    if norm_type < 0 and any(x == 0 for _, x in values):
        return 0.0
    total = math.fsum(weight * x**norm_type for weight, x in values)
    return total ** (1 / norm_type) if total else 0.0
