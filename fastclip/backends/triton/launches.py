"""The host's side of a call: memory, words, grids and launches. Imported when a call needs it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clip_mode import FUSED, clip_mode
from .call import Call, LaunchError, is_capturing, is_interpreted, launch
from .call import device_of as device_of
from .call import first_line_of as first_line_of
from .call import is_passing as is_passing
from .device import words
from .device.kernels import (
    clamp_kernel,
    clip_kernel,
    finish_and_scale_kernel,
    finish_kernel,
    reduce_kernel,
    scale_into_kernel,
    scale_kernel,
)
from .device.reduce import ABS_MAX, ABS_SUM, POWER_SUM, SUM_SQ, SUM_SQ_WIDE
from .device.table import WORDS, write_words_kernel
from .packing import PackedList


@dataclass
class Norm:
    """What a norm leaves behind.

    Attributes:
        total_norm: 0-dim, on the list's device.
        sums: float64, before the root, one for each tensor.
        norm_type: the p of the p-norm.
    """

    total_norm: Tensor
    sums: Tensor
    norm_type: float


def kind_of(norm_type: float, is_float64: bool) -> int:
    """Return what a kernel sums up for a norm."""
    if norm_type == 2:
        kind = SUM_SQ_WIDE if is_float64 else SUM_SQ
    elif norm_type == 1:
        kind = ABS_SUM
    else:
        kind = ABS_MAX if math.isinf(norm_type) else POWER_SUM
    return kind.value


def clip(
    packed: PackedList,
    max_norm: float | Tensor,
    norm_type: float,
    error_if_nonfinite: bool,
    *,
    found_inf: Tensor | None = None,
    inv_scale: Tensor | None = None,
) -> Norm:
    """Take the norm and, where it exceeds ``max_norm``, rescale in place.

    Args:
        packed: the gradients.
        max_norm: a number, or a 0-dim tensor on the list's device.
        norm_type: above 0, or inf.
        error_if_nonfinite: leave the gradients alone when the norm is not finite.
        found_inf: 0-dim float32: set to 1 where a gradient is inf or NaN; nothing is written then.
        inv_scale: 0-dim float32: gradients count and are written as multiples of it.

    Raises:
        UnsupportedError: Triton or the driver refused a launch; nothing has been written.
        RuntimeError: it refused the fused one, which the mode asks for; nothing has been written.
    """
    with _on(packed):
        call = Call(packed)
        norm = _point_at_results(call, norm_type, packed.has_float64)
        _set_max_norm(call, max_norm, norm.total_norm.dtype)
        call.set(words.ERROR_IF_NONFINITE, int(error_if_nonfinite))
        if inv_scale is not None:
            call.point(words.INV_SCALE, inv_scale)
        if found_inf is not None:
            call.point(words.FOUND_INF, found_inf)
        call.upload()
        kind = kind_of(norm_type, packed.has_float64)
        _launch_clip(call, kind, int(found_inf is not None))
    return norm


def _launch_clip(call: Call, kind: int, finds_inf: int) -> None:
    mix = call.packed.mix
    if clip_mode() != FUSED:
        call.launch(reduce_kernel, MIX=mix, KIND=kind, FINDS_INF=finds_inf)
        call.launch(finish_and_scale_kernel, MIX=mix, KIND=kind)
        return
    programs = 1 if is_interpreted() else call.programs()
    try:
        call.launch(clip_kernel, programs, True, MIX=mix, KIND=kind, FINDS_INF=finds_inf)
    except LaunchError as error:
        raise RuntimeError(f"fastclip: the clip mode is {FUSED}: {error}") from error


def take_norm(packed: PackedList, norm_type: float, is_float64: bool) -> Norm:
    """Take the norm alone, in two launches.

    Args:
        packed: the tensors, which are only read.
        norm_type: above 0, or inf.
        is_float64: sum squares in float64 throughout, and return a float64 norm.

    Raises:
        UnsupportedError: Triton or the driver refused a launch.
    """
    with _on(packed):
        call = Call(packed)
        norm = _point_at_results(call, norm_type, is_float64)
        call.upload()
        kind = kind_of(norm_type, is_float64)
        call.launch(reduce_kernel, MIX=packed.mix, KIND=kind, FINDS_INF=0)
        call.launch(finish_kernel, KIND=kind)
    return norm


def scale(packed: PackedList, total_norm: Tensor, max_norm: float | Tensor) -> None:
    """Rescale in place by the coefficient of a norm, which moves to the list's device.

    Args:
        packed: the gradients.
        total_norm: 0-dim, of a floating-point dtype.
        max_norm: a number, or a 0-dim tensor.

    Raises:
        UnsupportedError: Triton or the driver refused the launch; nothing has been written.
    """
    with _on(packed):
        call = Call(packed)
        dtype = torch.promote_types(total_norm.dtype, torch.float32)
        call.point(words.TOTAL_NORM, total_norm.to(call.device, dtype))
        call.set(words.IS_FLOAT64, int(dtype == torch.float64))
        _set_max_norm(call, max_norm, dtype)
        call.upload()
        call.launch(scale_kernel, MIX=packed.mix)


def scale_by(packed: PackedList, clip_coef: float | Tensor) -> None:
    """Multiply in place by a coefficient, or by one for each tensor; 1 and more change nothing.

    Args:
        packed: the gradients.
        clip_coef: a number, or float32 or float64 on the list's device: 0-dim, or of shape (size,).

    Raises:
        UnsupportedError: Triton or the driver refused the launch; nothing has been written.
    """
    with _on(packed):
        call = Call(packed)
        _set_coefficient(call, clip_coef)
        call.upload()
        call.launch(scale_kernel, MIX=packed.mix)


def scale_into(packed: PackedList, targets: Sequence[Tensor], clip_coef: float | Tensor) -> None:
    """Write the gradients times a coefficient, as for ``scale_by``, to tensors of their layout.

    Raises:
        UnsupportedError: Triton or the driver refused the launch; nothing has been written.
    """
    with _on(packed):
        call = Call(packed, targets)
        _set_coefficient(call, clip_coef)
        call.upload()
        call.launch(scale_into_kernel, MIX=packed.mix)


def clamp(packed: PackedList, clip_value: float) -> None:
    """Clamp in place to [-clip_value, clip_value].

    Args:
        packed: the gradients.
        clip_value: not negative, and not NaN.

    Raises:
        UnsupportedError: Triton or the driver refused the launch; nothing has been written.
    """
    with _on(packed):
        call = Call(packed)
        call.set_number(words.VALUE, clip_value)
        call.upload()
        call.launch(clamp_kernel, MIX=packed.mix)


def parameter_norms(norm: Norm, places: Sequence[int] | None) -> Tensor:
    """Compute the norm of each source from the sums: new memory, for the caller to change.

    Args:
        norm: what a call left behind.
        places: for each source its tensor's position, -1 where ``.grad`` is None; or None where
            every source has the tensor of its own position.

    Returns:
        Shape (number of sources,), in the norm's dtype; 0 where there is no gradient.

    Raises:
        RuntimeError: a CUDA graph is captured, and the norms are not simply those of the tensors.
    """
    if norm.sums.is_cuda:
        # The caller's stream may be another than the clip's.
        norm.sums.record_stream(torch.cuda.current_stream(norm.sums.device))
    roots = _roots(norm.sums, norm.norm_type).to(norm.total_norm.dtype)
    if places is None:
        return roots
    size = len(roots)
    if is_capturing(norm.sums.device):
        raise RuntimeError(
            "GradClipper: parameter_norms must be read outside of a CUDA graph's capture where "
            "parameters have no gradient, or share one"
        )
    rows = [size if place < 0 else place for place in places]
    index = torch.tensor(rows, device="cpu")
    if norm.sums.is_cuda:
        index = index.pin_memory().to(norm.sums.device, non_blocking=True)
    return torch.cat([roots, roots.new_zeros(1)]).index_select(0, index)


def _roots(sums: Tensor, norm_type: float) -> Tensor:
    if norm_type == 2:
        return sums.sqrt()
    if norm_type == 1 or math.isinf(norm_type):
        return sums.clone()
    return sums.pow(1.0 / norm_type)


def _point_at_results(call: Call, norm_type: float, is_float64: bool) -> Norm:
    dtype = torch.float64 if is_float64 else torch.float32
    total_norm = torch.empty((), dtype=dtype, device=call.device)
    call.set_number(words.NORM_TYPE, norm_type)
    call.set(words.IS_FLOAT64, int(is_float64))
    call.point(words.TOTAL_NORM, total_norm)
    return Norm(total_norm, call.sums(), norm_type)


def _set_max_norm(call: Call, max_norm: float | Tensor, dtype: torch.dtype) -> None:
    if isinstance(max_norm, Tensor):
        call.point(words.MAX_NORM_TENSOR, max_norm.to(call.device, dtype))
    else:
        call.set_number(words.MAX_NORM, max_norm)


def _set_coefficient(call: Call, clip_coef: float | Tensor) -> None:
    if not isinstance(clip_coef, Tensor):
        call.set_number(words.VALUE, clip_coef)
        return
    call.set(words.IS_FLOAT64, int(clip_coef.dtype == torch.float64))
    call.point(words.COEFS if clip_coef.dim() else words.CLIP_COEF, clip_coef)


@contextmanager
def _on(packed: PackedList) -> Iterator[None]:
    """Make the list's device current: Triton launches on the current one."""
    if packed.device < 0:
        yield
    else:
        with torch.cuda.device(packed.device):
            yield


def check(index: int) -> None:
    """Compile and launch two kernels on a GPU; raises what Triton raises where it cannot."""
    device = torch.device("cuda", index)
    with torch.cuda.device(device):
        empty = torch.zeros(words.FIELDS.value + WORDS, dtype=torch.int64, device=device)
        at = empty.data_ptr()
        # A capture needs this one, and may not allow that it is loaded then.
        launch(write_words_kernel, device, 1, at, words.FIELDS.value, *[0] * WORDS)
        launch(finish_kernel, device, 1, at, KIND=SUM_SQ.value)
