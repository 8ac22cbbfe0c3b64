"""The backend "native": the kernels of the compiled extension ``fastclip._C``, on CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import extension
from .base import NonFiniteError, Reason, ReasonKind, RefusedError, nonfinite_positions
from .clip_mode import is_fused
from .extension import Kernels, call_translating_errors, refusal_of
from .request import (
    NOT_KEPT,
    ClipRequest,
    Coefficient,
    Factor,
    Kind,
    Known,
    Norms,
    Sums,
    magnitude_of,
)
from .tensors import check_scalars, clip_coefficient

if TYPE_CHECKING:
    from .extension import BoundList, BoundRemains

KERNELS = Kernels.NATIVE


class NativeBackend:
    """Run every operation in compiled kernels, and refuse tensors that these do not know."""

    name = "native"

    def unavailable_reasons(self, device_type: str) -> list[str]:
        if device_type == "cuda":
            return extension.cuda_reasons()
        reasons = [reason.text for reason in extension.load()]
        is_known = device_type == "cpu"
        return reasons if is_known else [*reasons, f"device {device_type} (supported: cpu, cuda)"]

    def gather(
        self, sources: list[Tensor], kind: Kind, *, foreach: bool | None = None
    ) -> NativeList:
        if extension.load():
            extension.require()
        return NativeList(extension.binding.gather(sources, kind, KERNELS))


class NativeList:
    """A list that the extension walks and works on, one call into it for each operation."""

    __slots__ = ("_list",)

    def __init__(self, bound: BoundList) -> None:
        self._list = bound

    def hold(self, *, takes_norm: bool = True) -> NativeList:
        return NativeList(call_translating_errors(self._list.hold, takes_norm))

    def clip(self, request: ClipRequest) -> Norms:
        magnitude = None
        if request.inv_scale is not None or request.found_inf is not None:
            check_scalars(request.inv_scale, request.found_inf)
            magnitude = magnitude_of(request.inv_scale)
        try:
            if request.keeps_norms:
                return NativeNorms(self._list.clip_and_keep(request, is_fused()), magnitude)
            return Norms(self._list.clip(request, is_fused()), NOT_KEPT)
        except extension.binding.UnsupportedError as error:
            raise refusal_of(error) from None
        except extension.binding.NonFiniteError as error:
            remains, gradients = error.args
            positions = nonfinite_positions(NativeList(gradients))
            raise NonFiniteError(positions, NativeNorms(remains, magnitude)) from None

    def reduce(
        self,
        norm_type: float,
        *,
        dtype: torch.dtype | None = None,
        found_inf: Tensor | None = None,
    ) -> Sums:
        check_scalars(None, found_inf)
        return Sums(*call_translating_errors(self._list.reduce, norm_type, dtype, found_inf))

    def finish(self, sums: Sums, request: ClipRequest) -> Norms:
        check_scalars(request.inv_scale, None)
        total_norm, clip_coef = call_translating_errors(
            extension.binding.finish,
            sums.total,
            sums.norm_type,
            sums.dtype,
            request.max_norm,
            request.inv_scale,
        )
        return Norms(total_norm, Known(sums, clip_coef), magnitude_of(request.inv_scale))

    def scale(
        self, by: Factor, *, inv_scale: Tensor | None = None, found_inf: Tensor | None = None
    ) -> bool:
        check_scalars(inv_scale, found_inf)
        if not isinstance(by, Coefficient):
            return call_translating_errors(self._list.scale, _multiplier(by), inv_scale, found_inf)
        if not isinstance(by.total_norm, Tensor):
            raise RefusedError([Reason(ReasonKind.CALL, "total_norm is no tensor")])
        return call_translating_errors(
            self._list.scale_by_norm, by.max_norm, by.total_norm, inv_scale, found_inf
        )

    def scale_into(
        self,
        targets: Sequence[Tensor],
        by: Factor,
        *,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        check_scalars(inv_scale, found_inf)
        known = clip_coefficient(*by) if isinstance(by, Coefficient) else by
        multiplier = _multiplier(known)
        call_translating_errors(
            self._list.scale_into, list(targets), multiplier, inv_scale, found_inf
        )

    def clamp(
        self,
        clip_value: float,
        *,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> bool:
        check_scalars(inv_scale, found_inf)
        return call_translating_errors(self._list.clamp, clip_value, inv_scale, found_inf)


class NativeNorms(Norms):
    """What a clip found; the extension makes tensors of it when somebody asks."""

    __slots__ = ("_native",)

    def __init__(self, remains: BoundRemains, magnitude: Tensor | None) -> None:
        # super() is not called: it takes 0.1 of the 4 us that a clip of a few small gradients
        # takes.
        self.total_norm = remains.total_norm
        self._remains = NOT_KEPT
        self._magnitude = magnitude
        self._native = remains

    @property
    def clip_coef(self) -> Tensor:
        return self._native.clip_coef()

    @property
    def sums(self) -> Sums:
        return Sums(*self._native.sums())

    def norms(self) -> tuple[Sequence[Tensor], Tensor | None]:
        on_cpu = self._native.norms()
        return super().norms() if on_cpu is None else ([on_cpu[0]], on_cpu[1])

    def is_capturing(self) -> bool:
        return self._native.is_capturing()


def _multiplier(by: float | Tensor | Sequence[Tensor]) -> float | Tensor | list[Tensor]:
    return by if isinstance(by, (float, int, Tensor)) else list(by)
