"""DTensors: the norms of this rank's shards, and one small gather over their mesh.

A tensor counts by its placements. Shard and _StridedShard split it over the ranks of a mesh
dimension, and the norms of its shards merge. Replicate gives each rank a copy, which counts for
1 / copies. Partial holds terms of a sum, which are added first: the norm of a sum is no sum of
norms. A plain tensor beside DTensors counts as a copy on every rank of the mesh.

Whether a rank takes part in the gather, and with how many numbers, depends on the mesh and on the
length of the list, never on what the rank holds. So a rank whose shards are all empty, or that has
no gradients, neither fails nor lets the others wait.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import upcast
from .checks import by_device, identity, is_dtensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement


class ShardedList:
    """A list with DTensors on one mesh, as this rank of the mesh holds it."""

    def __init__(self, tensors: Sequence[Tensor], mesh: DeviceMesh) -> None:
        """Finish every sum that is Partial. ``mesh``: what ``mesh_of`` found."""
        self._mesh = mesh
        summed = [_without_partial(tensor) for tensor in tensors]
        self._locals = [local(tensor) for tensor in summed]
        self._shares = self._shares_of(summed)

    def total_norm(self, norm_type: float) -> Tensor:
        """Merge the norms of all tensors and ranks; only for p > 0 and inf, where all may merge.

        Returns:
            The norm in float64: 0-dim, a plain tensor, the same bits on every rank.
        """
        parts = [upcast.norm_of_nothing(norm_type, self._locals[0].device)]
        for share in sorted(set(self._shares)):
            pairs = zip(self._locals, self._shares, strict=True)
            alike = [t for t, other in pairs if other == share and t.numel() > 0]
            for group in by_device(alike).values():
                norms = upcast.part_norms(group, norm_type)
                parts += [_weigh(norm, share, norm_type) for norm in norms]
        row = upcast.merge_slices(_stack(parts), norm_type)
        return self._merge(row.reshape(1), norm_type)[0]

    def tensor_norms(self, norm_type: float) -> Tensor:
        """Merge the norms of each tensor over the ranks.

        Returns:
            Norms in float64, shape (number of tensors,): a plain tensor, the same bits on every
            rank. A tensor without elements has the ``norm_of_nothing``.
        """
        nothing = upcast.norm_of_nothing(norm_type, self._locals[0].device)
        norms: list[Tensor] = []
        for tensor, share in zip(self._locals, self._shares, strict=True):
            has_elements = tensor.numel() > 0
            norm = upcast.tensor_norm(tensor, norm_type) if has_elements else nothing
            norms.append(_weigh(norm, share, norm_type))
        return self._merge(_stack(norms), norm_type)

    def _shares_of(self, tensors: Sequence[Tensor]) -> list[float]:
        """Return what this rank's copy of each tensor counts for: 1 / copies."""
        from torch.distributed.tensor import Replicate

        shares: list[float] = []
        for tensor in tensors:
            copies = 1 if is_dtensor(tensor) else self._mesh.size()
            for dim, placement in enumerate(tensor.placements if is_dtensor(tensor) else ()):
                copies *= self._mesh.size(dim) if isinstance(placement, Replicate) else 1
            shares.append(1 / copies)
        return shares

    def _merge(self, row: Tensor, norm_type: float) -> Tensor:
        """Merge the rows of all ranks, in one order everywhere: the bits are the same."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        placements: list[Placement] = [Shard(0)] * self._mesh.ndim
        rows = DTensor.from_local(row.unsqueeze(0), self._mesh, placements, run_check=False)
        # One dimension at a time: torch warns of several at once, whose sums might depend on the
        # rank. Nothing is summed here.
        for dim in reversed(range(self._mesh.ndim)):
            placements[dim] = Replicate()
            rows = rows.redistribute(placements=placements)
        return upcast.merge_slices(rows.to_local(), norm_type)


def mesh_of(tensors: Sequence[Tensor]) -> DeviceMesh | None:
    """Return the mesh of the DTensors among ``tensors``; None without any.

    Raises:
        RuntimeError: the DTensors lie on several meshes, or have a placement of an unknown class.
            Every rank raises it, and none has communicated yet.
    """
    dtensors = list(filter(is_dtensor, tensors))
    if not dtensors:
        return None
    _check_placements(dtensors)
    mesh = dtensors[0].device_mesh
    for tensor in dtensors:
        if tensor.device_mesh is not mesh and tensor.device_mesh != mesh:
            raise RuntimeError(
                f"fastclip: DTensors must all be on one mesh (got {mesh} and {tensor.device_mesh})"
            )
    return mesh


def replicated(value: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return a value that all ranks of the mesh have as a DTensor that says so."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def is_outside(mesh: DeviceMesh) -> bool:
    """Return whether this rank is no part of the mesh: it has no group there, and no elements."""
    return mesh.get_coordinate() is None


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, and any other tensor as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a DTensor as one plain tensor, and any other tensor as it is.

    On a rank outside the DTensor's mesh, which has nothing of it, the plain tensor holds zeros.
    """
    if not is_dtensor(tensor):
        return tensor
    if is_outside(tensor.device_mesh):
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=local(tensor).device)
    return tensor.full_tensor()


def one_gradient_each(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Return a gradient for every parameter, so that the list has the same length on all ranks.

    A gradient that is None, or that the list holds already, becomes one whose elements are all on
    other ranks: it adds nothing to a norm, and there is nothing of it to write.
    """
    seen: dict[Hashable, int] = {}
    each: list[Tensor] = []
    for i, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        is_first = grad is not None and seen.setdefault(_key(grad), i) == i
        each.append(grad if grad is not None and is_first else _without_elements(parameter))
    return each


def _key(grad: Tensor) -> Hashable:
    # A graph that is being traced has no addresses.
    return id(grad) if torch.compiler.is_compiling() else identity(grad)


def _without_elements(parameter: Tensor) -> Tensor:
    if not isinstance(parameter, Tensor):  # anything with a `.grad` is a parameter
        return torch.empty(0, dtype=torch.float32, device="cpu")
    # A parameter that is frozen on every rank has no say in the dtype of the norm.
    dtype = parameter.dtype if parameter.requires_grad else torch.float32
    nothing = torch.empty(0, dtype=dtype, device=local(parameter).device)
    if not is_dtensor(parameter):
        return nothing
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        nothing,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def check_no_partial(who: str, tensor: Tensor) -> None:
    """Raise RuntimeError for a DTensor that holds terms of a sum, where the sum is needed."""
    if is_dtensor(tensor) and any(placement.is_partial() for placement in tensor.placements):
        raise RuntimeError(
            f"{who}: DTensors must not be Partial (got {tuple(tensor.placements)}): redistribute "
            "the gradient first"
        )


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


def _without_partial(tensor: Tensor) -> Tensor:
    if not is_dtensor(tensor) or not any(p.is_partial() for p in tensor.placements):
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
