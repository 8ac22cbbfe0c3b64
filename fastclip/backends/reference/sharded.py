"""DTensors: the norms of this rank's shards, and one small gather over their mesh.

A tensor counts by its placements. Shard and _StridedShard split it over the ranks of a mesh
dimension, and the norms of its shards merge. Replicate gives each rank a copy, which counts for
1 / copies. Partial holds terms of a sum, which are added first: the norm of a sum is no sum of
norms. A plain tensor beside DTensors counts as a copy on every rank of the mesh.

Whether a rank takes part in the gather, and with how many numbers, depends on the parameters, never
on what the rank holds of them. So a rank whose shards are all empty, or that has no gradients,
neither fails nor makes the others wait. The exception is a Partial gradient, which every rank of
its mesh must have: a rank without it cannot know that the others add it up.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..tensors import by_device, has_dtensors, identity, is_dtensor, may_have_gradient
from . import upcast
from .finite import flag_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement


class Merged(NamedTuple):
    """What the ranks of a mesh found together; it is the same on each.

    Attributes:
        norms: in float64, a plain tensor.
        flag: whether ``found_inf`` is set on any rank, 0-dim; None unless asked for.
    """

    norms: Tensor
    flag: Tensor | None


class ShardedList:
    """A list that the ranks of a mesh measure together, as this rank of the mesh holds it.

    Attributes:
        mesh: the mesh of the DTensors.
        slots: each a tensor, or None if this rank has nothing to add; every rank has the same
            number.
        places: for each slot, the position of its tensor or parameter in the caller's list.
    """

    def __init__(
        self, mesh: DeviceMesh, slots: Sequence[Tensor | None], places: Sequence[int]
    ) -> None:
        self.mesh = mesh
        self.slots = slots
        self.places = places

    def total_norm(self, norm_type: float, found_inf: Tensor | None = None) -> Merged:
        """Merge the norms of all slots and ranks; only for p > 0 and inf, whose norms merge.

        Args:
            norm_type: the p of the p-norm.
            found_inf: as in ``ClipRequest``; the flag is merged as well.

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
        flag = None
        if found_inf is not None:
            flag = flag_of([tensor for tensor, _ in held], found_inf, row, norm_type)
        merged = self._merge(row.reshape(1), norm_type, flag)
        return Merged(merged.norms[0], merged.flag)

    def slot_norms(self, norm_type: float, found_inf: Tensor | None = None) -> Merged:
        """Merge the norm of each slot over the ranks.

        Args:
            norm_type, found_inf: as for ``total_norm``.

        Returns:
            Norms in float64, shape (number of slots,): a plain tensor, the same bits on every rank.
            A slot without elements on any rank has the ``norm_of_nothing``.
        """
        nothing = self._nothing(norm_type)
        norms: list[Tensor] = [nothing]  # it is first, so that all are stacked on the mesh's device
        held: list[Tensor] = []
        for local in self._locals():
            if local is None:
                norms.append(nothing)
            else:
                tensor, share = local
                held.append(tensor)
                norms.append(_weigh(upcast.tensor_norm(tensor, norm_type), share, norm_type))
        row = _stack(norms)[1:]
        flag = None
        if found_inf is not None:
            flag = flag_of(held, found_inf, upcast.merge_slices(row, norm_type), norm_type)
        return self._merge(row, norm_type, flag)

    def flag(self, found_inf: Tensor) -> Tensor:
        """Return whether any rank has ``found_inf`` set, or an element not finite: 0-dim bool."""
        held = [local[0] for local in self._locals() if local is not None]
        flag = flag_of(held, found_inf).to(self.mesh.device_type, torch.float32)
        return self._gather(flag.reshape(1)).any()

    def _locals(self) -> list[tuple[Tensor, float] | None]:
        """Return this rank's elements of each slot with the share that they count for.

        None stands for no elements. Partial tensors are summed over the ranks here.
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

    def _merge(self, row: Tensor, norm_type: float, flag: Tensor | None) -> Merged:
        """Merge the rows and the flags of all ranks, in one order, so that all get the same bits.

        The flags travel with the norms, so that every rank learns what any rank found.
        """
        if flag is None:
            return Merged(upcast.merge_slices(self._gather(row), norm_type), None)
        gathered = self._gather(torch.cat([row, flag.to(row).reshape(1)]))
        norms = gathered[:, :-1].contiguous()
        return Merged(upcast.merge_slices(norms, norm_type), gathered[:, -1].any())

    def _gather(self, row: Tensor) -> Tensor:
        """Return the rows of all ranks, shape (number of ranks, length of a row), plain."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        placements: list[Placement] = [Shard(0)] * self.mesh.ndim
        rows = DTensor.from_local(row.unsqueeze(0), self.mesh, placements, run_check=False)
        # This is done one dimension at a time. torch warns if several are redistributed at once,
        # because sums might then depend on the rank; nothing is summed here.
        for dim in reversed(range(self.mesh.ndim)):
            placements[dim] = Replicate()
            rows = rows.redistribute(placements=placements)
        return rows.to_local()


def replicated(value: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return a value that all ranks of a mesh have as a replicated DTensor."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def list_of_tensors(
    tensors: Sequence[Tensor | None], *, counts_once: bool = False
) -> ShardedList | None:
    """Return tensors as the ranks of their mesh hold them; None without DTensors.

    Every rank must pass the same number; None stands for one that counts for nothing.

    Args:
        tensors: the tensors.
        counts_once: whether a tensor that is given again adds nothing.

    Raises:
        RuntimeError: the DTensors lie on several meshes, or have a placement of an unknown class.
            Every rank raises it, and none has communicated yet.
    """
    mesh = _mesh_of(tensors)
    if mesh is None:
        return None
    seen: dict[Hashable, int] = {}
    slots: list[Tensor | None] = []
    places: list[int] = []
    for i, tensor in enumerate(tensors):
        if tensor is not None:
            is_first = not counts_once or seen.setdefault(identity(tensor), i) == i
            slots.append(tensor if is_first else None)
            places.append(i)
    return ShardedList(mesh, slots, places)


def list_of_gradients(
    parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> ShardedList | None:
    """Return gradients as the ranks of their mesh hold them; None if there is no mesh.

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
            slots.append(grad if seen.setdefault(identity(grad), i) == i else None)
            places.append(i)
        elif may_have_gradient(parameter) and not _is_elsewhere(parameter, mesh):
            slots.append(None)
            places.append(i)
    return ShardedList(mesh, slots, places)


def without_outsiders(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Replace DTensors on meshes without this rank by None: it has no element of them."""
    return [None if is_dtensor(t) and _is_outside(t.device_mesh) else t for t in tensors]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, and any other tensor as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a DTensor as one plain tensor, and any other tensor as it is.

    A rank outside the DTensor's mesh has no part of it and gets zeros.
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

    # Placements are recognised by class: in torch 2.11 to 2.13 _StridedShard is no Shard, and its
    # is_shard() is False.
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
