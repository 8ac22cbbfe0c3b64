"""The backend "reference": a list of gradients and every operation on it, in torch alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base import check_finite
from ..request import (
    NOT_KEPT,
    ClipRequest,
    Coefficient,
    Factor,
    Kind,
    Known,
    Norms,
    NothingFound,
    Sums,
    is_capturing,
    magnitude_of,
    roots,
)
from ..tensors import by_device, check_foreach, check_scalars, clip_coefficient
from .clamp import clamp_, clamp_elements_of
from .factors import (
    Multiplier,
    is_sequence,
    multiplier_of,
    multipliers_of,
    whole_coefficient,
)
from .finite import flag_of, set_flag
from .gradients import FoundGradients, found_in, read
from .norms import Form, Measured, check_dtypes, form_of, measure
from .scale import elements_of, multiply_
from .sharded import whole
from .sums import Kept, ReferenceSums, sums_of, sums_of_nothing
from .targets import check_targets, multiply_into


class ReferenceBackend:
    """Run every operation with torch alone, on any device and dtype that torch has."""

    name = "reference"

    def unavailable_reasons(self, device_type: str) -> list[str]:
        is_missing = device_type == "cuda" and not torch.cuda.is_available()
        return ["torch sees no GPU"] if is_missing else []

    def gather(
        self, sources: list[Tensor], kind: Kind, *, foreach: bool | None = None
    ) -> ReferenceList:
        return ReferenceList(sources, kind, foreach)


class ReferenceList:
    """A list whose gradients are read at each operation, or only once if it is held.

    An operation first measures, which the ranks of a mesh do together, so that no rank raises while
    others wait; then it checks what it will write; then it writes.

    Its methods are not decorated with ``torch.no_grad()``: torch.compile cannot trace the decorated
    method of an object that the traced code makes.
    """

    def __init__(self, sources: Sequence[Tensor], kind: Kind, foreach: bool | None) -> None:
        self._sources = sources
        self._kind = kind
        self._foreach = foreach
        self._held: FoundGradients | None = None
        self._is_for_norm = False  # whether the held gradients were read for a norm
        # The found_inf that the held gradients were checked for.
        self._checked: Tensor | None = None

    def hold(self, *, takes_norm: bool = True) -> ReferenceList:
        held = ReferenceList(list(self._sources), self._kind, self._foreach)
        held._held = self._held
        held._held = found = held._read(takes_norm)
        held._is_for_norm = takes_norm
        check_foreach(found.distinct, self._foreach)
        if takes_norm:
            check_dtypes(found.distinct)
        if self._kind != Kind.READ_ONLY:
            elements_of(found.distinct)
        return held

    def clip(self, request: ClipRequest) -> Norms:
        with torch.no_grad():
            check_scalars(request.inv_scale, request.found_inf)
            if request.writes:
                self._check_writes()
            found = self._read(takes_norm=True)
            if found.is_empty():
                return _norms_of_nothing(found, request)
            if request.error_if_nonfinite:
                _check_not_capturing(found)
            measured = self._measure(
                found, request.norm_type, request.found_inf, request.keeps_norms
            )
            norms, clip_coef = _norms_of(measured, found, request)
            elements = elements_of(found.distinct) if request.writes else None
            self._note(request.found_inf, measured.flag)
            if request.error_if_nonfinite and norms.total_norm is not None:
                check_finite(whole(norms.total_norm), norms, self)
            if elements is not None and clip_coef is not None:
                by = Multiplier(clip_coef, request.inv_scale, request.found_inf, is_clip_coef=True)
                multiply_(elements, by, foreach=self._foreach)
                self._checked = None
            return norms

    def reduce(
        self,
        norm_type: float,
        *,
        dtype: torch.dtype | None = None,
        found_inf: Tensor | None = None,
    ) -> Sums:
        with torch.no_grad():
            check_scalars(None, found_inf)
            found = self._read(takes_norm=True)
            if found.is_empty():
                return sums_of_nothing(found.places(), norm_type, dtype)
            measured = self._measure(found, norm_type, found_inf, keeps_norms=True)
            self._note(found_inf, measured.flag)
            return sums_of(measured, found.places(), norm_type, form_of(found, dtype))

    def finish(self, sums: Sums, request: ClipRequest) -> Norms:
        with torch.no_grad():
            check_scalars(request.inv_scale, None)
            norm, form = None, None
            if isinstance(sums, ReferenceSums):
                norm, form = sums.norm, sums.form
            if norm is None:
                norm = roots(sums.total, sums.norm_type)
            if form is None:
                form = Form(sums.dtype, sums.total.device, None)
            total_norm = form.of(norm, request.inv_scale)
            known = Known(sums, _clip_coef(request.max_norm, total_norm))
            return Norms(total_norm, known, magnitude_of(request.inv_scale))

    def scale(
        self, by: Factor, *, inv_scale: Tensor | None = None, found_inf: Tensor | None = None
    ) -> bool:
        with torch.no_grad():
            self._check_writes()
            found, multipliers = self._multipliers(by, inv_scale, found_inf)
            flag = self._find_flag(found, found_inf)
            elements = elements_of(found.distinct)
            set_flag(found_inf, flag)
            if isinstance(multipliers, Multiplier):
                multiply_(elements, multipliers, foreach=self._foreach)
            else:
                for grad, multiplier in zip(found.distinct, multipliers, strict=True):
                    multiply_(elements_of([grad]), multiplier, foreach=self._foreach)
            self._checked = None
            return len(found.distinct) > 0

    def scale_into(
        self,
        targets: Sequence[Tensor],
        by: Factor,
        *,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        with torch.no_grad():
            found, multipliers = self._multipliers(by, inv_scale, found_inf)
            flag = self._find_flag(found, found_inf)
            check_targets(targets, found.distinct)
            set_flag(found_inf, flag)
            for i, (target, grad) in enumerate(zip(targets, found.distinct, strict=True)):
                is_one = isinstance(multipliers, Multiplier)
                multiply_into(target, grad, multipliers if is_one else multipliers[i])

    def clamp(
        self,
        clip_value: float,
        *,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> bool:
        with torch.no_grad():
            check_scalars(inv_scale, found_inf)
            self._check_writes()
            found = self._read(takes_norm=found_inf is not None)
            check_foreach(found.distinct, self._foreach)
            flag = self._find_flag(found, found_inf)
            elements = clamp_elements_of(found.distinct, clip_value)
            scaled = None if inv_scale is None else elements_of(found.distinct)
            set_flag(found_inf, flag)
            if scaled is not None:
                # There are two passes, and only the clamp may move the versions.
                by = Multiplier(1.0, inv_scale, found_inf)
                multiply_(scaled.without_versions(), by, foreach=self._foreach)
            clamp_(elements, clip_value, found_inf)
            self._checked = None
            return len(found.distinct) > 0

    def _read(self, takes_norm: bool) -> FoundGradients:
        if self._held is None:
            return read(self._sources, self._kind, takes_norm=takes_norm)
        if takes_norm and not self._is_for_norm:
            return found_in(self._sources, self._held.grads, self._kind, takes_norm=True)
        return self._held

    def _multipliers(
        self, by: Factor, inv_scale: Tensor | None, found_inf: Tensor | None
    ) -> tuple[FoundGradients, Multiplier | list[Multiplier]]:
        """Read the gradients, and check and convert what they are to be multiplied by."""
        check_scalars(inv_scale, found_inf)
        if isinstance(by, Coefficient):
            by = whole_coefficient(by)
        elif isinstance(by, Tensor):
            by = whole(by)
        is_each = is_sequence(by)
        found = self._read(takes_norm=is_each or found_inf is not None)
        check_foreach(found.distinct, self._foreach)
        if is_each:
            return found, multipliers_of(by, found, inv_scale, found_inf)
        if not found.distinct:
            return found, []
        return found, multiplier_of(by, inv_scale, found_inf, self._foreach)

    def _measure(
        self,
        found: FoundGradients,
        norm_type: float,
        found_inf: Tensor | None,
        keeps_norms: bool,
    ) -> Measured:
        return measure(
            found,
            norm_type,
            foreach=self._foreach,
            keeps_norms=keeps_norms,
            found_inf=None if self._is_checked(found_inf) else found_inf,
        )

    def _find_flag(self, found: FoundGradients, found_inf: Tensor | None) -> Tensor | None:
        """Look for inf and nan in all gradients, unless they have been checked."""
        if found_inf is None or self._is_checked(found_inf):
            return None
        if found.sharded_list is not None:
            return found.sharded_list.flag(found_inf)
        return flag_of(found.distinct, found_inf)

    def _note(self, found_inf: Tensor | None, flag: Tensor | None) -> None:
        """Set the flag, and remember that the held gradients have been checked for it."""
        set_flag(found_inf, flag)
        if found_inf is not None:
            self._checked = found_inf

    def _is_checked(self, found_inf: Tensor | None) -> bool:
        return self._held is not None and found_inf is not None and self._checked is found_inf

    def _check_writes(self) -> None:
        if self._kind == Kind.READ_ONLY:
            raise ValueError("fastclip: a list that is read only is not written")


def _norms_of(
    measured: Measured, found: FoundGradients, request: ClipRequest
) -> tuple[Norms, Tensor | None]:
    """Return what a clip found, and the coefficient if it is needed."""
    form = form_of(found, request.dtype)
    total_norm = form.of(measured.norm, request.inv_scale)
    if not request.writes and not request.keeps_norms:
        return Norms(total_norm, NOT_KEPT), None
    clip_coef = _clip_coef(request.max_norm, total_norm)
    if not request.keeps_norms:
        return Norms(total_norm, NOT_KEPT), clip_coef
    kept = Kept(measured, found.places(), request.norm_type, form, clip_coef)
    return Norms(total_norm, kept, magnitude_of(request.inv_scale)), clip_coef


def _norms_of_nothing(found: FoundGradients, request: ClipRequest) -> Norms:
    if not request.keeps_norms:
        return Norms(None, NOT_KEPT)
    sums = sums_of_nothing(found.places(), request.norm_type, request.dtype)
    return Norms(None, NothingFound(sums))


def _clip_coef(max_norm: float | Tensor, total_norm: Tensor) -> Tensor:
    if isinstance(max_norm, Tensor):
        max_norm = whole(max_norm)
    return clip_coefficient(max_norm, whole(total_norm))


def _check_not_capturing(found: FoundGradients) -> None:
    """Raise RuntimeError while a CUDA graph is captured, when nothing can be read back."""
    if not torch.compiler.is_compiling() and any(map(is_capturing, by_device(found.distinct))):
        raise RuntimeError(
            "fastclip: error_if_nonfinite must be False while a CUDA graph is captured (the norm "
            "would have to be read back)"
        )
