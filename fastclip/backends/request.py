"""What a clip is asked for, and what it leaves behind: the same for every backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

EPS = 1e-6
"""Added to the norm before it divides, as in torch."""


class Kind(IntEnum):
    """What the sources of a list are, and what may be done with their gradients.

    PARAMETERS: anything with a ``.grad``; each gradient counts once and may be written.
    TENSORS: the gradients themselves; each counts once and may be written.
    READ_ONLY: tensors that are only read; each counts as often as it is given.
    """

    PARAMETERS = 0
    TENSORS = 1
    READ_ONLY = 2


# An enum's member costs 40 ns to look up, in calls that take a few microseconds.
PARAMETERS, TENSORS, READ_ONLY = Kind.PARAMETERS, Kind.TENSORS, Kind.READ_ONLY


class ClipRequest(NamedTuple):
    """The arguments of a clip, as ``clip_request`` resolves them.

    Attributes:
        max_norm: the largest norm that the gradients keep: a number, or a 0-dim tensor on another
            device than the CPU, which stays there.
        norm_type: the p of the p-norm.
        error_if_nonfinite: raise, and write nothing, when the norm is inf or nan.
        inv_scale: float32 tensor of one element: gradients are multiplied by it, for the norm and
            where they are written. None stands for 1.
        found_inf: float32 tensor of one element: set to 1 if a gradient, before ``inv_scale``,
            holds inf or nan, and never cleared. If it is set, nothing is written.
        writes: whether the gradients are rescaled; without it only the norm and the coefficient are
            found.
        dtype: float32 or float64 for the norm and for how it is accumulated; None takes float64 if
            any gradient is float64, else float32.
        keeps_norms: whether the caller will read more than ``total_norm`` from the ``Norms``.
            Without it a backend need not keep, or even find, the norm of each gradient.
    """

    max_norm: float | Tensor
    norm_type: float = 2.0
    error_if_nonfinite: bool = False
    inv_scale: Tensor | None = None
    found_inf: Tensor | None = None
    writes: bool = True
    dtype: torch.dtype | None = None
    keeps_norms: bool = False


class Coefficient(NamedTuple):
    """A coefficient that a device computes itself: ``min(1, max_norm / (total_norm + EPS))``.

    Attributes:
        max_norm: as in ``ClipRequest``.
        total_norm: a tensor, as the caller gave it.
    """

    max_norm: float | Tensor
    total_norm: Tensor


Factor = float | Tensor | Sequence[Tensor] | Coefficient
"""What gradients are multiplied by.

A number; a 0-dim float32 or float64 tensor; a coefficient for each gradient, as float32 or float64
tensors laid out like ``Sums.parts``; or the coefficient that follows from a norm. As in a clip,
nothing is written for 1 or more.
"""


class Sums:
    """What one pass over a list found, in float64, before the root.

    ``sum |x|^p``, or ``max |x|`` for inf, of the gradients as they are, before any ``inv_scale``.

    Args:
        parts, total, places, norm_type, dtype: the attributes.
        norms: for each part the norms of its gradients, float32 or float64, if the backend has
            taken the roots itself, because torch might not round them as it rounds ``total_norm``.

    Attributes:
        parts: for each device, in order of first appearance, the sums of its gradients, each
            gradient once: shape (number of gradients there,), on that device.
        total: 0-dim: all of them together, on the first gradient's device.
        places: for each source the position of its gradient in ``parts``, one after another, or -1
            where it has none: int64 on the CPU. None stands for 0, 1, 2, ...
        norm_type: the p of the p-norm.
        dtype: float32 or float64, the dtype of the norms that are made from the sums.
    """

    __slots__ = ("_norms", "dtype", "norm_type", "parts", "places", "total")

    def __init__(  # noqa: PLR0917 - as the extension and the backends hand them over
        self,
        parts: Sequence[Tensor],
        total: Tensor,
        places: Tensor | None,
        norm_type: float,
        dtype: torch.dtype,
        norms: Sequence[Tensor | None] | None = None,
    ) -> None:
        self.parts = parts
        self.total = total
        self.places = places
        self.norm_type = norm_type
        self.dtype = dtype
        self._norms = norms

    def with_total(self, total: Tensor) -> Sums:
        """Return the same sums with another total, such as that of all ranks."""
        return Sums(self.parts, total, self.places, self.norm_type, self.dtype, self._norms)

    def norms(self) -> Sequence[Tensor]:
        """Return the norm of each gradient, laid out like ``parts``: new memory, in ``dtype``."""
        taken = self._norms or [None] * len(self.parts)
        return [
            (roots(part, self.norm_type) if norms is None else norms).to(self.dtype, copy=True)
            for part, norms in zip(self.parts, taken, strict=True)
        ]


class Remains(Protocol):
    """What a backend keeps of a clip until somebody asks."""

    def clip_coef(self) -> Tensor:
        """Return the coefficient: 0-dim, of the norm's dtype, on its device."""
        ...

    def sums(self) -> Sums:
        """Return the sums, safe to use on the current stream."""
        ...

    def is_capturing(self) -> bool:
        """Return whether a CUDA graph is being captured on a device of the sums."""
        ...


