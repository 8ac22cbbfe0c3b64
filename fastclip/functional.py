"""What a clip is made of, on tensors instead of parameters: norms of each, and products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .backends import check_backend, dispatch
from .backends.base import Backend
from .backends.request import READ_ONLY, TENSORS, clip_request, number_of


def get_tensor_norms(
    tensors: Sequence[Tensor], norm_type: float = 2.0, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the norm of all ``tensors`` as one vector, and of each, in one pass.

    Args:
        tensors: any shapes, float dtypes and devices; a tensor given twice counts twice.
        norm_type: the p of the p-norm: any float, or "inf".
        backend: "native", "triton" or "reference" to insist on one; None takes the fastest that
            can run.

    Returns:
        The norm as ``get_total_norm`` returns it, and the norms of the tensors in order: shape
        (number of tensors,), of its dtype, on its device. 0.0 and shape (0,) without tensors.

    Raises:
        RuntimeError: ``backend`` cannot run this.
        ValueError: ``backend`` is unknown.
    """
    sources = list(tensors)
    check_backend("get_tensor_norms", backend, None)
    if not sources:
        return torch.tensor(0.0), torch.zeros(0)
    request = clip_request(math.inf, norm_type, writes=False, keeps_norms=True)

    def find(b: Backend) -> tuple[Tensor, Tensor]:
        norms = b.gather(sources, READ_ONLY).clip(request)
        assert norms.total_norm is not None  # there are tensors
        return norms.total_norm, norms.parameter_norms()

    return dispatch("get_tensor_norms", backend, None, find)


def scale_tensors_(
    tensors: Sequence[Tensor], factor: float | Tensor, *, backend: str | None = None
) -> None:
    """Multiply ``tensors`` in place by one factor, whatever it is.

    Args:
        tensors: any shapes, float dtypes and devices; a tensor given twice is scaled once.
        factor: a number; or a tensor of one element, which is taken in float32 and never read by
            the host.
        backend: "native", "triton" or "reference" to insist on one; None takes the fastest that
            can run.

    Raises:
        RuntimeError: the elements of a tensor share memory; or ``backend`` cannot run this.
        ValueError: ``backend`` is unknown.

    Nothing is written for a number of 1, and for a tensor that holds 1.
    """
    sources = list(tensors)
    check_backend("scale_tensors_", backend, None)
    for by, inv_scale in _factors_of(factor, sources):
        _scale(sources, by, inv_scale, backend)


def scale_tensors_into(
    targets: Sequence[Tensor],
    tensors: Sequence[Tensor],
    factor: float | Tensor,
    *,
    backend: str | None = None,
) -> None:
    """Write the products of ``tensors`` and one factor to ``targets``.

    Args:
        targets: one for each tensor, of its shape, strides, dtype and device, in other memory.
        tensors: of any float dtypes and devices, each given once.
        factor, backend: as for ``scale_tensors_``.

    Raises:
        RuntimeError: as ``scale_tensors_``.
        ValueError: ``backend`` is unknown, or a target does not fit its tensor.
    """
    sources = list(tensors)
    check_backend("scale_tensors_into", backend, None)
    factors = _factors_of(factor, sources)
    if not factors:
        return
    by, inv_scale = factors[0]
    dispatch(
        "scale_tensors_into",
        backend,
        None,
        lambda b: b.gather(sources, TENSORS).scale_into(targets, by, inv_scale=inv_scale),
    )
    for more, power in factors[1:]:
        _scale(list(targets), more, power, backend)


def _scale(sources: list[Tensor], by: float, inv_scale: Tensor | None, backend: str | None) -> None:
    dispatch(
        "scale_tensors_",
        backend,
        None,
        lambda b: b.gather(sources, TENSORS).scale(by, inv_scale=inv_scale),
    )


def _factors_of(
    factor: float | Tensor, sources: Sequence[Tensor]
) -> list[tuple[float, Tensor | None]]:
    """Split a factor for ``GradList.scale``: pairs of a number up to 1, and a power of two.

    A list writes nothing for a factor of 1 or more, because a clip never enlarges.
    """
    if not sources:
        return []
    device = sources[0].device
    if isinstance(factor, Tensor):
        return [(1.0, factor.detach().to(device, torch.float32).reshape(()))]
    number = number_of(factor)
    if not number > 1:
        return [(number, None)]
    if math.isinf(number):
        return [(1.0, torch.full((), number, dtype=torch.float32, device=device))]
    mantissa, exponent = math.frexp(number)
    factors: list[tuple[float, Tensor | None]] = []
    while exponent > 0 or not factors:  # a power of two loses nothing, up to float32's largest
        step = min(exponent, 127)
        power = torch.full((), 2.0**step, dtype=torch.float32, device=device)
        factors.append((1.0 if factors else mantissa, power))
        exponent -= step
    return factors
