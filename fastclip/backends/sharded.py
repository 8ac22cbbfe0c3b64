"""DTensors: the norms of this rank's shards, and one small gather for each way of sharding."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import TypeIs

from .upcast import merge_slices, norm_of_nothing

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement


@dataclass
class Shards:
    """This rank's shards of DTensors that are sharded over the same dimensions of one mesh.

    Attributes:
        positions: where their DTensors are in the list they came from.
        tensors: the shards, plain tensors, some of them perhaps empty.
        mesh: the mesh of the DTensors.
        is_sharded: for each dimension of the mesh, whether its ranks hold different elements.
    """

    positions: list[int]
    tensors: list[Tensor]
    mesh: DeviceMesh
    is_sharded: tuple[bool, ...]

    def merge(self, norms: Sequence[Tensor | None], norm_type: float) -> list[Tensor]:
        """Merge norms over the ranks: one gather, the same bits on every rank.

        Args:
            norms: 0-dim norms of this rank, as many on every rank; None for empty shards.
            norm_type: the p of the p-norm.

        Returns:
            The norms over all ranks, as replicated DTensors on the mesh.
        """
        from torch.distributed.tensor import DTensor, Replicate, Shard

        nothing = norm_of_nothing(norm_type, self.tensors[0].device)
        row = torch.stack([nothing if norm is None else norm for norm in norms]).unsqueeze(0)
        placements: list[Placement] = [
            Shard(0) if sharded else Replicate() for sharded in self.is_sharded
        ]
        rows = DTensor.from_local(row, self.mesh, placements, run_check=False).full_tensor()
        replicated = [Replicate()] * self.mesh.ndim
        return [
            DTensor.from_local(norm, self.mesh, replicated, run_check=False)
            for norm in merge_slices(rows, norm_type).unbind(0)
        ]


def is_dtensor(tensor: Tensor) -> TypeIs[DTensor]:
    """Say whether ``tensor`` is a DTensor, without importing what nobody has used."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, and any other tensor as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a DTensor as one plain tensor, and any other tensor as it is."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def by_sharding(tensors: Sequence[Tensor]) -> list[Shards]:
    """Group the DTensors among ``tensors`` by their mesh and the dimensions they are sharded over.

    Sums that are still pending over ranks are done first: the norm of a sum is no sum of norms.
    """
    groups: dict[tuple[DeviceMesh, tuple[bool, ...]], Shards] = {}
    for position, tensor in enumerate(tensors):
        if is_dtensor(tensor):
            whole = _without_partial(tensor)
            is_sharded = tuple(placement.is_shard() for placement in whole.placements)
            mesh = whole.device_mesh
            group = groups.setdefault((mesh, is_sharded), Shards([], [], mesh, is_sharded))
            group.positions.append(position)
            group.tensors.append(whole.to_local())
    return list(groups.values())


def _without_partial(dtensor: DTensor) -> DTensor:
    from torch.distributed.tensor import Replicate

    if not any(placement.is_partial() for placement in dtensor.placements):
        return dtensor
    placements: list[Placement] = [
        Replicate() if placement.is_partial() else placement for placement in dtensor.placements
    ]
    return dtensor.redistribute(placements=placements)
