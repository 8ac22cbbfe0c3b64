"""The host's side of operations: memory, words and launches. It imports triton."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..clip_mode import FUSED, is_fused
from ..request import NOT_KEPT, ClipRequest, Known, Norms, Sums, is_capturing, magnitude_of
from .answers import LaunchError
from .arguments import Multiplier, Scalars, norm_dtype
from .call import Call, Results, are_interpreted, launch
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
from .torch_list import no_tensors


class Found:
    """What a clip has left in its call's memory: see ``Remains``. It needs no gradients."""

    __slots__ = ("_dtype", "_norm_type", "_places", "_results")

    def __init__(
        self, results: Results, places: Tensor | None, norm_type: float, dtype: torch.dtype
    ) -> None:
        self._results = results
        self._places = places
        self._norm_type = norm_type
        self._dtype = dtype

    def clip_coef(self) -> Tensor:
        self._results.use()
        return self._results.clip_coef(self._dtype)

    def sums(self) -> Sums:
        self._results.use()
        return sums_of(self._results, self._places, self._norm_type, self._dtype)

    def is_capturing(self) -> bool:
        return self._results.is_capturing()


class Launches:
    """The launches of operations on one device; all tensors that they take lie there.

    Every method raises ``RefusedError`` if Triton or the driver refuses a launch; then no gradient
    has been written.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def is_capturing(self) -> bool:
        """Return whether a CUDA graph is being captured."""
        return is_capturing(self._device)

    def clip(self, packed: PackedList, request: ClipRequest) -> Norms:
        """Take the norm and, where it exceeds ``max_norm`` and may be written, rescale in place.

        Raises:
            RuntimeError: the fused launch, which the clip mode asks for, was refused; no gradient
                has been written.
        """
        dtype = norm_dtype(packed, request.dtype)
        magnitude = magnitude_of(request.inv_scale) if request.keeps_norms else None
        with self._current():
            call = Call(self._device, packed)
            total_norm = _ask_for_norm(call, request.norm_type, dtype, request)
            call.set(words.ERROR_IF_NONFINITE, int(request.error_if_nonfinite))
            _set_scalars(call, Scalars(request.inv_scale, request.found_inf))
            call.ask_for_total()
            call.upload()
            _launch_clip(call, kind_of(request.norm_type, dtype), request)
        if not request.keeps_norms:
            return Norms(total_norm, NOT_KEPT)
        found = Found(call.results, packed.places, request.norm_type, dtype)
        return Norms(total_norm, found, magnitude)

    def reduce(
        self, packed: PackedList, norm_type: float, dtype: torch.dtype, found_inf: Tensor | None
    ) -> Sums:
        """Sum up each tensor, and all of them."""
        kind = kind_of(norm_type, dtype)
        with self._current():
            call = Call(self._device, packed)
            _set_norm_type(call, norm_type, dtype)
            _set_scalars(call, Scalars(None, found_inf))
            call.ask_for_total()
            call.upload()
            finds_inf = int(found_inf is not None)
            call.launch(reduce_kernel, MIX=packed.mix, KIND=kind, FINDS_INF=finds_inf)
            call.launch(finish_kernel, KIND=kind)
        return sums_of(call.results, packed.places, norm_type, dtype)

    def finish(self, sums: Sums, request: ClipRequest) -> Norms:
        """Compute the norm and the coefficient from a total, passed as the only partial."""
        with self._current():
            call = Call(self._device, no_tensors())
            call.point(words.PARTIALS, sums.total)
            call.set(words.GROUPS, 1)
            total_norm = _ask_for_norm(call, sums.norm_type, sums.dtype, request)
            _set_scalars(call, Scalars(request.inv_scale, None))
            call.upload()
            call.launch(finish_kernel, KIND=kind_of(sums.norm_type, sums.dtype))
        known = Known(sums, call.results.clip_coef(sums.dtype))
        return Norms(total_norm, known, magnitude_of(request.inv_scale))

    def scale(self, packed: PackedList, by: Multiplier, scalars: Scalars, is_checked: bool) -> None:
        """Multiply in place; a coefficient of 1 or more changes nothing by itself.

        Args:
            is_checked: whether ``found_inf`` is up to date for these gradients.
        """
        with self._current():
            call = Call(self._device, packed)
            _set_multiplier(call, by)
            _prepare_change(call, scalars, is_checked)
            call.launch(scale_kernel, MIX=packed.mix)

    def scale_into(
        self,
        packed: PackedList,
        targets: list[int],
        by: Multiplier,
        scalars: Scalars,
        is_checked: bool,
    ) -> None:
        """Write the products to other memory, which begins at ``targets``, whatever is found."""
        with self._current():
            call = Call(self._device, packed, targets)
            _set_multiplier(call, by)
            _prepare_change(call, scalars, is_checked)
            call.launch(scale_into_kernel, MIX=packed.mix)

    def clamp(
        self, packed: PackedList, clip_value: float, scalars: Scalars, is_checked: bool
    ) -> None:
        """Clamp in place to [-clip_value, clip_value]: not negative, and not NaN."""
        with self._current():
            call = Call(self._device, packed)
            call.set_number(words.VALUE, clip_value)
            _prepare_change(call, scalars, is_checked)
            scales = int(scalars.inv_scale is not None)
            call.launch(clamp_kernel, MIX=packed.mix, SCALES=scales)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make the device current: Triton launches on the current one."""
        if self._device.type == "cpu":
            yield
        else:
            with torch.cuda.device(self._device):
                yield