class Norms:
    """What a clip found; all of it stays on the first gradient's device.

    Args:
        total_norm: the attribute.
        remains: everything else that is known.
        magnitude: ``magnitude_of(request.inv_scale)``, taken before anything was written.

    Attributes:
        total_norm: the norm before clipping, 0-dim, float32 or float64; None where the list has no
            gradients. For a list of DTensors only, a replicated DTensor.
    """

    __slots__ = ("_magnitude", "_remains", "total_norm")

    def __init__(
        self, total_norm: Tensor | None, remains: Remains, magnitude: Tensor | None = None
    ) -> None:
        self.total_norm = total_norm
        self._remains = remains
        self._magnitude = magnitude

    @property
    def clip_coef(self) -> Tensor:
        """``min(1, max_norm / (total_norm + EPS))``: 0-dim, of the norm's dtype, on its device.

        Raises:
            RuntimeError: the list has no gradients, or the request did not say ``keeps_norms``.
        """
        return self._remains.clip_coef()

    @property
    def sums(self) -> Sums:
        """The sums from which the norm was made."""
        return self._remains.sums()

    def norms(self) -> tuple[Sequence[Tensor], Tensor | None]:
        """Return the norm of each gradient, as ``Sums.norms`` does, and ``Sums.places``."""
        sums = self.sums
        return sums.norms(), sums.places

    def is_capturing(self) -> bool:
        """Return whether a CUDA graph is being captured on a device of the sums."""
        return self._remains.is_capturing()

    def parameter_norms(self) -> Tensor:
        """Compute the norm of each source's gradient, before clipping: new memory.

        Like ``total_norm``, they are norms of the gradients times the request's ``inv_scale``.

        Returns:
            Shape (number of sources,), on the first gradient's device, in the norm's dtype; 0 where
            a source has no gradient.

        Raises:
            RuntimeError: a CUDA graph is captured, and sources have no gradient or share one.
        """
        norms, places = self.norms()
        if not norms:
            count = 0 if places is None else len(places)
            return torch.zeros(count, dtype=torch.float32, device="cpu")
        joined, device = norms[0], norms[0].device
        if len(norms) > 1:
            joined = torch.cat([part.to(device) for part in norms])
        if self._magnitude is not None:
            joined.mul_(self._magnitude.to(device))
        if places is None:
            return joined
        if self.is_capturing():
            raise RuntimeError(
                "GradClipper: parameter_norms must be read outside of a CUDA graph's capture where "
                "parameters have no gradient, or share one"
            )
        rows = torch.where(places < 0, len(joined), places)
        if device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(device, non_blocking=True)
        return torch.cat([joined, joined.new_zeros(1)]).index_select(0, rows)


class NotKept:
    """``Remains`` of a request without ``keeps_norms``."""

    def clip_coef(self) -> Tensor:
        raise RuntimeError("fastclip: the request must say keeps_norms for more than total_norm")

    def sums(self) -> Sums:
        raise RuntimeError("fastclip: the request must say keeps_norms for more than total_norm")

    def is_capturing(self) -> bool:
        return False


NOT_KEPT = NotKept()


class Known:
    """``Remains`` whose values have been computed."""

    def __init__(self, sums: Sums, clip_coef: Tensor) -> None:
        self._sums = sums
        self._clip_coef = clip_coef

    def clip_coef(self) -> Tensor:
        return self._clip_coef

    def sums(self) -> Sums:
        return self._sums

    def is_capturing(self) -> bool:
        return any(is_capturing(part.device) for part in self._sums.parts)


class NothingFound:
    """``Remains`` of a clip that found no gradient."""

    def __init__(self, sums: Sums) -> None:
        self._sums = sums

    def clip_coef(self) -> Tensor:
        raise RuntimeError("fastclip: clip_coef: there were no gradients")

    def sums(self) -> Sums:
        return self._sums

    def is_capturing(self) -> bool:
        return False


def clip_request(
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *,
    inv_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    writes: bool = True,
    dtype: torch.dtype | None = None,
    keeps_norms: bool = False,
) -> ClipRequest:
    """Resolve the arguments of a clip; see ``ClipRequest``.

    Raises:
        TypeError, ValueError: as ``float()`` raises for what is no number.
    """
    if type(max_norm) is not float:
        max_norm = resolve(max_norm)
    if type(norm_type) is not float:
        norm_type = number_of(norm_type)
    return ClipRequest(
        max_norm,
        norm_type,
        bool(error_if_nonfinite),
        inv_scale,
        found_inf,
        writes,
        dtype,
        keeps_norms,
    )


def magnitude_of(inv_scale: Tensor | None) -> Tensor | None:
    """Return a copy of ``|inv_scale|``, 0-dim: the caller, or a clip, may change it afterwards."""
    return None if inv_scale is None else inv_scale.detach().reshape(()).abs()


def resolve(max_norm: float | Tensor) -> float | Tensor:
    """Return a number, or a 0-dim tensor that stays on its device, so that nothing waits for it."""
    if isinstance(max_norm, Tensor) and max_norm.dim() == 0 and not max_norm.is_cpu:
        return max_norm.detach()
    return number_of(max_norm)


def number_of(value: float | Tensor) -> float:
    """Convert what torch takes for a number: a number, a string, a tensor of one element."""
    # float() of a tensor that requires grad warns.
    return float(value.detach() if isinstance(value, Tensor) else value)


def roots(sums: Tensor, norm_type: float) -> Tensor:
    """Return the norms to which sums on one device belong: float64, of the same shape."""
    if norm_type == 2:
        return sums.sqrt()
    if norm_type in (0, 1) or math.isinf(norm_type):
        return sums
    return sums.pow(1.0 / norm_type)


def is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured on the current stream of a device."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
