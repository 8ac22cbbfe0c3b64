"""Gradients that are not plain dense CPU tensors, through the public functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import oracle
import pytest
import torch
from samples import gradient, parameter, parameters
from torch import Tensor
from torch.nn import utils as stock
from torch.testing._internal.two_tensor import TwoTensor

import fastclip

FREE_BYTES_NEEDED = 12e9
"""The gradient of the largest test, its float64 slices, and room for what else runs."""


class Marked(Tensor):
    """A subclass that holds no data itself."""


def test_complex_gradients_are_clipped(any_tensor_backend: str | None) -> None:
    grads = [gradient((5, 7), torch.complex64), gradient(30, torch.float32)]
    for lazily in (False, True):
        held = parameters([(g.clone().conj() if lazily else g.clone()) for g in grads])
        norm = fastclip.clip_grad_norm_(held, 1.0, backend=any_tensor_backend)
        assert norm.dtype == torch.float32
        assert oracle.is_norm(norm.item(), oracle.total_norm(grads, 2.0), torch.float32)
        coef = torch.tensor(oracle.clip_coef(1.0, norm))
        for p, grad in zip(held, grads, strict=True):
            expected = (grad.conj() if lazily else grad) * coef
            torch.testing.assert_close(p.grad, expected, rtol=0, atol=0)
    wide = [gradient(9, torch.complex128), *grads]
    assert fastclip.get_total_norm(wide, backend=any_tensor_backend).dtype == torch.float64


def test_complex_gradients_cannot_be_clamped(any_tensor_backend: str | None) -> None:
    held = parameters([torch.full((3,), 5.0), gradient(3, torch.complex64)])
    with pytest.raises(NotImplementedError) as theirs:
        stock.clip_grad_value_(held[1:], 1.0)
    with pytest.raises(NotImplementedError) as ours:
        fastclip.clip_grad_value_(held, 1.0, backend=any_tensor_backend)
    assert str(ours.value) == str(theirs.value)
    assert held[0].grad is not None
    assert held[0].grad.tolist() == [5, 5, 5]


@pytest.mark.parametrize("norm_type", (2.0, 1.0, math.inf))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_sparse_gradients_work_on_every_torch(
    any_tensor_backend: str | None, dtype: torch.dtype, norm_type: float
) -> None:
    embedding = torch.nn.Embedding(20, 4, sparse=True, dtype=dtype)
    embedding(torch.tensor([3, 3, 7, 19])).pow(2).sum().backward()
    assert embedding.weight.grad is not None
    assert not embedding.weight.grad.is_coalesced()
    dense = embedding.weight.grad.coalesce().to_dense()
    other = torch.nn.Parameter(torch.zeros(5, dtype=dtype))
    other.grad = gradient(5, dtype)
    grads = [dense, other.grad.clone()]
    held = [embedding.weight, other]
    norm = fastclip.clip_grad_norm_(held, 0.5, norm_type, backend=any_tensor_backend)
    assert oracle.is_norm(norm.item(), oracle.total_norm(grads, norm_type), norm.dtype)
    assert embedding.weight.grad.layout is torch.sparse_coo
    coef = oracle.clip_coef(0.5, norm)
    # The terms of uncoalesced values are rounded one by one, twice for the index that repeats.
    torch.testing.assert_close(
        embedding.weight.grad.to_dense().double(), dense.double() * coef, rtol=2**-7, atol=0
    )


def test_tensor_subclasses_keep_their_type(any_tensor_backend: str | None) -> None:
    grad = gradient((4, 5), torch.float32)
    held = parameter(grad.clone().as_subclass(Marked))
    assert type(held.grad) is Marked
    norm = fastclip.clip_grad_norm_([held], 1.0, backend=any_tensor_backend)
    assert type(held.grad) is Marked
    assert oracle.is_norm(norm.item(), oracle.total_norm([grad], 2.0), torch.float32)
    expected = oracle.scaled(grad, oracle.clip_coef(1.0, norm.as_subclass(Tensor)))
    assert oracle.equal(held.grad.as_subclass(Tensor), expected)


def test_wrapper_subclasses_are_clipped_by_their_own_operations(
    any_tensor_backend: str | None,
) -> None:
    first, second = gradient(6, torch.float32, 1), gradient(6, torch.float32, 2)
    held = torch.nn.Parameter(TwoTensor(torch.zeros(6), torch.zeros(6)))
    held.grad = TwoTensor(first.clone(), second.clone())
    fastclip.clip_grad_norm_([held], 1.0, backend=any_tensor_backend)
    assert isinstance(held.grad, TwoTensor)
    for part, whole in ((held.grad.a, first), (held.grad.b, second)):
        norm = fastclip.get_total_norm([whole])
        assert oracle.equal(part, oracle.scaled(whole, oracle.clip_coef(1.0, norm)))


class Narrow(Tensor):
    """A wrapper whose norm takes no ``dtype=``, as those of some devices do not."""

    held: Tensor

    def __new__(cls, held: Tensor) -> Narrow:
        made = cast("Narrow", Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype))
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # pyright: ignore
        cls,
        func: torch._ops.OpOverload,
        types: tuple[type, ...],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if "dtype" in (kwargs or {}):
            raise NotImplementedError(f"{func} with dtype=")
        plain = [arg.held if isinstance(arg, Narrow) else arg for arg in args]
        result = func(*plain, **(kwargs or {}))
        return args[0] if func._schema.is_mutable else result


@pytest.mark.parametrize("norm_type", (2.0, 1.0, 3.0, math.inf, 0.0))
@pytest.mark.parametrize("foreach", (None, False))
def test_a_norm_without_dtype_is_converted(
    any_tensor_backend: str | None, norm_type: float, foreach: bool | None
) -> None:
    if any_tensor_backend is None and foreach is False:
        pytest.skip("foreach=False is the reference backend")
    values = gradient((4, 5), torch.float32)
    held = torch.nn.Parameter(torch.zeros(4, 5))
    grad = Narrow(values.clone())
    held.grad = grad
    other = parameter(gradient(7, torch.float32, 1))
    expected = oracle.total_norm([values, gradient(7, torch.float32, 1)], norm_type)
    norm = fastclip.clip_grad_norm_(
        [held, other], 0.5, norm_type, foreach=foreach, backend=any_tensor_backend
    )
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(expected, rel=1e-6)  # summed in float32 by torch
    assert oracle.equal(grad.held, oracle.scaled(values, oracle.clip_coef(0.5, norm)))
    total = fastclip.get_total_norm([Narrow(values)], norm_type, backend=any_tensor_backend)
    assert total.item() == pytest.approx(oracle.total_norm([values], norm_type), rel=1e-6)


def test_an_error_of_a_norm_is_not_swallowed(any_tensor_backend: str | None) -> None:
    class Broken(Narrow):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN206
            raise NotImplementedError("no operation at all")

    with pytest.raises(NotImplementedError, match="no operation at all"):
        fastclip.get_total_norm([Broken(torch.ones(3))], backend=any_tensor_backend)


def test_meta_gradients_work(any_tensor_backend: str | None) -> None:
    held = parameters([torch.ones(3, device="meta"), torch.ones(4, 5, device="meta")])
    norm = fastclip.clip_grad_norm_(held, 1.0, backend=any_tensor_backend)
    expected = stock.clip_grad_norm_(held, 1.0)
    assert (norm.shape, norm.dtype, norm.device) == (
        expected.shape,
        expected.dtype,
        expected.device,
    )
    fastclip.clip_grads_with_norm_(held, 1.0, norm, backend=any_tensor_backend)
    fastclip.clip_grad_value_(held, 1.0, backend=any_tensor_backend)


GAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns": lambda base: base[:, ::2],
    "rows": lambda base: base[3:17:2],
    "transposed": lambda base: base.t()[1:],
}


@pytest.mark.parametrize("kind", list(GAPS))
def test_gradients_with_gaps_leave_the_gaps_alone(
    any_tensor_backend: str | None, kind: str
) -> None:
    base = gradient((20, 30), torch.float32)
    kept = base.clone()
    norm = fastclip.clip_grad_norm_([parameter(GAPS[kind](base))], 1.0, backend=any_tensor_backend)
    grad = GAPS[kind](kept)
    assert oracle.is_norm(norm.item(), oracle.total_norm([grad], 2.0), torch.float32)
    expected = oracle.scaled(grad, oracle.clip_coef(1.0, norm))
    assert oracle.equal(GAPS[kind](base), expected)
    GAPS[kind](base).copy_(grad)
    assert torch.equal(base, kept)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64))
def test_misaligned_and_permuted_gradients(backend: str | None, dtype: torch.dtype) -> None:
    base = gradient(40_000, dtype)
    kept = base.clone()

    def views(of: Tensor) -> list[Tensor]:
        return [of[1:334], of[337:20_337].view(100, 200).t(), of[20_339:20_342], of[20_343:]]

    norm = fastclip.clip_grad_norm_(parameters(views(base)), 1.0, backend=backend)
    assert oracle.is_norm(norm.item(), oracle.total_norm(views(kept), 2.0), norm.dtype)
    coef = oracle.clip_coef(1.0, norm)
    for view, grad in zip(views(base), views(kept), strict=True):
        assert oracle.equal(view, oracle.scaled(grad, coef))
    between = [0, 334, 335, 336, 20_337, 20_338, 20_342]
    assert torch.equal(base[between], kept[between])


def holder_of(grad: Tensor) -> Tensor:
    """Return what counts as a parameter, for a gradient that no leaf may have."""
    holder: object = SimpleNamespace(grad=grad)
    return cast("Tensor", holder)


@pytest.mark.parametrize("max_norm", (0.1, 1e9))
def test_inference_gradients_raise_torchs_error_before_any_write(
    any_tensor_backend: str | None, max_norm: float
) -> None:
    with torch.inference_mode():
        frozen, torchs = torch.ones(3), torch.ones(3)
    with pytest.raises(RuntimeError) as theirs:
        stock.clip_grad_norm_([holder_of(torchs)], 1.0)
    plain = torch.full((2,), 5.0)
    held = [parameter(plain), holder_of(frozen)]
    with pytest.raises(RuntimeError) as ours:
        fastclip.clip_grad_norm_(held, max_norm, backend=any_tensor_backend)
    assert str(ours.value) == str(theirs.value)
    assert plain.tolist() == [5, 5]
    assert frozen.tolist() == [1, 1, 1]


def test_inference_gradients_are_clipped_in_inference_mode(any_tensor_backend: str | None) -> None:
    with torch.inference_mode():
        grad = torch.tensor([3.0, 4.0])
        norm = fastclip.clip_grad_norm_([holder_of(grad)], 1.0, backend=any_tensor_backend)
        assert norm.item() == 5
        torch.testing.assert_close(grad, torch.tensor([0.6, 0.8]))


def test_native_says_every_reason_it_cannot_run() -> None:
    if fastclip.backend_report()["native"]:
        pytest.skip("native cannot run here at all")
    held = parameters([gradient(3, torch.complex64), gradient((8, 8), torch.float32)[:, ::2]])
    with pytest.raises(RuntimeError) as error:
        fastclip.clip_grad_norm_(held, 1.0, backend="native")
    message = str(error.value)
    assert message.startswith('clip_grad_norm_: backend "native" cannot run this: ')
    assert "complex64" in message
    assert "gaps" in message


def free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


@pytest.mark.big
def test_more_than_two_to_the_31_elements_on_reference() -> None:
    count = 2**31 + 5
    free = free_bytes()
    if free < FREE_BYTES_NEEDED:
        pytest.skip(f"needs {FREE_BYTES_NEEDED:.0f} free bytes of memory (got {free:.0f})")
    grad = torch.full((count,), 0.5, dtype=torch.bfloat16)
    norm = fastclip.clip_grad_norm_([parameter(grad)], 1000.0, backend="reference")
    assert oracle.is_norm(norm.item(), 0.5 * math.sqrt(count), torch.float32)
    expected = oracle.scaled(
        torch.tensor([0.5], dtype=torch.bfloat16), oracle.clip_coef(1000.0, norm)
    )
    ends = torch.cat([grad[:3], grad[2**31 - 2 :]])
    assert ends.unique().tolist() == expected.tolist()