def kind_of(norm_type: float, dtype: torch.dtype) -> int:
    """Return what a kernel sums up for a norm."""
    if norm_type == 2:
        kind = SUM_SQ_WIDE if dtype == torch.float64 else SUM_SQ
    elif norm_type == 1:
        kind = ABS_SUM
    else:
        kind = ABS_MAX if math.isinf(norm_type) else POWER_SUM
    return kind.value


def sums_of(results: Results, places: Tensor | None, norm_type: float, dtype: torch.dtype) -> Sums:
    """Return what kernels summed up."""
    sums = results.sums()
    norms = None
    if kind_of(norm_type, dtype) == POWER_SUM.value:
        # The interpreter's norms are taken as on a GPU: roots() of CPU tensors may differ by a bit.
        norms = [sums.pow(1.0 / norm_type)]
    return Sums([sums], results.total(), places, norm_type, dtype, norms)


def check(index: int) -> None:
    """Compile and launch two kernels on a GPU; raise what Triton raises if that fails."""
    device = torch.device("cuda", index)
    with torch.cuda.device(device):
        empty = torch.zeros(words.FIELDS.value + WORDS, dtype=torch.int64, device=device)
        at = empty.data_ptr()
        # A capture needs this kernel, and loading it during the capture may be an error.
        launch(write_words_kernel, device, 1, at, words.FIELDS.value, *[0] * WORDS)
        launch(finish_kernel, device, 1, at, KIND=SUM_SQ.value)


def _launch_clip(call: Call, kind: int, request: ClipRequest) -> None:
    mix, finds_inf = call.packed.mix, int(request.found_inf is not None)
    if not (request.writes and is_fused()):
        call.launch(reduce_kernel, MIX=mix, KIND=kind, FINDS_INF=finds_inf)
        if request.writes:
            call.launch(finish_and_scale_kernel, MIX=mix, KIND=kind)
        else:
            call.launch(finish_kernel, KIND=kind)
        return
    programs = 1 if are_interpreted() else call.programs()
    try:
        call.launch(clip_kernel, programs, True, MIX=mix, KIND=kind, FINDS_INF=finds_inf)
    except LaunchError as error:
        raise RuntimeError(f"fastclip: the clip mode is {FUSED}: {error}") from error


def _ask_for_norm(call: Call, norm_type: float, dtype: torch.dtype, request: ClipRequest) -> Tensor:
    """Let kernels write the coefficient, and the norm to new memory, which is returned."""
    total_norm = torch.empty((), dtype=dtype, device=call.device)
    _set_norm_type(call, norm_type, dtype)
    call.point(words.TOTAL_NORM, total_norm)
    call.ask_for_coefficient()
    _set_max_norm(call, request.max_norm, dtype)
    return total_norm


def _set_norm_type(call: Call, norm_type: float, dtype: torch.dtype) -> None:
    call.set_number(words.NORM_TYPE, norm_type)
    call.set(words.IS_FLOAT64, int(dtype == torch.float64))


def _set_max_norm(call: Call, max_norm: float | Tensor, dtype: torch.dtype) -> None:
    if isinstance(max_norm, Tensor):
        call.point(words.MAX_NORM_TENSOR, max_norm.to(call.device, dtype))
    else:
        call.set_number(words.MAX_NORM, max_norm)


def _set_scalars(call: Call, scalars: Scalars) -> None:
    if scalars.inv_scale is not None:
        call.point(words.INV_SCALE, scalars.inv_scale)
    if scalars.found_inf is not None:
        call.point(words.FOUND_INF, scalars.found_inf)


def _set_multiplier(call: Call, by: Multiplier) -> None:
    call.set(words.IS_FLOAT64, int(by.is_float64))
    if by.each is not None:
        call.point(words.COEFS, by.each)
    elif by.one is not None:
        call.point(words.CLIP_COEF, by.one)
    elif by.total_norm is not None:
        call.point(words.TOTAL_NORM, by.total_norm)
        dtype = torch.float64 if by.is_float64 else torch.float32
        _set_max_norm(call, by.max_norm, dtype)
    else:
        call.set_number(words.VALUE, by.number)


def _prepare_change(call: Call, scalars: Scalars, is_checked: bool) -> None:
    """Upload a call that changes gradients once its fields are set; look for infs if needed."""
    _set_scalars(call, scalars)
    call.set(words.SUMS, 0)
    call.upload()
    if scalars.found_inf is not None and not is_checked:
        call.launch(reduce_kernel, MIX=call.packed.mix, KIND=ABS_MAX.value, FINDS_INF=1)
