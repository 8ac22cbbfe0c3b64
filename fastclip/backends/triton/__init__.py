"""The backend "triton": the same algorithm as the CUDA kernels, for GPUs without a built extension.

Only this package imports triton, and only when a call needs its kernels.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from .. import reference
from ..base import NO_CLIP_YET, NonFiniteError, UnsupportedError
from ..checks import are_plain
from ..native import without_kernels
from .packing import DTYPES, PackedList, pack_parameters, pack_tensors, prepared_pack

INTERPRET_VARIABLE = "TRITON_INTERPRET"
"""Triton's own: its interpreter runs the kernels, on CPU tensors."""

NO_GPU = "torch sees no GPU"

OLDEST = (3, 6)
"""The release of triton that the oldest supported torch comes with."""


class TritonBackend:
    """Run every operation in Triton kernels; tensors that they do not know are refused."""

    name = "triton"

    def unavailable_reasons(self, device_type: str) -> list[str]:
        supported = "cpu" if is_interpreted() else "cuda"
        if device_type != supported:
            because = f"; {INTERPRET_VARIABLE} is set" if is_interpreted() else ""
            return [f"device {device_type} (supported: {supported}{because})"]
        reasons = list(_load()[1])
        if device_type == "cuda":
            reasons += _gpu_reasons() if not reasons else []
        return reasons

    def clip_grad_norm_(
        self,
        parameters: list[Tensor],
        max_norm: float | Tensor,
        norm_type: float,
        error_if_nonfinite: bool,
        foreach: bool | None,
    ) -> Tensor | None:
        _check_devices(parameters)
        pack = functools.partial(pack_parameters, parameters, is_interpreted(), takes_norm=True)
        return _clip("clip_grad_norm_", pack, max_norm, norm_type, error_if_nonfinite, keep=None)

    def get_total_norm(
        self,
        tensors: list[Tensor],
        norm_type: float,
        error_if_nonfinite: bool,
        foreach: bool | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        _check_devices(tensors)
        _check_norm_type(norm_type)
        packed = pack_tensors(tensors, is_interpreted())
        is_float64 = packed.has_float64 if dtype is None else dtype == torch.float64
        if packed.size == 0:
            dtype = torch.float64 if is_float64 else torch.float32
            return torch.zeros((), dtype=dtype, device="cpu")
        launches = _launches(packed)
        if error_if_nonfinite:
            _check_not_capturing("get_total_norm", launches, packed)
        norm = launches.take_norm(packed, norm_type, is_float64)
        if error_if_nonfinite:
            _check_finite(launches, packed, norm.total_norm)
        return norm.total_norm

    def clip_grads_with_norm_(
        self,
        parameters: list[Tensor],
        max_norm: float | Tensor,
        total_norm: Tensor,
        foreach: bool | None,
    ) -> bool:
        _check_devices(parameters)
        if not _is_plain_scalar(total_norm):
            raise UnsupportedError(["total_norm must be a plain 0-dim floating-point tensor"])
        packed = pack_parameters(parameters, is_interpreted(), takes_norm=False)
        if packed.size == 0:
            return False
        launches = _launches(packed)
        limit = _limit(max_norm, packed)
        if total_norm.is_cpu and packed.device >= 0 and not isinstance(limit, Tensor):
            clip_coef = reference.clip_coefficient(limit, total_norm.detach())
            launches.scale_by(packed, float(clip_coef))
        else:
            launches.scale(packed, _apart(total_norm.detach(), packed), limit)
        packed.bump_versions()
        return True

    def clip_grad_value_(
        self, parameters: list[Tensor], clip_value: float, foreach: bool | None
    ) -> bool:
        _check_devices(parameters)
        packed = pack_parameters(parameters, is_interpreted(), takes_norm=False)
        _check_clip_value(packed, clip_value)
        if packed.size > 0:
            _launches(packed).clamp(packed, clip_value)
            packed.bump_versions()
        return packed.size > 0

    def prepare(self, parameters: list[Tensor]) -> TritonParameters:
        _check_devices(parameters)
        return TritonParameters(parameters)

    def scaled(self, tensors: list[Tensor], clip_coef: float) -> list[Tensor]:
        """Return new tensors, ``tensors[i] * clip_coef``, of their shapes, dtypes and strides.

        Raises:
            UnsupportedError: a tensor is none that the kernels can take.
        """
        _check_devices(tensors)
        packed = pack_tensors(tensors, is_interpreted())
        results = [torch.empty_like(tensor) for tensor in tensors]
        if packed.size > 0:
            _launches(packed).scale_into(packed, results, clip_coef)
        return results


class TritonParameters:
    """A parameter set; ``.grad`` is read anew at each clip."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._pack = prepared_pack(parameters, is_interpreted())
        self._norms: Callable[[], Tensor] | None = None

    def clip_grad_norm_(
        self, max_norm: float | Tensor, norm_type: float, error_if_nonfinite: bool
    ) -> Tensor | None:
        """Clip in one walk. Raises ``UnsupportedError`` or ``NonFiniteError`` before any write."""
        return _clip(
            "GradClipper", self._pack, max_norm, norm_type, error_if_nonfinite, keep=self._keep
        )

    def _keep(self, norms: Callable[[], Tensor]) -> None:
        self._norms = norms

    def parameter_norms(self) -> Tensor:
        """Return the last call's norm per parameter, shape (number of parameters,)."""
        if self._norms is None:
            raise RuntimeError(NO_CLIP_YET)
        return self._norms()


def is_interpreted() -> bool:
    """Tell whether Triton is told to interpret its kernels, on CPU tensors."""
    return os.environ.get(INTERPRET_VARIABLE, "0").lower() in ("1", "true", "on", "yes", "y")


def _clip(
    who: str,
    pack: Callable[[], PackedList],
    max_norm: float | Tensor,
    norm_type: float,
    error_if_nonfinite: bool,
    *,
    keep: Callable[[Callable[[], Tensor]], None] | None,
) -> Tensor | None:
    """Clip a list; ``keep`` receives what makes the norms of parameters, also before an error."""
    _check_norm_type(norm_type)
    packed = pack()
    if packed.size == 0:
        if keep is not None:
            size = len(packed.places)
            keep(functools.partial(torch.zeros, size, dtype=torch.float32, device="cpu"))
        return None
    launches = _launches(packed)
    limit = _limit(max_norm, packed)
    if error_if_nonfinite:
        _check_not_capturing(who, launches, packed)
    norm = launches.clip(packed, limit, norm_type, error_if_nonfinite)
    if keep is not None:
        places = None if packed.is_in_order else packed.places
        keep(functools.partial(launches.parameter_norms, norm, places))
    if error_if_nonfinite:
        _check_finite(launches, packed, norm.total_norm)
    packed.bump_versions()
    return norm.total_norm


def _check_devices(tensors: list[Tensor]) -> None:
    # Lists on the CPU come here when the native backend refuses them, and whether there is a GPU
    # is not asked for their sake: that would keep a process from forking. Of parameters that are
    # no tensors, which have no device, the gradients are asked later.
    if tensors and not is_interpreted() and all(getattr(t, "is_cpu", False) for t in tensors):
        raise UnsupportedError(["device cpu (supported: cuda)"])


def _check_norm_type(norm_type: float) -> None:
    if not norm_type > 0:
        raise UnsupportedError([f"norm_type {norm_type} (supported: above 0, and inf)"])


def _check_clip_value(packed: PackedList, clip_value: float) -> None:
    # torch refuses a finite bound that a gradient's dtype cannot hold, and has its own rules for
    # negative and NaN bounds: those go to the reference backend.
    if math.copysign(1.0, clip_value) < 0 or math.isnan(clip_value):
        raise UnsupportedError(["clip_value must not be negative or nan"])
    if math.isinf(clip_value):
        return
    for code, dtype in enumerate(DTYPES):
        if packed.mix & 1 << code and clip_value > torch.finfo(dtype).max:
            raise UnsupportedError([f"clip_value does not fit {str(dtype).removeprefix('torch.')}"])


def _check_not_capturing(who: str, launches: ModuleType, packed: PackedList) -> None:
    if launches.is_capturing(launches.device_of(packed)):
        raise RuntimeError(
            f"{who}: error_if_nonfinite must be False while a CUDA graph is captured (the norm "
            "would have to be read back)"
        )


def _check_finite(launches: ModuleType, packed: PackedList, total_norm: Tensor) -> None:
    """Raise ``NonFiniteError`` when the norm is inf or nan. Synchronises with its device."""
    if bool(torch.isfinite(total_norm)):
        return
    maxima = launches.take_norm(packed, math.inf, False).sums.tolist()
    is_bad = [not math.isfinite(maximum) for maximum in maxima]
    raise NonFiniteError(
        [i for i, place in enumerate(packed.places) if place >= 0 and is_bad[place]]
    )


def _is_plain_scalar(tensor: Tensor) -> bool:
    """Tell whether a kernel can read the value of a tensor, here or once it has moved."""
    is_scalar = isinstance(tensor, Tensor) and tensor.dim() == 0 and tensor.dtype in DTYPES
    if not is_scalar or not are_plain([tensor]) or not (tensor.is_cpu or tensor.is_cuda):
        return False
    return not tensor.is_neg() and not tensor._is_zerotensor()


def _limit(max_norm: float | Tensor, packed: PackedList) -> float | Tensor:
    """Return a number, or a tensor that lies on a GPU: no wait for it here."""
    if not isinstance(max_norm, Tensor):
        return float(max_norm)
    if max_norm.is_cpu:
        return float(max_norm.detach())
    if packed.device < 0 or not max_norm.is_cuda or not _is_plain_scalar(max_norm):
        raise UnsupportedError(
            [
                f"max_norm is on device {max_norm.device} (supported: cpu, and for gradients on "
                "cuda a plain 0-dim floating-point tensor there)"
            ]
        )
    return _apart(max_norm.detach(), packed)


def _apart(scalar: Tensor, packed: PackedList) -> Tensor:
    """Return a scalar that is not written while kernels read it: a copy if a gradient holds it."""
    return scalar.clone() if packed.holds(scalar.data_ptr()) else scalar


@functools.cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _gpu_reasons() -> list[str]:
    if not _has_gpu():
        return [NO_GPU]
    reason = _why_device_cannot(torch.cuda.current_device())
    return [] if reason is None else [reason]


def _launches(packed: PackedList) -> ModuleType:
    """Return the module that launches kernels, after all that may keep it from running is asked."""
    launches, reasons = _load()
    if launches is None:
        raise UnsupportedError(reasons, without_kernels("; ".join(reasons)))
    if packed.device < 0:
        return launches
    is_asked = packed.device in _usable or packed.device in _reasons
    if not is_asked and launches.is_capturing(launches.device_of(packed)):
        raise RuntimeError(
            "fastclip: the Triton backend must be called once before a CUDA graph is captured: it "
            "compiles and loads its kernels then"
        )
    reason = _why_device_cannot(packed.device)
    if reason is not None:
        raise UnsupportedError([reason], without_kernels(reason))
    return launches


_usable: set[int] = set()
_reasons: dict[int, str] = {}


def _why_device_cannot(index: int) -> str | None:
    """Say why kernels cannot run on a GPU, or nothing. Asked once, if the answer will not pass."""
    if index in _usable:
        return None
    if index in _reasons:
        return _reasons[index]
    launches, reasons = _load()
    if launches is None:
        return "; ".join(reasons)
    try:
        launches.check(index)
    except Exception as error:  # noqa: BLE001 - a compiler or a driver may raise anything
        if isinstance(error, UnsupportedError):
            reason = str(error)
        else:
            reason = f"Triton cannot run on device cuda:{index}: {launches.first_line_of(error)}"
        if not launches.is_passing(error):
            _reasons[index] = reason
        return reason
    _usable.add(index)
    return None


def _load() -> tuple[ModuleType | None, tuple[str, ...]]:
    """Return the module that launches kernels, or the reasons why it cannot be used."""
    launches, reasons = _import()
    if launches is not None and launches.is_interpreted() != is_interpreted():
        state = "set" if is_interpreted() else "unset"
        return None, (f"{INTERPRET_VARIABLE} was {state} after triton was imported",)
    return launches, reasons


@functools.cache
def _import() -> tuple[ModuleType | None, tuple[str, ...]]:
    """Import triton and the kernels once."""
    try:
        import triton

        version = triton.__version__
        is_old = tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST
    except Exception as error:  # noqa: BLE001 - what is found by that name may raise anything
        return None, (f"triton cannot be imported: {error}",)
    if is_old:
        oldest = ".".join(map(str, OLDEST))
        return None, (f"triton {version} is too old (supported: {oldest} and later)",)
    try:
        from . import launches
    except Exception as error:  # noqa: BLE001
        return None, (f"triton {version} cannot be used: {error}",)
    return launches, ()
