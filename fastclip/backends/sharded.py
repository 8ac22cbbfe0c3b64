"""DTensors: the norms of this rank's shards, and one small gather over their mesh.

A tensor counts by its placements. Shard and _StridedShard split it over the ranks of a mesh
dimension, and the norms of its shards merge. Replicate gives each rank a copy, which counts for
1 / copies. Partial holds terms of a sum, which are added first: the norm of a sum is no sum of
norms. A plain tensor beside DTensors counts as a copy on every rank of the mesh.

Whether a rank takes part in the gather, and with how many numbers, depends on the parameters, never
on what the rank holds of them. So a rank whose shards are all empty, or that has no gradients,
neither fails nor lets the others wait. A Partial gradient alone must be there on every rank of its
mesh: nothing tells a rank without it that the others add it up.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import upcast
from .checks import by_device, has_dtensors, identity, is_dtensor, may_have_gradient

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement


class ShardedList:
    """A list that the ranks of a mesh measure together, as this rank of the mesh holds it.

    Attributes:
        mesh: the mesh of the DTensors.
        slots: as many on every rank: a tensor, or None where this rank has nothing to add.
        places: for each slot, the position of its tensor or parameter in the caller's list.
    """

    def __init__(
        self, mesh: DeviceMesh, slots: Sequence[Tensor | None], places: Sequence[int]
    ) -> None:
        self.mesh = mesh
        self.slots = slots
        self.places = places

    def total_norm(self, norm_type: float) -> Tensor:
        """Merge the norms of all slots and ranks; only for p > 0 and inf, where all may merge.

        Returns:
            The norm in float64: 0-dim, a plain tensor, the same bits on every rank.
        """
        held = [local for local in self._locals() if local is not None]
        parts = [self._nothing(norm_type)]
        for share in sorted({share for _, share in held}):
            alike = [tensor for tensor, other in held if other == share]
            for group in by_device(alike).values():
                norms = upcast.part_norms(group, norm_type)
                parts += [_weigh(norm, share, norm_type) for norm in norms]
        row = upcast.merge_slices(_stack(parts), norm_type)
        return self._merge(row.reshape(1), norm_type)[0]

    def slot_norms(self, norm_type: float) -> Tensor:
        """Merge the norm of each slot over the ranks.

        Returns:
            Norms in float64, shape (number of slots,): a plain tensor, the same bits on every rank.
            A slot without elements on any rank has the ``norm_of_nothing``.
        """
        nothing = self._nothing(norm_type)
        norms: list[Tensor] = [nothing]  # first, so that all are stacked on the mesh's device
        for local in self._locals():
            if local is None:
                norms.append(nothing)
            else:
                tensor, share = local
                norms.append(_weigh(upcast.tensor_norm(tensor, norm_type), share, norm_type))
        return self._merge(_stack(norms)[1:], norm_type)

    def replicated(self, value: Tensor) -> Tensor:
        """Return a value that all ranks of the mesh have as a DTensor that says so."""
        from torch.distributed.tensor import DTensor, Replicate

        placements = [Replicate()] * self.mesh.ndim
        return DTensor.from_local(value, self.mesh, placements, run_check=False)

    def _locals(self) -> list[tuple[Tensor, float] | None]:
        """Return this rank's elements of each slot with the share that they count for.

        None stands for no elements. What is Partial is summed over the ranks here.
        """
        from torch.distributed.tensor import Replicate

        held: list[tuple[Tensor, float] | None] = []
        for slot in self.slots:
            copies = self.mesh.size()
            tensor = slot
            if is_dtensor(slot):
                whole = _without_partial(slot)
                copies = 1
                for dim, placement in enumerate(whole.placements):
                    copies *= self.mesh.size(dim) if isinstance(placement, Replicate) else 1
                tensor = whole.to_local()
            has_elements = tensor is not None and tensor.numel() > 0
            held.append((tensor, 1 / copies) if tensor is not None and has_elements else None)
        return held

    def _nothing(self, norm_type: float) -> Tensor:
        return upcast.norm_of_nothing(norm_type, torch.device(self.mesh.device_type))

    def _merge(self, row: Tensor, norm_type: float) -> Tensor:
        """Merge the rows of all ranks, in one order everywhere: the bits are the same."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        placements: list[Placement] = [Shard(0)] * self.mesh.ndim
        rows = DTensor.from_local(row.unsqueeze(0), self.mesh, placements, run_check=False)
        # One dimension at a time: torch warns of several at once, whose sums might depend on the
        # rank. Nothing is summed here.
        for dim in reversed(range(self.mesh.ndim)):
            placements[dim] = Replicate()
            rows = rows.redistribute(placements=placements)
        return upcast.merge_slices(rows.to_local(), norm_type)


