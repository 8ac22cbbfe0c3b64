"""What a pass over gradients leaves behind: their norms, and the sums to which these belong."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..request import Sums, is_capturing
from ..tensors import by_device
from .norms import Form, Measured


class ReferenceSums(Sums):
    """``Sums`` that keep the norm, because the root of a power may differ from it by a bit.

    For p = 0 the norm of all gradients is the norm of their norms, so ``total`` counts the
    gradients that do not consist of zeros.

    Attributes:
        norm: the norm to which ``total`` belongs, float64; None if the total was replaced.
        form: the form in which a norm of the list is returned; None without gradients.
    """

    __slots__ = ("form", "norm")

    norm: Tensor | None
    form: Form | None

    def with_total(self, total: Tensor) -> ReferenceSums:
        """Return the same sums with another total, whose norm is its root."""
        sums = ReferenceSums(
            self.parts, total, self.places, self.norm_type, self.dtype, self._norms
        )
        sums.norm, sums.form = None, self.form
        return sums


def sums_of(
    measured: Measured, places: Tensor | None, norm_type: float, form: Form
) -> ReferenceSums:
    """Return the sums to which the norms of single gradients belong.

    Args:
        measured: what ``measure(..., keeps_norms=True)`` found.
        places: as in ``Sums``.
        norm_type: the p of the p-norm.
        form: the form in which the norm is returned.
    """
    if isinstance(measured.norms, Tensor):
        parts = [measured.norms.to(form.device)]
    else:
        parts = [torch.stack(list(group)) for group in by_device(measured.norms or []).values()]
    norm = measured.norm.to(form.device)
    sums = ReferenceSums(
        [powers(part, norm_type) for part in parts],
        powers(norm, norm_type),
        places,
        norm_type,
        form.dtype,
        parts,
    )
    sums.norm, sums.form = norm, form
    return sums


def sums_of_nothing(
    places: Tensor | None, norm_type: float, dtype: torch.dtype | None
) -> ReferenceSums:
    """Return the sums of a list that has no gradient, on the CPU."""
    dtype = torch.float32 if dtype is None else dtype
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    sums = ReferenceSums([], total, places, norm_type, dtype, [])
    sums.norm, sums.form = None, None
    return sums


def powers(norms: Tensor, norm_type: float) -> Tensor:
    """Return the sums to which norms belong, of the same shape: ``roots`` undoes it."""
    if norm_type == 2:
        return norms * norms
    if norm_type in (0, 1) or math.isinf(norm_type):
        return norms.clone()
    return norms.pow(norm_type)


class Kept:
    """``Remains`` of a clip that keeps the norms. Sums are made from them when somebody asks."""

    def __init__(
        self,
        measured: Measured,
        places: Tensor | None,
        norm_type: float,
        form: Form,
        clip_coef: Tensor,
    ) -> None:
        self._measured = measured
        self._places = places
        self._norm_type = norm_type
        self._form = form
        self._clip_coef = clip_coef

    def clip_coef(self) -> Tensor:
        """Return the coefficient, which has been computed."""
        return self._clip_coef

    def sums(self) -> ReferenceSums:
        """Return new sums of the norms."""
        return sums_of(self._measured, self._places, self._norm_type, self._form)

    def is_capturing(self) -> bool:
        """Return whether a CUDA graph is being captured where the norms lie."""
        norms = self._measured.norms
        if isinstance(norms, Tensor):
            return is_capturing(norms.device)
        return any(map(is_capturing, by_device(norms or [])))
