"""Gradients to test with, and parameters that hold them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import oracle
import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Sizes around those that code counts in: vectors, warps, gathered lists, chunks of 16 Ki elements,
# slices.
SIZES = (0, 1, 2, 31, 33, 255, 4097, 16383, 16385, 32767, 32769)


def gradient(size: int | tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return normally distributed values, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size,) if isinstance(size, int) else size
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def awkward_gradients(dtype: torch.dtype) -> list[Tensor]:
    """Return gradients of all SIZES, a matrix, its transpose, a 0-dim one and one with gaps."""
    seeds = itertools.count()
    grads = [gradient(size, dtype, next(seeds)) for size in SIZES]
    matrix = gradient((37, 41), dtype, next(seeds))
    gaps = gradient((64, 66), dtype, next(seeds))[:, ::2]
    return [*grads, matrix, matrix.clone().t(), gradient((), dtype, next(seeds)), gaps]


def dense_gradients(dtype: torch.dtype) -> list[Tensor]:
    """Return the awkward gradients that every backend takes: those without gaps."""
    return awkward_gradients(dtype)[:-1]


def sparse_gradient() -> Tensor:
    """Return an uncoalesced sparse gradient: one of its indices repeats."""
    values = gradient((4, 5), torch.float32)
    return torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 7, 3]]), values, (9, 5), check_invariants=True
    )


def parameter(grad: Tensor | None, like: Tensor | None = None) -> Tensor:
    """Return a parameter whose ``.grad`` is exactly ``grad``."""
    shape = torch.Size([1]) if grad is None else grad.shape
    dtype = torch.float32 if grad is None else grad.dtype
    device = "cpu" if grad is None else grad.device
    held = torch.zeros(shape, dtype=dtype, device=device) if like is None else like
    held.requires_grad_()
    held.grad = grad
    return held


def parameters(grads: Iterable[Tensor | None]) -> list[Tensor]:
    """Return one parameter for each gradient."""
    return [parameter(grad) for grad in grads]


def assert_scaled(
    held: Sequence[Tensor], grads: Sequence[Tensor], max_norm: float, norm: Tensor
) -> None:
    """Check that parameters hold ``grads`` scaled by the coefficient of a norm."""
    coef = oracle.clip_coef(max_norm, norm)
    for p, grad in zip(held, grads, strict=True):
        assert p.grad is not None
        assert oracle.equal(p.grad.cpu(), oracle.scaled(grad, coef))


def assert_clipped(
    held: Sequence[Tensor],
    grads: Sequence[Tensor],
    max_norm: float,
    norm: Tensor,
    norm_type: float = 2.0,
) -> None:
    """Check a clip of ``grads``, which are on the CPU: the norm that it returned, and the scale."""
    assert oracle.is_norm(norm.item(), oracle.total_norm(grads, norm_type), norm.dtype)
    assert_scaled(held, grads, max_norm, norm.cpu())


def copies(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of gradients, with the same values and strides."""
    return [
        torch.empty_strided(g.shape, g.stride(), dtype=g.dtype, device=g.device).copy_(g)
        for g in grads
    ]


def versions(grads: Sequence[Tensor]) -> list[int]:
    """Return the version counter of each gradient."""
    return [grad._version for grad in grads]


def peak_growth(run: Callable[[], object]) -> int:
    """Return by how many bytes the resident memory grew at its peak during a second ``run()``."""
    run()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to what is resident now
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)
