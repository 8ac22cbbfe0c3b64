"""get_tensor_norms, scale_tensors_ and scale_tensors_into against the float64 oracle."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from samples import FLOAT_DTYPES
from torch import Tensor

import fastclip

FACTORS = (0.3, 1.0, 3.0, 65536.5, -2.0, 0.0, math.inf, math.nan)


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (0, 1, 31, 33, 5000)
    made = [torch.randn(n, generator=generator) for n in sizes]
    return [t.to(dtype) for dtype in FLOAT_DTYPES for t in made] + [torch.ones(3, 4).t()]


@pytest.mark.parametrize("norm_type", (2.0, 1.0, math.inf, 3.0))
def test_norms_of_all_and_of_each(backend: str | None, norm_type: float) -> None:
    given = tensors()
    before = [t.clone() for t in given]
    total_norm, norms = fastclip.get_tensor_norms([*given, given[1]], norm_type, backend=backend)
    wanted = oracle.total_norm([*given, given[1]], norm_type)
    assert oracle.is_norm(total_norm.item(), wanted, torch.float32)
    assert norms.shape == (len(given) + 1,) and norms.dtype == total_norm.dtype
    for norm, tensor in zip(norms, [*given, given[1]], strict=True):
        assert oracle.is_norm(norm.item(), oracle.tensor_norm(tensor, norm_type), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("is_tensor", (False, True))
def test_products(backend: str | None, factor: float, is_tensor: bool) -> None:
    given = tensors()
    before = [t.clone() for t in given]
    by = torch.tensor(factor) if is_tensor else factor
    fastclip.scale_tensors_(given, by, backend=backend)
    rounded = float(torch.tensor(factor)) if is_tensor else factor
    for tensor, old in zip(given, before, strict=True):
        assert oracle.equal(tensor, oracle.scaled(old, rounded))
        assert tensor.stride() == old.stride()
    targets = [torch.empty_like(t).fill_(7) for t in before]
    sources = [t.clone() for t in before]
    fastclip.scale_tensors_into(targets, sources, by, backend=backend)
    for target, source, old in zip(targets, sources, before, strict=True):
        assert oracle.equal(target, oracle.scaled(old, rounded))
        assert torch.equal(source, old)


@pytest.mark.parametrize(
    ("value", "factor"), [(1e-38, 2e38), (1e-30, 2.0**127), (1e-200, 1e300), (1e-300, 1.5e308)]
)
def test_factors_beyond_float32s_range(backend: str | None, value: float, factor: float) -> None:
    dtype = torch.float32 if value > 1e-45 else torch.float64
    tensor, target = torch.full((3,), value, dtype=dtype), torch.zeros(3, dtype=dtype)
    expected = tensor.double() * factor
    fastclip.scale_tensors_into([target], [tensor], factor, backend=backend)
    fastclip.scale_tensors_([tensor], factor, backend=backend)
    torch.testing.assert_close(tensor.double(), expected, rtol=2.0**-23, atol=0)
    assert torch.equal(target, tensor)


def test_without_tensors() -> None:
    total_norm, norms = fastclip.get_tensor_norms([])
    assert total_norm.item() == 0 and norms.shape == (0,)
    fastclip.scale_tensors_([], 2.0)
    fastclip.scale_tensors_into([], [], 2.0)


def test_a_tensor_given_twice_is_scaled_once(backend: str | None) -> None:
    tensor = torch.ones(3)
    fastclip.scale_tensors_([tensor, tensor], 3.0, backend=backend)
    assert tensor.tolist() == [3.0] * 3


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="scale_tensors_: backend must be one of"):
        fastclip.scale_tensors_([torch.ones(1)], 2.0, backend="cuda")
    with pytest.raises(ValueError, match="get_tensor_norms: backend must be one of"):
        fastclip.get_tensor_norms([torch.ones(1)], backend="cuda")
    source, targets = torch.ones(3), [torch.ones(4)]
    with pytest.raises(ValueError, match="target 0 must have the dtype, shape, strides and device"):
        fastclip.scale_tensors_into(targets, [source], 2.0)
    expanded = torch.ones(1).expand(5)
    with pytest.raises(RuntimeError):
        fastclip.scale_tensors_([torch.ones(2), expanded], 2.0)
    assert targets[0].tolist() == [1.0] * 4
