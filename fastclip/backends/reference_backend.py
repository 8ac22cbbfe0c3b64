"""The backend "reference": walk, check, norm, coefficient and scale as torch operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from . import reference
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
    ) -> Tensor:
        grads = gradients_of(parameters)
        unique = reference.unique_gradients(grads)
        total_norm = reference.total_norm(unique, norm_type, foreach=foreach)
        if error_if_nonfinite:
            check_finite(total_norm, [p.grad for p in parameters])
        if unique:
            clip_coef = reference.clip_coefficient(max_norm, total_norm)
            reference.scale_(unique, clip_coef, foreach=foreach)
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
    ) -> None:
        unique = reference.unique_gradients(gradients_of(parameters))
        if unique:
            clip_coef = reference.clip_coefficient(max_norm, total_norm)
            reference.scale_(unique, clip_coef, foreach=foreach)

    @torch.no_grad()
    def clip_grad_value_(
        self, parameters: list[Tensor], clip_value: float, foreach: bool | None
    ) -> None:
        unique = reference.unique_gradients(gradients_of(parameters))
        reference.clamp_(unique, clip_value, foreach=foreach)

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
    ) -> Tensor:
        """Clip with the norms of single gradients, kept for ``parameter_norms``."""
        grads = [p.grad for p in self._parameters]
        unique = reference.unique_gradients([grad for grad in grads if grad is not None])
        reference.check_writable(unique)
        norms = reference.tensor_norms(unique, norm_type, dtype=torch.float64)
        total_norm = reference.merge_norms(unique, norms, norm_type)
        self._norms = _spread(grads, unique, norms, total_norm)
        if error_if_nonfinite:
            check_finite(total_norm, grads)
        if unique:
            reference.scale_(unique, reference.clip_coefficient(max_norm, total_norm))
        return total_norm

    def parameter_norms(self) -> Tensor:
        """Return the last call's norm per parameter, shape (number of parameters,)."""
        if self._norms is None:
            raise RuntimeError(NO_CLIP_YET)
        return self._norms.clone()


def _spread(
    grads: Sequence[Tensor | None],
    unique: Sequence[Tensor],
    norms: Sequence[Tensor],
    total_norm: Tensor,
) -> Tensor:
    """Give every parameter the norm of its gradient: shared gradients repeat, None gives 0."""
    nothing = torch.zeros((), dtype=total_norm.dtype, device=total_norm.device)
    values = [reference.whole(norm).to(nothing) for norm in norms]
    if len(unique) == sum(grad is not None for grad in grads):
        each = iter(values)
        spread = [nothing if grad is None else next(each) for grad in grads]
    else:
        norm_of = dict(zip(map(reference.identity, unique), values, strict=True))
        spread = [nothing if grad is None else norm_of[reference.identity(grad)] for grad in grads]
    return torch.stack(spread) if spread else nothing.new_zeros(0)


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Read every ``.grad`` once, leaving out those that are None."""
    # No `:=` in the comprehension: torch.compile cannot trace the variable that it makes.
    grads = [p.grad for p in parameters]
    return [grad for grad in grads if grad is not None]


def check_finite(total_norm: Tensor, sources: Sequence[Tensor | None]) -> None:
    """Raise ``NonFiniteError`` when ``total_norm`` is inf or nan. Synchronises with its device."""
    if not bool(torch.isfinite(total_norm)):
        _name_nonfinite(sources)


# Outside the graph: torch.compile of torch 2.10 cannot raise our exception.
@_disable_dynamo
def _name_nonfinite(sources: Sequence[Tensor | None]) -> NoReturn:
    held = [(position, t) for position, t in enumerate(sources) if t is not None]
    bad = reference.nonfinite_positions([t for _, t in held])
    raise NonFiniteError([held[i][0] for i in bad])
