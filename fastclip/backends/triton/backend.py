"""The backend "triton" and its lists: what is checked, and in which order, before kernels run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base import Reason, ReasonKind, RefusedError, check_finite
from ..request import (
    NOT_KEPT,
    READ_ONLY,
    ClipRequest,
    Factor,
    Kind,
    Known,
    Norms,
    NothingFound,
    Sums,
    magnitude_of,
    roots,
)
from ..tensors import check_scalars, clip_coefficient
from . import loading
from .arguments import (
    check_clip_value,
    check_factor,
    check_norm_type,
    check_total,
    inv_scale_on,
    max_norm_on,
    multiplier_for,
    norm_dtype,
    request_for,
    scalars_for,
)
from .packing import Pack, PackedList, device_of, held_pack, pack_of


class TritonBackend:
    """Run every operation in Triton kernels, and refuse tensors that these do not know."""

    name = "triton"

    def unavailable_reasons(self, device_type: str) -> list[str]:
        supported = loading.supported_device()
        if device_type != supported:
            is_interpreted = loading.is_interpreted()
            because = f"; {loading.INTERPRET_VARIABLE} is set" if is_interpreted else ""
            return [f"device {device_type} (supported: {supported}{because})"]
        reasons = list(loading.import_reasons())
        if device_type == "cuda" and not reasons:
            reasons += loading.gpu_reasons()
        return reasons

    def gather(
        self, sources: list[Tensor], kind: Kind, *, foreach: bool | None = None
    ) -> TritonList:
        _check_devices(sources)
        return TritonList(pack_of(sources, kind, loading.is_interpreted()), kind)


class TritonList:
    """A list that each operation packs anew."""

    __slots__ = ("_checked", "_is_held", "_kind", "_pack")

    def __init__(self, pack: Pack, kind: Kind, is_held: bool = False) -> None:
        self._pack = pack
        self._kind = kind
        self._is_held = is_held
        # The found_inf that the held gradients were checked for since they last changed.
        self._checked: Tensor | None = None

    def hold(self, *, takes_norm: bool = True) -> TritonList:
        return TritonList(held_pack(self._pack(takes_norm)), self._kind, is_held=True)

    def clip(self, request: ClipRequest) -> Norms:
        check_norm_type(request.norm_type)
        check_scalars(request.inv_scale, request.found_inf)
        if request.writes:
            self._check_writes()
        packed = self._packed(takes_norm=True)
        if packed.size == 0:
            return _norms_of_nothing(packed, request)
        launches = loading.launches_on(device_of(packed))
        asked = request_for(packed, request)
        if request.error_if_nonfinite and launches.is_capturing():
            raise RuntimeError(
                "fastclip: error_if_nonfinite must be False while a CUDA graph is captured (the "
                "norm would have to be read back)"
            )
        norms = launches.clip(packed, asked)
        self._note_check(request.found_inf)
        if request.error_if_nonfinite and norms.total_norm is not None:
            held = TritonList(held_pack(packed), self._kind, is_held=True)
            check_finite(norms.total_norm, norms, held)
        if request.writes:
            self._note_change(packed)
        return norms

    def reduce(
        self,
        norm_type: float,
        *,
        dtype: torch.dtype | None = None,
        found_inf: Tensor | None = None,
    ) -> Sums:
        check_norm_type(norm_type)
        check_scalars(None, found_inf)
        packed = self._packed(takes_norm=True)
        if packed.size == 0:
            return _sums_of_nothing(packed, norm_type, dtype)
        launches = loading.launches_on(device_of(packed))
        flag = scalars_for(packed, None, found_inf).found_inf
        sums = launches.reduce(packed, norm_type, norm_dtype(packed, dtype), flag)
        self._note_check(found_inf)
        return sums

    def finish(self, sums: Sums, request: ClipRequest) -> Norms:
        check_norm_type(sums.norm_type)
        check_scalars(request.inv_scale, None)
        check_total(sums.total)
        device = sums.total.device
        if device.type != loading.supported_device():
            return _finish_by_torch(sums, request)
        launches = loading.launches_on(device)
        max_norm = max_norm_on(device, request.max_norm)
        inv_scale = inv_scale_on(device, request.inv_scale)
        return launches.finish(sums, request._replace(max_norm=max_norm, inv_scale=inv_scale))

    def scale(
        self, by: Factor, *, inv_scale: Tensor | None = None, found_inf: Tensor | None = None
    ) -> bool:
        check_factor(by)
        check_scalars(inv_scale, found_inf)
        self._check_writes()
        packed = self._packed(takes_norm=False)
        if packed.size == 0:
            return False
        launches = loading.launches_on(device_of(packed))
        multiplier = multiplier_for(packed, by)
        scalars = scalars_for(packed, inv_scale, found_inf)
        launches.scale(packed, multiplier, scalars, self._has_checked(found_inf))
        self._note_change(packed)
        return True

    def scale_into(
        self,
        targets: Sequence[Tensor],
        by: Factor,
        *,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        check_factor(by)
        check_scalars(inv_scale, found_inf)
        packed = self._packed(takes_norm=False)
        addresses = packed.addresses_of(list(targets))
        if packed.size == 0:
            return
        launches = loading.launches_on(device_of(packed))
        multiplier = multiplier_for(packed, by)
        scalars = scalars_for(packed, inv_scale, found_inf)
        is_checked = self._has_checked(found_inf)
        launches.scale_into(packed, addresses, multiplier, scalars, is_checked)
        torch.autograd.graph.increment_version(list(targets))

    def clamp(
        self,
        clip_value: float,
        *,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> bool:
        check_scalars(inv_scale, found_inf)
        self._check_writes()
        packed = self._packed(takes_norm=False)
        check_clip_value(packed, clip_value)
        if packed.size == 0:
            return False
        launches = loading.launches_on(device_of(packed))
        scalars = scalars_for(packed, inv_scale, found_inf)
        launches.clamp(packed, clip_value, scalars, self._has_checked(found_inf))
        self._note_change(packed)
        return True

    def _packed(self, takes_norm: bool) -> PackedList:
        return self._pack(takes_norm)

    def _check_writes(self) -> None:
        if self._kind is READ_ONLY:
            raise ValueError("fastclip: a list that is read only is not written")

    def _note_check(self, found_inf: Tensor | None) -> None:
        if self._is_held and found_inf is not None:
            self._checked = found_inf

    def _note_change(self, packed: PackedList) -> None:
        packed.bump_versions()
        self._checked = None

    def _has_checked(self, found_inf: Tensor | None) -> bool:
        return found_inf is not None and found_inf is self._checked


def _check_devices(sources: list[Tensor]) -> None:
    # CPU lists that the native backend refused reach this point. They are refused without a query
    # of CUDA: initialising it would make a later fork unsafe. Parameters that are no tensors have
    # no device; the devices of their gradients are checked later.
    if loading.is_interpreted() or not sources:
        return
    if all(getattr(source, "is_cpu", False) for source in sources):
        raise RefusedError([Reason(ReasonKind.TENSORS, "device cpu (supported: cuda)")])


def _norms_of_nothing(packed: PackedList, request: ClipRequest) -> Norms:
    if not request.keeps_norms:
        return Norms(None, NOT_KEPT)
    sums = _sums_of_nothing(packed, request.norm_type, request.dtype)
    return Norms(None, NothingFound(sums))


def _sums_of_nothing(packed: PackedList, norm_type: float, dtype: torch.dtype | None) -> Sums:
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    return Sums([], total, packed.places, norm_type, norm_dtype(packed, dtype))


def _finish_by_torch(sums: Sums, request: ClipRequest) -> Norms:
    """Finish with torch, where no kernel runs: the total of an empty list is on the CPU."""
    norm = roots(sums.total, sums.norm_type)
    if request.inv_scale is not None:
        norm = norm * request.inv_scale.detach().to(norm).abs().reshape(())
    total_norm = norm.to(sums.dtype, copy=True)
    known = Known(sums, clip_coefficient(request.max_norm, total_norm))
    return Norms(total_norm, known, magnitude_of(request.inv_scale))
