"""Sparse gradients: terms of one index are summed where the sum is needed, and in float64."""

from __future__ import annotations

from types import SimpleNamespace

import oracle
import pytest
import torch
from samples import gradient, parameter, parameters, sparse_gradient, versions
from torch import Tensor

import fastclip
from fastclip import GradClipper


def terms(values: Tensor, indices: list[int], size: int = 4) -> Tensor:
    """Return an uncoalesced sparse gradient: a term for each index."""
    shape = (size, *values.shape[1:])
    return torch.sparse_coo_tensor(torch.tensor([indices]), values, shape, check_invariants=True)


CASES = {
    "bfloat16": (torch.full((1000,), 1.0, dtype=torch.bfloat16), 1000.0),
    "float16": (torch.full((2,), 40000.0, dtype=torch.float16), 80000.0),
    "float16 rows": (torch.full((2, 1), 40000.0, dtype=torch.float16), 80000.0),
    "float32": (torch.full((2,), 2e38), None),
    "float64": (torch.full((3,), 0.1, dtype=torch.float64), 0.1 + 0.1 + 0.1),
}


@pytest.mark.parametrize("name", CASES)
def test_repeated_indices_are_summed_in_float64(any_tensor_backend: str | None, name: str) -> None:
    values, total = CASES[name]
    expected = float("inf") if total is None else total  # above float32's largest value, as ever
    grads = [terms(values.clone(), [2] * len(values)) for _ in range(3)]
    first, second, third = (parameter(grad) for grad in grads)
    norm = fastclip.get_total_norm(grads[:1], backend=any_tensor_backend)
    assert oracle.is_norm(norm.item(), expected, norm.dtype)
    if total is None:
        return
    for held, clip in (
        (first, lambda p: fastclip.clip_grad_norm_(p, 1.0, backend=any_tensor_backend)),
        (second, lambda p: GradClipper([p], 1.0, backend=any_tensor_backend).clip_()),
        (third, lambda p: fastclip.clip_grad_norm_(p, 1.0, 1.0, backend=any_tensor_backend)),
    ):
        norm = clip(held)
        assert oracle.is_norm(norm.item(), expected, norm.dtype)
        assert held.grad is not None
        assert not held.grad.is_coalesced()
        left = held.grad._values().double().sum().item()
        # The coefficient is rounded, and so is each term, to 8 bits at the worst.
        assert left == pytest.approx(min(1.0, expected), rel=2**-8)


def test_a_float32_sum_beyond_float32_does_not_hide_the_rest(
    any_tensor_backend: str | None,
) -> None:
    # 3e38 + 3e38 - 3e38 is inf in float32.
    grad = terms(torch.tensor([3e38, 3e38, -3e38]), [1, 1, 1])
    norm = fastclip.get_total_norm([grad], backend=any_tensor_backend)
    assert norm.item() == torch.tensor(3e38).item()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
def test_value_clips_the_coalesced_values(
    any_tensor_backend: str | None, dtype: torch.dtype
) -> None:
    values = torch.tensor([0.75, 0.75, -0.25, -9.0, 0.5, -0.5], dtype=dtype)
    grad = terms(values, [1, 1, 2, 0, 3, 3])
    held = parameter(grad)
    [before] = versions([grad])
    assert fastclip.clip_grad_value_(held, 1.0, backend=any_tensor_backend) is None
    assert held.grad is grad
    assert grad.layout is torch.sparse_coo
    assert grad.to_dense().tolist() == [-1.0, 1.0, -0.25, 0.0]
    assert versions([grad]) > [before]


@pytest.mark.filterwarnings("ignore:Sparse CS:UserWarning", "ignore:Sparse BS:UserWarning")
@pytest.mark.parametrize("kind", ("coalesced", "csr", "csc", "bsr"))
def test_value_clips_values_in_other_layouts(any_tensor_backend: str | None, kind: str) -> None:
    dense = gradient((4, 6), torch.float32).relu() * 3
    made = {
        "coalesced": dense.to_sparse,
        "csr": dense.to_sparse_csr,
        "csc": dense.to_sparse_csc,
        "bsr": lambda: dense.to_sparse_bsr((2, 2)),
    }
    grad = made[kind]()
    held = SimpleNamespace(grad=grad)  # torch lets no parameter have a gradient in a csr layout
    fastclip.clip_grad_value_([held], 0.5, backend=any_tensor_backend)  # pyright: ignore
    assert oracle.equal(grad.to_dense(), oracle.clamped(dense, 0.5))
    assert dense.max() > 0.5


def test_values_that_would_fill_a_sparse_gradient_raise(any_tensor_backend: str | None) -> None:
    for clip_value in (-1.0, float("nan")):
        for grad in (sparse_gradient(), sparse_gradient().coalesce()):
            held = [*parameters([torch.full((3,), 5.0)]), parameter(grad)]
            before = grad.to_dense()
            with pytest.raises(ValueError, match="clip_value must not be negative or nan"):
                fastclip.clip_grad_value_(held, clip_value, backend=any_tensor_backend)
            assert held[0].grad is not None
            assert held[0].grad.tolist() == [5, 5, 5]
            assert torch.equal(grad.to_dense(), before)


def test_a_limit_that_does_not_fit_raises_before_the_first_write(
    any_tensor_backend: str | None,
) -> None:
    sparse = terms(torch.full((2,), 4e4, dtype=torch.float16), [1, 1])
    held = [*parameters([torch.full((3,), 1e9)]), parameter(sparse)]
    with pytest.raises(RuntimeError, match="cannot be converted"):
        fastclip.clip_grad_value_(held, 1e6, backend=any_tensor_backend)
    assert held[0].grad is not None
    assert held[0].grad.tolist() == [1e9] * 3
