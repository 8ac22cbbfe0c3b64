"""The backend "reference": walk, check, norm, coefficient and scale as torch operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from . import checks, reference, sharded
from .base import NO_CLIP_YET, NonFiniteError


class ReferenceBackend:
    """Run every operation with torch alone, on any device and dtype that torch has."""

    name = "reference"

    def unavailable_reasons(self, device_type: str) -> list[str]:
        is_missing = device_type == "cuda" and not torch.cuda.is_available()
        return ["torch sees no GPU"] if is_missing else []

    @torch.no_grad()
    def clip_grad_norm_(
        self,
        parameters: list[Tensor],
        max_norm: float | Tensor,
        norm_type: float,
        error_if_nonfinite: bool,
        foreach: bool | None,
    ) -> Tensor | None:
        found = found_gradients(parameters)
        if not found.distinct and found.sharded_list is None:
            return None
        total_norm = reference.total_norm(
            found.distinct, norm_type, foreach=foreach, sharded_list=found.sharded_list
        )
        if error_if_nonfinite:
            check_finite(total_norm, found.grads, found.sharded_list)
        clip_coef = reference.clip_coefficient(max_norm, total_norm)
        reference.scale_(found.distinct, clip_coef, foreach=foreach)
        return total_norm

    @torch.no_grad()
    def get_total_norm(
        self,
        tensors: list[Tensor],
        norm_type: float,
        error_if_nonfinite: bool,
        foreach: bool | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        sources: Sequence[Tensor | None] = tensors
        here = tensors
        if checks.has_dtensors(tensors):
            sources = sharded.without_outsiders(tensors)
            here = [t for t in sources if t is not None]
        total_norm = reference.total_norm(here, norm_type, foreach=foreach, dtype=dtype)
        if error_if_nonfinite:
            check_finite(total_norm, sources, None)
        return total_norm

    @torch.no_grad()
    def clip_grads_with_norm_(
        self,
        parameters: list[Tensor],
        max_norm: float | Tensor,
        total_norm: Tensor,
        foreach: bool | None,
    ) -> bool:
        unique = _unique_gradients_of(parameters)
        # Also without gradients: another rank may wait for this one's part of a DTensor.
        total_norm = reference.whole(total_norm)
        if unique:
            clip_coef = reference.clip_coefficient(max_norm, total_norm)
            reference.scale_(unique, clip_coef, foreach=foreach)
        return len(unique) > 0

    @torch.no_grad()
    def clip_grad_value_(
        self, parameters: list[Tensor], clip_value: float, foreach: bool | None
    ) -> bool:
        unique = _unique_gradients_of(parameters)
        reference.clamp_(unique, clip_value, foreach=foreach)
        return len(unique) > 0

    def prepare(self, parameters: list[Tensor]) -> ReferenceParameters:
        return ReferenceParameters(parameters)


class ReferenceParameters:
    """A parameter set and the norms that the last clip found."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters
        self._norms: Tensor | None = None

    @torch.no_grad()
    def clip_grad_norm_(
        self, max_norm: float | Tensor, norm_type: float, error_if_nonfinite: bool
    ) -> Tensor | None:
        """Clip with the norms of single gradients, kept for ``parameter_norms``."""
        found = found_gradients(self._parameters)
        distinct, sharded_list = found.distinct, found.sharded_list
        if not distinct and sharded_list is None:
            self._norms = torch.zeros(len(found.grads), dtype=torch.float32, device="cpu")
            return None
        reference.check_writable(distinct)
        if sharded_list is None:
            norms = reference.tensor_norms(distinct, norm_type, dtype=torch.float64)
            total_norm = reference.merge_norms(distinct, norms, norm_type)
            self._norms = _spread(found, distinct, norms, total_norm)
        else:
            merged = sharded_list.slot_norms(norm_type)
            total_norm = reference.merge_slots(merged, distinct, norm_type, sharded_list)
            self._norms = _spread(found, sharded_list.slots, merged.unbind(0), total_norm)
        if error_if_nonfinite:
            check_finite(total_norm, found.grads, sharded_list)
        reference.scale_(distinct, reference.clip_coefficient(max_norm, total_norm))
        return total_norm

    def parameter_norms(self) -> Tensor:
        """Return the last call's norm per parameter, shape (number of parameters,)."""
        if self._norms is None:
            raise RuntimeError(NO_CLIP_YET)
        return self._norms.clone()


class FoundGradients(NamedTuple):
    """The gradients of a call.

    Attributes:
        grads: one for each parameter; None where there is none on this rank.
        distinct: each of them once.
        sharded_list: them as the ranks of a mesh hold them, if ranks take the norm together.
    """

    grads: Sequence[Tensor | None]
    distinct: Sequence[Tensor]
    sharded_list: sharded.ShardedList | None


def found_gradients(parameters: Sequence[Tensor]) -> FoundGradients:
    """Read every ``.grad`` once."""
    # No `:=` in a comprehension: torch.compile cannot trace the variable that it makes.
    grads: list[Tensor | None] = [p.grad for p in parameters]
    sharded_list = None
    if checks.is_sharded(parameters, grads):
        grads = sharded.without_outsiders(grads)
        sharded_list = sharded.list_of_gradients(parameters, grads)
    distinct = reference.unique_gradients([grad for grad in grads if grad is not None])
    return FoundGradients(grads, distinct, sharded_list)


def _unique_gradients_of(parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    grads = [p.grad for p in parameters]
    return reference.unique_gradients([grad for grad in grads if grad is not None])


def _spread(
    found: FoundGradients,
    measured: Sequence[Tensor | None],
    norms: Sequence[Tensor],
    total_norm: Tensor,
) -> Tensor:
    """Give every parameter the norm of its gradient: shared gradients repeat, None gives 0.

    Args:
        found: the gradients.
        measured: what the norms are of: the distinct gradients, or the slots of a sharded list.
        norms: one for each of these.
        total_norm: for dtype and device of the result.
    """
    nothing = torch.zeros((), dtype=total_norm.dtype, device=total_norm.device)
    values = [norm.to(nothing) for norm in norms]
    spread = [nothing] * len(found.grads)
    if found.sharded_list is not None:
        for place, value in zip(found.sharded_list.places, values, strict=True):
            spread[place] = value
    held = [i for i, grad in enumerate(found.grads) if grad is not None]
    if found.sharded_list is None and len(held) == len(measured):
        for i, value in zip(held, values, strict=True):
            spread[i] = value
        return torch.stack(spread) if spread else nothing.new_zeros(0)
    norm_of = {
        reference.identity(tensor): value
        for tensor, value in zip(measured, values, strict=True)
        if tensor is not None
    }
    for i in held:
        grad = found.grads[i]
        if grad is not None:
            spread[i] = norm_of[reference.identity(grad)]
    return torch.stack(spread)


def check_finite(
    total_norm: Tensor,
    sources: Sequence[Tensor | None],
    sharded_list: sharded.ShardedList | None,
) -> None:
    """Raise ``NonFiniteError`` when ``total_norm`` is inf or nan. Synchronises with its device."""
    if not bool(torch.isfinite(reference.whole(total_norm))):
        _name_nonfinite(sources, sharded_list)


# Outside the graph: torch.compile of torch 2.10 cannot raise our exception.
@_disable_dynamo
def _name_nonfinite(
    sources: Sequence[Tensor | None], sharded_list: sharded.ShardedList | None
) -> NoReturn:
    raise NonFiniteError(reference.nonfinite_positions(sources, sharded_list))
