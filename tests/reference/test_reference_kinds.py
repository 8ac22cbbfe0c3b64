"""The reference backend on tensors of every kind that torch has, and on large ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import oracle
import pytest
import torch
from reference_calls import clamp_, scale_, tensor_norms, total_norm
from samples import gradient, parameters, peak_growth, sparse_gradient
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import fastclip
from fastclip.backends.reference import upcast
from fastclip.backends.tensors import clip_coefficient, unique_gradients

MEMORY_LIMIT = 256 * 2**20
SUMMED_NORM_TYPES = (2.0, 1.0, math.inf, 3.5)


@pytest.fixture(autouse=True)
def _without_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_norm(actual: Tensor, tensors: list[Tensor], norm_type: float) -> None:
    expected = oracle.total_norm(tensors, norm_type)
    value = actual.item()
    assert actual.dim() == 0
    assert oracle.is_norm(value, expected, actual.dtype), (value, expected, norm_type)


class Marked(Tensor):
    """A subclass that holds no data itself."""


def marked(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Marked)


def dense() -> Tensor:
    return gradient((30, 40), torch.float32)


KINDS: dict[str, Callable[[], Tensor]] = {
    "permuted": lambda: dense().t(),
    "gaps": lambda: dense()[::2, ::3],
    "channels_last": lambda: gradient((2, 3, 4, 5), torch.float32).to(
        memory_format=torch.channels_last
    ),
    "misaligned": lambda: dense().view(-1)[1:],
    "sparse": sparse_gradient,
    "coalesced": lambda: sparse_gradient().coalesce(),
    "csr": lambda: dense().relu().to_sparse_csr(),
    "conj": lambda: gradient((30, 40), torch.complex64).conj(),
    "neg": lambda: gradient((30, 40), torch.complex64).conj().imag,
    "subclass": lambda: marked(dense()),
    "parameter": lambda: torch.nn.Parameter(dense()),
    "wrapper_subclass": lambda: TwoTensor(dense(), dense()),
}
READ_ONLY_KINDS: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: dense()[:1].expand(50, 40),
    "overlapping_itself": lambda: dense().view(-1).as_strided((50, 20), (5, 1)),
    "zero_tensor": lambda: torch._efficientzerotensor((3, 4)),  # pyright: ignore[reportPrivateImportUsage]
}


@pytest.mark.parametrize("norm_type", SUMMED_NORM_TYPES)
@pytest.mark.parametrize("kind", [*KINDS, *READ_ONLY_KINDS])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_norm_of_every_kind_of_tensor(kind: str, norm_type: float) -> None:
    tensor = (KINDS | READ_ONLY_KINDS)[kind]()
    others = [gradient(10, torch.float32), gradient(70_000, torch.float32)]
    plain = tensor.a if isinstance(tensor, TwoTensor) else tensor
    actual = total_norm([*others, tensor], norm_type)
    assert_norm(actual, [*others, plain], norm_type)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_scale_of_every_kind_of_tensor(kind: str) -> None:
    tensor = KINDS[kind]()
    plain = tensor.a if isinstance(tensor, TwoTensor) else tensor
    before = oracle.values_of(plain).copy()
    scale_([torch.ones(3), tensor], torch.tensor(0.25))
    assert tensor.layout == KINDS[kind]().layout
    assert type(tensor) is type(KINDS[kind]())
    assert oracle.equal(plain, before / 4)
    assert tensor._version > 0
    scale_([tensor], torch.tensor(1.0))
    assert oracle.equal(plain, before / 4)


def test_slices_cover_a_tensor_with_permuted_gaps_once() -> None:
    grad = gradient((6, 17, 12, 40), torch.float32).permute(2, 0, 3, 1)[:, 1:, ::2]
    for size in (1, 7, 100, 1000, grad.numel()):
        pieces = list(upcast.slices_of(grad, size))
        assert max(piece.numel() for piece in pieces) <= size
        together = torch.cat([piece.reshape(-1) for piece in pieces])
        assert torch.equal(together.sort().values, grad.reshape(-1).sort().values)


@pytest.mark.parametrize("norm_type", SUMMED_NORM_TYPES)
@pytest.mark.parametrize("slice_size", (1, 40, 100, 1000))
def test_every_way_of_slicing_gives_the_norm(
    monkeypatch: pytest.MonkeyPatch, slice_size: int, norm_type: float
) -> None:
    monkeypatch.setattr(upcast, "CPU_SLICE_SIZE", slice_size)
    monkeypatch.setattr(upcast, "MAX_SLICE_SIZE", slice_size)
    monkeypatch.setattr(upcast, "GATHERED_SIZE", 40)
    monkeypatch.setattr(upcast, "BATCH_SIZE", max(slice_size, 40))
    sizes = (1, 39, 40, 41, 3, 99, 100, 101, 1, 1, 30, 30, 30, 30, 500, 7)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.complex64):
        grads = [gradient(size, dtype, size) for size in sizes]
        grads += [gradient((9, 10), dtype)[:, ::3], gradient((30, 41), dtype).t()]
        assert_norm(total_norm(grads, norm_type), grads, norm_type)
        for norm, grad in zip(tensor_norms(grads, norm_type), grads, strict=True):
            assert_norm(norm, [grad], norm_type)


def test_meta_tensors_stay_on_meta() -> None:
    grads = [torch.ones(3, device="meta"), torch.ones(2, device="meta", dtype=torch.bfloat16)]
    norm = total_norm(grads, 2.0)
    assert (norm.device.type, norm.dtype) == ("meta", torch.float32)
    scale_(grads, clip_coefficient(1.0, norm))
    clamp_(grads, 1.0)
    assert len(unique_gradients(grads)) == 2


def test_fake_tensors_are_never_read() -> None:
    with FakeTensorMode():
        grads = [torch.ones(3), torch.ones(2, dtype=torch.float16)]
        norm = total_norm(unique_gradients(grads), 2.0)
        scale_(grads, clip_coefficient(1.0, norm))
        clamp_(grads, 1.0)
    assert (norm.shape, norm.dtype) == ((), torch.float32)


def test_under_vmap_each_sample_has_its_norm() -> None:
    samples = gradient((5, 3, 4), torch.float32)

    def clipped(sample: Tensor) -> tuple[Tensor, Tensor]:
        grads = unique_gradients([sample.clone()])
        norm = total_norm(grads, 2.0)
        scale_(grads, clip_coefficient(1.0, norm))
        return grads[0], norm

    scaled, norms = torch.vmap(clipped)(samples)
    for sample, result, norm in zip(samples, scaled, norms, strict=True):
        assert_norm(norm, [sample], 2.0)
        torch.testing.assert_close(result, sample * (1 / (norm + 1e-6)).clamp(max=1))


def with_gaps() -> Tensor:
    return torch.ones(5000, 10_000, dtype=torch.bfloat16)[:, 1:]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(48_000_000),
        with_gaps,
        lambda: torch.ones(20_000_000, dtype=torch.complex64),
        lambda: marked(torch.ones(48_000_000)),
    ],
    ids=["dense", "gaps", "complex", "subclass"],
)
def test_norm_of_a_large_tensor_takes_little_memory(make: Callable[[], Tensor]) -> None:
    grad = make()
    # Some megabytes are allowed: the allocator keeps freed blocks, and its own tables grow.
    limit = MEMORY_LIMIT + 8 * 2**20
    assert peak_growth(lambda: total_norm([grad], 2.0)) <= limit
    assert total_norm([grad], 2.0).item() == np.float32(math.sqrt(grad.numel()))


def test_views_of_one_address_and_strides_but_other_shapes_are_two_gradients() -> None:
    base = torch.ones(4, 4)
    rows, columns = base[:2, :3], base[:3, :2]
    assert rows.stride() == columns.stride()
    assert len(unique_gradients([rows, columns, base[:2, :3]])) == 2
    held = parameters([rows, columns])
    assert fastclip.clip_grad_norm_(held, 1.0).item() == pytest.approx(12**0.5)


def test_default_device_is_not_where_slices_go() -> None:
    grad = gradient(70, torch.float32)
    expected = total_norm([grad], 2.0)
    with torch.device("meta"):
        assert torch.equal(total_norm([grad], 2.0), expected)
