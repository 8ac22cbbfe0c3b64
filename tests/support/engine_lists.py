"""What tests of lists over every backend share: gradients, lists and checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import oracle
import torch
from list_cases import factor_of
from samples import gradient, parameters
from torch import Tensor

from fastclip.backends import TRITON
from fastclip.backends.base import Backend, GradList
from fastclip.backends.request import PARAMETERS, Kind

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INV_SCALES = (None, 1.0, 0.125, 3.0, -0.5)


def mixed() -> list[Tensor]:
    """Return gradients around small tensors and chunks, of every dtype in turn."""
    sizes = (0, 1, 5, 33, 1025, 4097, 16385, 32771)
    return [gradient(size, DTYPES[i % 4], i) for i, size in enumerate(sizes)]


def narrow() -> list[Tensor]:
    """Return the same without float64, whose norm is float32."""
    return [gradient(g.numel(), DTYPES[i % 3], i) for i, g in enumerate(mixed())]


def some(dtype: torch.dtype) -> list[Tensor]:
    return [gradient(size, dtype, size) for size in (0, 3, 1100, 17000)]


MIXED = {"mixed": mixed, "narrow": narrow}
LISTS = {**MIXED, **{str(dtype)[6:]: lambda dtype=dtype: some(dtype) for dtype in DTYPES}}


def lists_of(engine: Backend) -> dict[str, Callable[[], list[Tensor]]]:
    """Return the lists to go through; the interpreter takes a second for a dozen operations."""
    return MIXED if engine is TRITON else LISTS


def list_of(engine: Backend, grads: Sequence[Tensor], kind: Kind = PARAMETERS) -> GradList:
    sources = parameters(grads) if kind is PARAMETERS else list(grads)
    return engine.gather(sources, kind)


def norm_dtype(grads: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(g.dtype == torch.float64 for g in grads) else torch.float32


def assert_written(
    grads: Sequence[Tensor], before: Sequence[Tensor], coef: float, inv_scale: float | None = None
) -> None:
    """Check that gradients are multiples, or, for factors that are 1, what they were."""
    is_idle = coef >= 1 and inv_scale in (None, 1.0)
    factor = factor_of(coef, inv_scale, norm_dtype(before))
    for grad, old in zip(grads, before, strict=True):
        expected = oracle.values_of(old) if is_idle else oracle.scaled(old, factor)
        assert oracle.equal(grad, expected)


def assert_unchanged(grads: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for grad, old in zip(grads, before, strict=True):
        assert oracle.equal(grad, oracle.values_of(old))
