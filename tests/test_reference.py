"""The reference backend's functions against the oracle, and against torch where torch is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import oracle
import pytest
import torch
from samples import FLOAT_DTYPES, awkward_gradients, copies, gradient, peak_growth, versions
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from fastclip.backends import reference, upcast

MEMORY_LIMIT = 256 * 2**20
ALL_NORM_TYPES = (2.0, 1.0, math.inf, 3.5, 0.5, 0.0, -1.0, -2.5, -math.inf, math.nan)
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
    """A subclass without data of its own."""


def marked(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Marked)


# total_norm: numbers


@pytest.mark.parametrize("norm_type", ALL_NORM_TYPES)
@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, torch.complex64, torch.complex128])
def test_total_norm_of_awkward_shapes(dtype: torch.dtype, norm_type: float) -> None:
    grads = awkward_gradients(dtype)
    assert_norm(reference.total_norm(grads, norm_type), grads, norm_type)
    assert_norm(reference.total_norm(grads, norm_type, foreach=False), grads, norm_type)


@pytest.mark.parametrize("norm_type", (1.0, 2.0, math.inf))
@pytest.mark.parametrize("kind", ("normal", "one_signed", "growing"))
def test_norm_does_not_drift_over_ten_million_elements(kind: str, norm_type: float) -> None:
    grad = gradient(10_000_019, torch.float32)
    if kind == "one_signed":
        grad.abs_().add_(1)
    elif kind == "growing":
        grad = torch.linspace(0, 3, 10_000_019)
    assert_norm(reference.total_norm([grad], norm_type), [grad], norm_type)


@pytest.mark.parametrize("norm_type", (1.0, 2.0))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("value", (0.1, 0.7, 1 / 3, -0.001))
def test_norm_does_not_drift_on_constants(
    value: float, dtype: torch.dtype, norm_type: float
) -> None:
    grad = torch.full((10_000_019,), value, dtype=dtype)
    expected = abs(grad[0].item()) * grad.numel() ** (1 / norm_type)
    actual = reference.total_norm([grad], norm_type)
    assert oracle.is_norm(actual.item(), expected, actual.dtype)


@pytest.mark.parametrize("norm_type", (1.0, 2.0, math.inf))
@pytest.mark.parametrize("size", (1, 33, 70_000, 300_000))
@pytest.mark.parametrize("scale", (1e20, 1e38, 1e-25, 1e-38, 1e-44))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_norm_is_exact_over_the_whole_finite_range(
    dtype: torch.dtype, scale: float, size: int, norm_type: float
) -> None:
    grad = (gradient(size, torch.float64).clamp(-3, 3) * scale).to(dtype)
    assert_norm(reference.total_norm([grad], norm_type), [grad], norm_type)


def test_tiny_and_huge_values_in_one_list() -> None:
    grads = [torch.full((1000,), 1e-30), torch.full((100,), 2e25), torch.zeros(50)]
    assert_norm(reference.total_norm(grads, 2.0), grads, 2.0)
    assert_norm(reference.total_norm(grads[:1] + grads[2:], 2.0), grads[:1] + grads[2:], 2.0)


def test_float16_norm_beyond_float16() -> None:
    grads = [torch.full((1_000_000,), 100.0, dtype=torch.float16)]
    assert reference.total_norm(grads, 2.0).item() == 1e5


def test_norm_beyond_float32_is_inf_and_fits_float64() -> None:
    grads = [torch.full((100,), 3e38)]
    assert reference.total_norm(grads, 2.0).item() == math.inf
    wide = reference.total_norm(grads, 2.0, dtype=torch.float64)
    assert wide.dtype == torch.float64
    assert_norm(wide, grads, 2.0)


@pytest.mark.parametrize("norm_type", (2.0, 3.5))
def test_float64_overflows_as_in_torch(norm_type: float) -> None:
    grads = [torch.full((3,), 2e200, dtype=torch.float64)]
    assert torch.nn.utils.get_total_norm(grads, norm_type).item() == math.inf
    assert reference.total_norm(grads, norm_type).item() == math.inf


@pytest.mark.parametrize("norm_type", (2.0, 1.0, math.inf, 3.5))
@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_nan_and_inf_reach_the_norm(dtype: torch.dtype, value: float, norm_type: float) -> None:
    for position in (0, 40_000, 199_999):
        grad = torch.ones(200_000, dtype=dtype)
        grad[position] = value
        actual = reference.total_norm([torch.ones(3, dtype=dtype), grad], norm_type).item()
        assert math.isnan(actual) if math.isnan(value) else actual == math.inf


@pytest.mark.parametrize("norm_type", (0.0, -1.0, -math.inf, 0.5, 3.0))
def test_unusual_norm_types_are_two_level_as_in_torch(norm_type: float) -> None:
    grads = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0]), torch.tensor([[0.5]])]
    expected = torch.nn.utils.get_total_norm(grads, norm_type)
    torch.testing.assert_close(reference.total_norm(grads, norm_type), expected)


def test_norm_zero_counts_nonzero_tensors() -> None:
    grads = [torch.tensor([1.0, 2.0, 3.0]), torch.zeros(4), torch.tensor([4.0, 5.0])]
    assert reference.total_norm(grads, 0.0).item() == 2


def test_norm_zero_counts_beyond_float32() -> None:
    [norm] = reference.tensor_norms([torch.ones(2**24 + 3, dtype=torch.bfloat16)], 0.0)
    assert norm.item() == 2**24 + 4  # the nearest float32, where a float32 count stops at 2^24


# total_norm: dtypes, devices, sizes


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float16,), torch.float32),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.float32, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float64), torch.float64),
        ((torch.complex64, torch.float16), torch.float32),
        pytest.param(
            (torch.complex32,),
            torch.float32,
            marks=pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
        ),
        ((torch.float32, torch.complex128), torch.float64),
    ],
)
def test_norm_dtype_is_float32_unless_something_is_float64(
    dtypes: tuple[torch.dtype, ...], expected: torch.dtype
) -> None:
    grads = [gradient(100, dtype) for dtype in dtypes]
    actual = reference.total_norm(grads, 2.0)
    assert actual.dtype == expected
    assert_norm(actual, grads, 2.0)


def test_dtype_argument_chooses_the_result() -> None:
    grads = [gradient(1000, torch.bfloat16), gradient(1000, torch.float64)]
    for dtype in (torch.float32, torch.float64):
        actual = reference.total_norm(grads, 2.0, dtype=dtype)
        assert actual.dtype == dtype
        assert_norm(actual, grads, 2.0)
        assert reference.total_norm([], 2.0, dtype=dtype).dtype == dtype


def test_mixed_dtypes_in_one_list() -> None:
    grads = [grad for dtype in FLOAT_DTYPES for grad in awkward_gradients(dtype)]
    grads.append(gradient(50, torch.complex64))
    for norm_type in SUMMED_NORM_TYPES:
        assert_norm(reference.total_norm(grads, norm_type), grads, norm_type)


@pytest.mark.parametrize("norm_type", ALL_NORM_TYPES)
def test_empty_tensors_add_nothing(norm_type: float) -> None:
    empty = torch.empty(0, 3)
    assert reference.total_norm([empty, empty], norm_type).item() == 0
    assert reference.total_norm([], norm_type).item() == 0
    grads = [empty, torch.tensor([3.0, 4.0]), empty]
    actual = reference.total_norm(grads, norm_type)
    torch.testing.assert_close(
        actual, reference.total_norm(grads[1:2], norm_type), equal_nan=True, rtol=0, atol=0
    )


def test_no_tensors_give_a_float32_zero_on_the_cpu() -> None:
    actual = reference.total_norm([], 2.0)
    assert (actual.item(), actual.dtype, actual.device.type) == (0.0, torch.float32, "cpu")
    assert actual.dim() == 0


@pytest.mark.parametrize("dtype", (torch.int64, torch.bool, torch.uint8))
def test_integer_tensors_raise_torchs_error(dtype: torch.dtype) -> None:
    grads = [torch.ones(3), torch.ones(3, dtype=dtype)]
    with pytest.raises(RuntimeError) as stock:
        torch.nn.utils.get_total_norm(grads)
    for run in (reference.total_norm, reference.tensor_norms):
        with pytest.raises(RuntimeError) as ours:
            run(grads, 2.0)
        assert str(ours.value) == str(stock.value)


def test_foreach_on_a_device_without_it_raises_torchs_error() -> None:
    grads = [torch.ones(3, device="meta")]
    with pytest.raises(RuntimeError) as stock:
        torch.nn.utils.get_total_norm(grads, foreach=True)
    calls: list[Callable[[], object]] = [
        lambda: reference.check_foreach(grads, True),
        lambda: reference.total_norm(grads, 2.0, foreach=True),
        lambda: reference.scale_(grads, torch.tensor(0.5), foreach=True),
        lambda: reference.clamp_(grads, 0.5, foreach=True),
    ]
    for call in calls:
        with pytest.raises(RuntimeError) as ours:
            call()
        assert str(ours.value) == str(stock.value)


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
    # Megabytes of slack: the allocator keeps freed blocks, and its own tables grow.
    limit = MEMORY_LIMIT + 8 * 2**20
    assert peak_growth(lambda: reference.total_norm([grad], 2.0)) <= limit
    assert reference.total_norm([grad], 2.0).item() == np.float32(math.sqrt(grad.numel()))


# tensors of other kinds


def dense() -> Tensor:
    return gradient((30, 40), torch.float32)


def uncoalesced() -> Tensor:
    values = gradient((4, 5), torch.float32)
    return torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 7, 3]]), values, (9, 5), check_invariants=True
    )


KINDS: dict[str, Callable[[], Tensor]] = {
    "permuted": lambda: dense().t(),
    "gaps": lambda: dense()[::2, ::3],
    "channels_last": lambda: gradient((2, 3, 4, 5), torch.float32).to(
        memory_format=torch.channels_last
    ),
    "misaligned": lambda: dense().view(-1)[1:],
    "sparse": uncoalesced,
    "coalesced": lambda: uncoalesced().coalesce(),
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
    "zero_tensor": lambda: torch._efficientzerotensor((3, 4)),
}


@pytest.mark.parametrize("norm_type", SUMMED_NORM_TYPES)
@pytest.mark.parametrize("kind", [*KINDS, *READ_ONLY_KINDS])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_norm_of_every_kind_of_tensor(kind: str, norm_type: float) -> None:
    tensor = (KINDS | READ_ONLY_KINDS)[kind]()
    others = [gradient(10, torch.float32), gradient(70_000, torch.float32)]
    plain = tensor.a if isinstance(tensor, TwoTensor) else tensor
    actual = reference.total_norm([*others, tensor], norm_type)
    assert_norm(actual, [*others, plain], norm_type)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_scale_of_every_kind_of_tensor(kind: str) -> None:
    tensor = KINDS[kind]()
    plain = tensor.a if isinstance(tensor, TwoTensor) else tensor
    before = oracle.values_of(plain).copy()
    reference.scale_([torch.ones(3), tensor], torch.tensor(0.25))
    assert tensor.layout == KINDS[kind]().layout
    assert type(tensor) is type(KINDS[kind]())
    assert oracle.equal(plain, before / 4)
    assert tensor._version > 0
    reference.scale_([tensor], torch.tensor(1.0))
    assert oracle.equal(plain, before / 4)


def test_large_tensor_with_permuted_gaps_is_sliced_right() -> None:
    base = gradient((6, 70, 50, 40), torch.float32)
    grad = base.permute(2, 0, 3, 1)[:, 1:, ::2]
    assert grad.numel() > upcast.CPU_SLICE_SIZE
    pieces = list(upcast.slices_of(grad, 1000))
    assert max(piece.numel() for piece in pieces) <= 1000
    together = torch.cat([piece.reshape(-1) for piece in pieces])
    torch.testing.assert_close(together.sort().values, grad.reshape(-1).sort().values)
    assert_norm(reference.total_norm([grad], 2.0), [grad], 2.0)


def test_meta_tensors_stay_on_meta() -> None:
    grads = [torch.ones(3, device="meta"), torch.ones(2, device="meta", dtype=torch.bfloat16)]
    norm = reference.total_norm(grads, 2.0)
    assert (norm.device.type, norm.dtype) == ("meta", torch.float32)
    reference.scale_(grads, reference.clip_coefficient(1.0, norm))
    reference.clamp_(grads, 1.0)
    assert len(reference.unique_gradients(grads)) == 2


def test_fake_tensors_are_never_read() -> None:
    with FakeTensorMode():
        grads = [torch.ones(3), torch.ones(2, dtype=torch.float16)]
        norm = reference.total_norm(reference.unique_gradients(grads), 2.0)
        reference.scale_(grads, reference.clip_coefficient(1.0, norm))
        reference.clamp_(grads, 1.0)
    assert (norm.shape, norm.dtype) == ((), torch.float32)


def test_under_vmap_each_sample_has_its_norm() -> None:
    samples = gradient((5, 3, 4), torch.float32)

    def clipped(sample: Tensor) -> tuple[Tensor, Tensor]:
        grads = reference.unique_gradients([sample.clone()])
        norm = reference.total_norm(grads, 2.0)
        reference.scale_(grads, reference.clip_coefficient(1.0, norm))
        return grads[0], norm

    scaled, norms = torch.vmap(clipped)(samples)
    for sample, result, norm in zip(samples, scaled, norms, strict=True):
        assert_norm(norm, [sample], 2.0)
        torch.testing.assert_close(result, sample * (1 / (norm + 1e-6)).clamp(max=1))


# tensor_norms


@pytest.mark.parametrize("norm_type", ALL_NORM_TYPES[:-1])
def test_tensor_norms_are_one_per_tensor_in_order(norm_type: float) -> None:
    grads = [
        *awkward_gradients(torch.bfloat16),
        gradient(300_000, torch.float32),
        gradient(9, torch.float64),
        gradient(9, torch.complex64),
    ]
    norms = reference.tensor_norms(grads, norm_type)
    assert [n.dtype for n in norms] == [
        torch.float64 if g.dtype == torch.float64 else torch.float32 for g in grads
    ]
    for norm, grad in zip(norms, grads, strict=True):
        expected = oracle.tensor_norm(grad, norm_type)
        assert oracle.is_norm(norm.item(), expected, norm.dtype)


# clip_coefficient


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("max_norm", (1.0, 0.0, -2.5, 0.1, 1e30, math.inf, math.nan))
def test_coefficient_has_the_bits_of_the_formula(max_norm: float, dtype: torch.dtype) -> None:
    for value in (0.0, 1e-7, 0.999999, 1.0, 3.3, 7e5, 3e38, math.inf, math.nan):
        norm = torch.tensor(value, dtype=dtype)
        expected = oracle.clip_coef(max_norm, norm)
        for limit in (max_norm, torch.tensor(max_norm, dtype=torch.float64)):
            actual = reference.clip_coefficient(limit, norm)
            assert actual.dtype == dtype
            np.testing.assert_equal(actual.item(), expected)


def test_coefficient_of_a_sixteen_bit_norm_is_float32() -> None:
    norm = torch.tensor(3.0, dtype=torch.bfloat16)
    actual = reference.clip_coefficient(1.0, norm)
    assert actual.item() == oracle.clip_coef(1.0, norm.float())


def test_norm_that_is_no_tensor_raises_type_error() -> None:
    norm: object = 2.0
    with pytest.raises(TypeError, match=r"clamp\(\)"):
        reference.clip_coefficient(1.0, norm)  # pyright: ignore[reportArgumentType]


# scale_


@pytest.mark.parametrize("coef", (0.123456789, 0.0, -0.7, 1 - 2**-24, math.nan, 1e-30))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("foreach", (None, False, True))
def test_scale_rounds_each_product_once(
    foreach: bool | None, dtype: torch.dtype, coef: float
) -> None:
    grads = awkward_gradients(dtype)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    clip_coef = torch.tensor(coef, dtype=kind)
    expected = [oracle.scaled(grad, clip_coef.item()) for grad in grads]
    reference.scale_(grads, clip_coef, foreach=foreach)
    for grad, values in zip(grads, expected, strict=True):
        assert oracle.equal(grad, values)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_upcast_scale_of_other_devices_agrees_with_the_cpus(dtype: torch.dtype) -> None:
    grads = awkward_gradients(dtype)
    expected = [oracle.scaled(grad, np.float32(0.123456789)) for grad in grads]
    upcast.scale_rounded_once_(grads, torch.tensor(0.123456789))
    for grad, values in zip(grads, expected, strict=True):
        assert oracle.equal(grad, values)


@pytest.mark.parametrize("foreach", (None, False))
def test_coefficient_of_one_writes_nothing_but_bumps_versions(foreach: bool | None) -> None:
    # Multiplying a signalling NaN, even by 1, would quieten it: its bits show any write.
    signalling = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    quieted = signalling.clone().mul_(1.0)
    assert quieted.view(torch.int32).item() != signalling.view(torch.int32).item()
    grads = [signalling, torch.ones(3, dtype=torch.float64), torch.empty(0)]
    before = versions(grads)
    reference.scale_(grads, torch.tensor(1.0), foreach=foreach)
    assert signalling.view(torch.int32).item() == 0x7F800001
    assert all(now > then for now, then in zip(versions(grads), before, strict=True))


def test_nan_coefficient_writes() -> None:
    grads = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16)]
    reference.scale_(grads, torch.tensor(math.nan))
    assert all(grad.isnan().all() for grad in grads)


def test_float64_coefficient_scales_other_dtypes_as_float32() -> None:
    grads = [gradient(999, dtype) for dtype in FLOAT_DTYPES]
    coef = torch.tensor(0.123456789123, dtype=torch.float64)
    expected = [oracle.scaled(grad, coef.item()) for grad in grads]
    reference.scale_(grads, coef)
    assert all(oracle.equal(g, values) for g, values in zip(grads, expected, strict=True))


def test_coefficient_with_a_dimension_raises_torchs_error() -> None:
    for coef in (torch.tensor([0.5]), torch.tensor([0.5, 0.5]), torch.tensor([1.0])):
        grads = [torch.ones(2)]
        with pytest.raises(RuntimeError) as stock:
            torch._foreach_mul_([torch.ones(2)], coef)  # pyright: ignore[reportPrivateImportUsage]
        with pytest.raises(RuntimeError) as ours:
            reference.scale_(grads, coef)
        assert str(ours.value) == str(stock.value)
        assert grads[0].tolist() == [1, 1]


def test_expanded_gradient_raises_before_the_first_write() -> None:
    expanded = torch.ones(1).expand(3)
    with pytest.raises(RuntimeError) as stock:
        expanded.mul_(0.5)
    for act in (
        lambda g: reference.scale_(g, torch.tensor(0.5)),
        lambda g: reference.clamp_(g, 0.5),
    ):
        grads = [torch.ones(3), expanded]
        with pytest.raises(RuntimeError) as ours:
            act(grads)
        assert str(ours.value) == str(stock.value)
        assert grads[0].tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="more than one element"):
        reference.scale_([expanded], torch.tensor(1.0))


def test_expanded_gradient_without_elements_is_fine() -> None:
    reference.scale_([torch.ones(1).expand(0, 3)], torch.tensor(0.5))


def test_inference_tensor_raises_before_the_first_write() -> None:
    with torch.inference_mode():
        frozen = torch.full((3,), 7.0)
    for coef in (0.5, 1.0):
        grads = [torch.ones(3), frozen]
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside"):
            reference.scale_(grads, torch.tensor(coef))
        assert grads[0].tolist() == [1, 1, 1]
        assert frozen.tolist() == [7, 7, 7]


def test_inference_tensor_is_scaled_in_inference_mode() -> None:
    with torch.inference_mode():
        frozen = torch.full((3,), 8.0)
        reference.scale_([frozen], torch.tensor(0.5))
        reference.scale_([frozen], torch.tensor(1.0))
        assert frozen.tolist() == [4, 4, 4]


@pytest.mark.parametrize("dtype", (torch.int64, torch.float8_e4m3fn))
def test_dtype_that_cannot_be_scaled_raises_before_the_first_write(dtype: torch.dtype) -> None:
    grads = [torch.ones(3), torch.ones(3).to(dtype)]
    with pytest.raises((RuntimeError, NotImplementedError)) as stock:
        grads[1].clone().mul_(torch.tensor(0.5))
    with pytest.raises(type(stock.value)) as ours:
        reference.scale_(grads, torch.tensor(0.5))
    assert str(ours.value) == str(stock.value)
    assert grads[0].tolist() == [1, 1, 1]


def test_partly_overlapping_gradients_are_scaled_one_after_another() -> None:
    base = torch.ones(6)
    reference.scale_([base[:4], base[2:]], torch.tensor(0.5))
    assert base.tolist() == [0.5, 0.5, 0.25, 0.25, 0.5, 0.5]


def test_gradient_on_a_graph_is_scaled() -> None:
    with torch.enable_grad():
        grad = torch.ones(3, requires_grad=True) * 2
    reference.scale_([grad], torch.tensor(0.5))
    assert grad.tolist() == [1, 1, 1]


# clamp_


@pytest.mark.parametrize("foreach", (None, False, True))
@pytest.mark.parametrize(
    "clip_value", (1.0, 0.1, 0.0, -1.0, 300.0, 65504.0, math.inf, -math.inf, math.nan, 1e30)
)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_clamp_is_torchs(dtype: torch.dtype, clip_value: float, foreach: bool | None) -> None:
    special = [1.0, -3.0, 0.0, -0.0, math.nan, math.inf, -math.inf, 60000.0, -1e-5]
    ours, theirs = (torch.tensor(special, dtype=dtype) for _ in range(2))
    holder = torch.zeros(len(special), dtype=dtype, requires_grad=True)
    holder.grad = theirs
    if dtype == torch.float16 and abs(clip_value) == 1e30:
        with pytest.raises(RuntimeError) as stock:
            torch.nn.utils.clip_grad_value_([holder], clip_value, foreach=foreach)
        first = torch.full((3,), 2e35)
        with pytest.raises(RuntimeError) as error:
            reference.clamp_([first, ours], clip_value, foreach=foreach)
        assert str(error.value) == str(stock.value)
        assert first.max().item() == np.float32(2e35)
        return
    torch.nn.utils.clip_grad_value_([holder], clip_value, foreach=foreach)
    reference.clamp_([ours], clip_value, foreach=foreach)
    assert ours._version > 0
    same_bits = torch.int64 if dtype == torch.float64 else torch.int16
    if dtype == torch.float32:
        same_bits = torch.int32
    finite = ~theirs.isnan()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[finite].view(same_bits), theirs[finite].view(same_bits))
    if not math.isnan(clip_value):
        values = torch.tensor(special, dtype=dtype)
        assert oracle.equal(ours, oracle.clamped(values, clip_value))


def test_clamp_of_awkward_shapes() -> None:
    for dtype in FLOAT_DTYPES:
        grads = awkward_gradients(dtype)
        expected = [oracle.clamped(grad, 0.3) for grad in grads]
        reference.clamp_(grads, 0.3)
        assert all(oracle.equal(g, values) for g, values in zip(grads, expected, strict=True))


def test_clamp_of_complex_gradients_raises_before_the_first_write() -> None:
    grads = [torch.full((3,), 5.0), gradient(3, torch.complex64)]
    with pytest.raises(NotImplementedError, match="^clamp is not supported for complex types$"):
        reference.clamp_(grads, 1.0)
    assert grads[0].tolist() == [5, 5, 5]


def test_clamp_of_sparse_gradients_raises_before_the_first_write() -> None:
    grads = [torch.full((3,), 5.0), uncoalesced().coalesce()]
    with pytest.raises(NotImplementedError):
        reference.clamp_(grads, 1.0)
    assert grads[0].tolist() == [5, 5, 5]


def test_clamp_of_nothing() -> None:
    assert reference.clamp_([], 1.0) is None


# unique_gradients


def test_same_gradient_is_kept_once() -> None:
    a, b = torch.ones(2, 3), torch.ones(4)
    alias = a.view(2, 3)
    assert [id(g) for g in reference.unique_gradients([a, b, alias, a])] == [id(a), id(b)]


def test_gradients_that_only_overlap_are_all_kept() -> None:
    base = torch.ones(6, dtype=torch.float32)
    different = [base, base[:3], base[1:4], base[::2], base.view(2, 3), base.view(torch.int32)]
    assert len(reference.unique_gradients(different)) == len(different)


def test_tensors_without_address_are_equal_to_themselves_alone() -> None:
    empties = [torch.empty(0), torch.empty(0)]
    metas = [torch.ones(3, device="meta") for _ in range(2)]
    sparse = uncoalesced()
    assert len(reference.unique_gradients([*empties, *metas, sparse, sparse, *metas])) == 5


# nonfinite_positions


@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, torch.complex64])
def test_positions_of_gradients_that_are_not_finite(dtype: torch.dtype) -> None:
    grads = awkward_gradients(dtype)
    assert reference.nonfinite_positions(grads) == []
    grads[4][3] = math.nan
    grads[7][16380] = -math.inf
    assert reference.nonfinite_positions(grads) == [4, 7]


def test_finite_values_whose_norm_overflows_are_finite() -> None:
    huge = torch.full((100,), 3e38)
    assert reference.nonfinite_positions([huge, torch.complex(huge, huge)]) == []


# what the functions leave alone


def test_inputs_of_norms_are_not_written() -> None:
    grads = [g for dtype in FLOAT_DTYPES for g in awkward_gradients(dtype)]
    kept = copies(grads)
    for norm_type in ALL_NORM_TYPES:
        reference.total_norm(grads, norm_type)
        reference.tensor_norms(grads, norm_type)
    reference.nonfinite_positions(grads)
    assert all(torch.equal(g, k) for g, k in zip(grads, kept, strict=True))
    assert versions(grads) == [0] * len(grads)