def list_of_tensors(tensors: Sequence[Tensor]) -> ShardedList | None:
    """Return tensors as the ranks of their mesh hold them; None without DTensors.

    Every rank must have as many of them.

    Raises:
        RuntimeError: the DTensors lie on several meshes, or have a placement of an unknown class.
            Every rank raises it, and none has communicated yet.
    """
    mesh = _mesh_of(tensors)
    return None if mesh is None else ShardedList(mesh, tensors, range(len(tensors)))


def list_of_gradients(
    parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> ShardedList | None:
    """Return gradients as the ranks of their mesh hold them; None where no mesh is concerned.

    There is a slot for each parameter that has a gradient or may have one on another rank. It is
    None where this rank has no gradient, and for a gradient that an earlier slot holds.

    Raises:
        RuntimeError: as ``list_of_tensors``.
    """
    mesh = _mesh_of(grads)
    if mesh is None:
        meshes = {p.device_mesh for p in parameters if is_dtensor(p) and may_have_gradient(p)}
        here = [mesh for mesh in meshes if not _is_outside(mesh)]
        if len(here) != 1:
            return None
        [mesh] = here
    seen: dict[Hashable, int] = {}
    slots: list[Tensor | None] = []
    places: list[int] = []
    for i, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        if grad is not None:
            slots.append(grad if seen.setdefault(_key(grad), i) == i else None)
            places.append(i)
        elif may_have_gradient(parameter) and not _is_elsewhere(parameter, mesh):
            slots.append(None)
            places.append(i)
    return ShardedList(mesh, slots, places)


def without_outsiders(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Put None for DTensors on meshes that this rank is no part of: it has no element of them."""
    return [None if is_dtensor(t) and _is_outside(t.device_mesh) else t for t in tensors]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, and any other tensor as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a DTensor as one plain tensor, and any other tensor as it is.

    On a rank outside the DTensor's mesh, which has nothing of it, the plain tensor holds zeros.
    """
    if not is_dtensor(tensor):
        return tensor
    if _is_outside(tensor.device_mesh):
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.to_local().device)
    return tensor.full_tensor()


def check_no_partial(who: str, tensor: Tensor) -> None:
    """Raise RuntimeError for a DTensor that holds terms of a sum, where the sum is needed."""
    if is_dtensor(tensor) and any(placement.is_partial() for placement in tensor.placements):
        raise RuntimeError(
            f"{who}: DTensors must not be Partial (got {tuple(tensor.placements)}): redistribute "
            "the gradient first"
        )


def _mesh_of(tensors: Sequence[Tensor | None]) -> DeviceMesh | None:
    if not has_dtensors(tensors):
        return None
    dtensors = list(filter(is_dtensor, tensors))
    _check_placements(dtensors)
    mesh = dtensors[0].device_mesh
    for tensor in dtensors:
        if tensor.device_mesh is not mesh and tensor.device_mesh != mesh:
            raise RuntimeError(
                f"fastclip: DTensors must all be on one mesh (got {mesh} and {tensor.device_mesh})"
            )
    return mesh


def _check_placements(dtensors: Sequence[DTensor]) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    # By class: _StridedShard is no Shard, and its is_shard() is False, in torch 2.11 to 2.13.
    known = (Replicate, Shard, _StridedShard, Partial)
    for tensor in dtensors:
        for placement in tensor.placements:
            if not isinstance(placement, known):
                raise RuntimeError(
                    "fastclip: a DTensor's placements must be Replicate, Shard, _StridedShard or "
                    f"Partial (got {type(placement).__name__})"
                )


def _is_outside(mesh: DeviceMesh) -> bool:
    return mesh.get_coordinate() is None


def _is_elsewhere(parameter: Tensor, mesh: DeviceMesh) -> bool:
    """Return whether a parameter is a DTensor on another mesh."""
    return is_dtensor(parameter) and parameter.device_mesh != mesh


def _key(grad: Tensor) -> Hashable:
    # A graph that is being traced has no addresses.
    return id(grad) if torch.compiler.is_compiling() else identity(grad)


def _without_partial(tensor: DTensor) -> DTensor:
    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    from torch.distributed.tensor import Replicate

    placements: list[Placement] = [
        Replicate() if placement.is_partial() else placement for placement in tensor.placements
    ]
    return tensor.redistribute(placements=placements)


def _stack(norms: Sequence[Tensor]) -> Tensor:
    """Stack norms that may lie on several devices, on the first one's."""
    return torch.stack([norm.to(norms[0].device) for norm in norms])


def _weigh(norm: Tensor, share: float, norm_type: float) -> Tensor:
    """Scale a norm so that merging ``1 / share`` copies of it gives the norm itself."""
    if share == 1:
        return norm
    # For p = 0 the norm is a count. For inf the factor is 1: a maximum of copies is that of one.
    return norm * (share if norm_type == 0 else share ** (1 / norm_type))
