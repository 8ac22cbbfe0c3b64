"""The gradients of a list's sources, as one operation finds them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..request import Kind
from ..tensors import as_plain, by_device, has_dtensors, identity, is_sharded, unique_gradients
from . import sharded
from .sharded import ShardedList


class FoundGradients(NamedTuple):
    """The gradients of an operation.

    Attributes:
        grads: one for each source; None where there is none on this rank.
        distinct: those that count, in order: each once, except that a list that is only read counts
            each as often as it is given.
        sharded_list: the gradients as the ranks of a mesh hold them, if ranks take the norm
            together.
    """

    grads: Sequence[Tensor | None]
    distinct: Sequence[Tensor]
    sharded_list: ShardedList | None

    def is_empty(self) -> bool:
        """Return whether no rank has a gradient of this list, as far as this rank can tell."""
        return not self.distinct and self.sharded_list is None

    def parts(self) -> list[list[int | None]]:
        """Return how ``Sums`` lays the gradients out: for each device, positions in ``distinct``.

        A sharded list has one part, with a position or None for each slot.
        """
        if self.sharded_list is not None:
            present = iter(range(len(self.distinct)))
            slots = self.sharded_list.slots
            return [[None if slot is None else next(present) for slot in slots]]
        parts: dict[torch.device, list[int | None]] = {}
        for position, grad in enumerate(self.distinct):
            parts.setdefault(grad.device, []).append(position)
        return list(parts.values())

    def places(self) -> Tensor | None:
        """Return where the gradient of each source stands in ``parts``: see ``Sums.places``."""
        if self.sharded_list is None:
            if len(self.distinct) == len(self.grads) and len(by_device(self.distinct)) == 1:
                return None
            places = self._places()
        else:
            places = [-1] * len(self.grads)
            for slot, source in enumerate(self.sharded_list.places):
                places[source] = slot
            _join_repeated(self.grads, places)
        if places == list(range(len(places))):
            return None
        return torch.tensor(places, dtype=torch.int64, device="cpu")

    def _places(self) -> list[int]:
        place_of = [0] * len(self.distinct)
        positions = [position for part in self.parts() for position in part if position is not None]
        for place, position in enumerate(positions):
            place_of[position] = place
        places = [-1] * len(self.grads)
        present = [source for source, grad in enumerate(self.grads) if grad is not None]
        if len(present) == len(self.distinct):
            for source, place in zip(present, place_of, strict=True):
                places[source] = place
            return places
        keys = map(identity, self.distinct)
        place_by_key = dict(zip(keys, place_of, strict=True))
        for source, grad in enumerate(self.grads):
            if grad is not None:
                places[source] = place_by_key[identity(grad)]
        return places


def read(sources: Sequence[Tensor], kind: Kind, *, takes_norm: bool) -> FoundGradients:
    """Read every ``.grad`` once.

    Args:
        sources: as ``Backend.gather`` takes them.
        kind: what they are.
        takes_norm: whether the ranks of a mesh work together, as they do for a norm.
    """
    # This avoids `:=` in a comprehension: torch.compile cannot trace the variable that it makes.
    is_parameters = kind == Kind.PARAMETERS
    grads: Sequence[Tensor | None] = [p.grad for p in sources] if is_parameters else sources
    return found_in(sources, grads, kind, takes_norm=takes_norm)


def found_in(
    sources: Sequence[Tensor], grads: Sequence[Tensor | None], kind: Kind, *, takes_norm: bool
) -> FoundGradients:
    """Return what an operation finds in gradients that have been read; see ``read``."""
    is_parameters = kind == Kind.PARAMETERS
    sharded_list = None
    present: Sequence[Tensor]
    if takes_norm and (is_sharded(sources, grads) if is_parameters else has_dtensors(grads)):
        grads = sharded.without_outsiders(grads)
        if is_parameters:
            sharded_list = sharded.list_of_gradients(sources, grads)
        else:
            sharded_list = sharded.list_of_tensors(grads, counts_once=kind == Kind.TENSORS)
        present = _without_none(grads)
    else:
        # Tensors are taken as they are given: torch itself raises for a None among them.
        present = _without_none(grads) if is_parameters else sources
    distinct = as_plain(present) if kind == Kind.READ_ONLY else unique_gradients(present)
    return FoundGradients(grads, distinct, sharded_list)


def _without_none(grads: Sequence[Tensor | None]) -> list[Tensor]:
    return [grad for grad in grads if grad is not None]


def _join_repeated(grads: Sequence[Tensor | None], places: list[int]) -> None:
    """Let sources that share a gradient have the place of the first of them."""
    seen: dict[Hashable, int] = {}
    for source, grad in enumerate(grads):
        if grad is not None:
            places[source] = seen.setdefault(identity(grad), places[source])
