"""The backend "reference": walk, check, norm, coefficient and scale as torch operations."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NoReturn

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
        grads = [p.grad for p in parameters]
        distinct = distinct_gradients(parameters, grads)
        if not distinct:
            return None
        total_norm = reference.total_norm(distinct, norm_type, foreach=foreach)
        if error_if_nonfinite:
            check_finite(total_norm, sources_of(grads, distinct))
        _clip_(distinct, max_norm, total_norm, foreach)
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
        total_norm = reference.total_norm(tensors, norm_type, foreach=foreach, dtype=dtype)
        if error_if_nonfinite:
            check_finite(total_norm, tensors)
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
        grads = [p.grad for p in self._parameters]
        distinct = distinct_gradients(self._parameters, grads)
        if not distinct:
            self._norms = torch.zeros(len(grads), dtype=torch.float32, device="cpu")
            return None
        reference.check_writable(distinct)
        norms = reference.tensor_norms(distinct, norm_type, dtype=torch.float64)
        total_norm = reference.merge_norms(distinct, norms, norm_type)
        self._norms = _spread(grads, distinct, norms, total_norm)
        if error_if_nonfinite:
            check_finite(total_norm, sources_of(grads, distinct))
        _clip_(distinct, max_norm, total_norm, None)
        return total_norm

    def parameter_norms(self) -> Tensor:
        """Return the last call's norm per parameter, shape (number of parameters,)."""
        if self._norms is None:
            raise RuntimeError(NO_CLIP_YET)
        return self._norms.clone()


def distinct_gradients(
    parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> Sequence[Tensor]:
    """Return each gradient once, without those that are None.

    Where DTensors are among them there is one for each parameter, as ``one_gradient_each`` says.
    """
    if checks.is_sharded(parameters, grads):
        return sharded.one_gradient_each(parameters, grads)
    return reference.unique_gradients([grad for grad in grads if grad is not None])


def sources_of(
    grads: Sequence[Tensor | None], distinct: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Return gradients whose positions are those of the parameters."""
    return distinct if len(distinct) == len(grads) else grads


def _unique_gradients_of(parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    # No `:=` in the comprehension: torch.compile cannot trace the variable that it makes.
    grads = [p.grad for p in parameters]
    return reference.unique_gradients([grad for grad in grads if grad is not None])


def _clip_(
    distinct: Sequence[Tensor], max_norm: float | Tensor, total_norm: Tensor, foreach: bool | None
) -> None:
    # A rank outside the mesh does not know the norm.
    if not reference.is_outside(distinct):
        clip_coef = reference.clip_coefficient(max_norm, total_norm)
        reference.scale_(distinct, clip_coef, foreach=foreach)


def _spread(
    grads: Sequence[Tensor | None],
    distinct: Sequence[Tensor],
    norms: Sequence[Tensor],
    total_norm: Tensor,
) -> Tensor:
    """Give every parameter the norm of its gradient: shared gradients repeat, None gives 0.

    With DTensors, None on this rank gives the norm of what other ranks have.
    """
    nothing = torch.zeros((), dtype=total_norm.dtype, device=total_norm.device)
    values = [norm.to(nothing) for norm in norms]
    held = [grad for grad in grads if grad is not None]
    if len(distinct) == len(held) and all(map(operator.is_, distinct, held)):
        each = iter(values)
        spread = [nothing if grad is None else next(each) for grad in grads]
    else:
        absent = values if len(values) == len(grads) else [nothing] * len(grads)
        norm_of = dict(zip(map(reference.identity, distinct), values, strict=True))
        spread = [
            absent[i] if grad is None else norm_of[reference.identity(grad)]
            for i, grad in enumerate(grads)
        ]
    return torch.stack(spread)


def check_finite(total_norm: Tensor, sources: Sequence[Tensor | None]) -> None:
    """Raise ``NonFiniteError`` when ``total_norm`` is inf or nan. Synchronises with its device."""
    if not bool(torch.isfinite(reference.whole(total_norm))):
        _name_nonfinite(sources)


# Outside the graph: torch.compile of torch 2.10 cannot raise our exception.
@_disable_dynamo
def _name_nonfinite(sources: Sequence[Tensor | None]) -> NoReturn:
    held = [(position, t) for position, t in enumerate(sources) if t is not None]
    bad = reference.nonfinite_positions([t for _, t in held])
    raise NonFiniteError([held[i][0] for i in bad])
