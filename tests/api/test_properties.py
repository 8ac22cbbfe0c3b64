"""What holds for any list of gradients: drawn by hypothesis, checked against the oracle."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import FLOAT_DTYPES, parameters
from torch import Tensor

import fastclip

# In CI the examples are always the same, because a chance failure would only stop somebody else's
# work.
IS_CHECK = "CI" in os.environ or "FASTCLIP_REQUIRE_NATIVE" in os.environ
SETTINGS = settings(
    deadline=None,
    derandomize=IS_CHECK,
    database=None,
    max_examples=100,
    # The interpreter of Triton stays in use over all examples.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

NATIVE_REASONS = fastclip.backend_report()["native"]
NATIVE = pytest.param("native", marks=pytest.mark.skipif(bool(NATIVE_REASONS), reason="no native"))
BACKENDS = pytest.mark.parametrize("backend", [None, "reference", NATIVE, "triton"])

CHUNK_SIZE = 1 << 14
GUARD = 4099


@pytest.fixture(autouse=True)
def interpreted_where_named(request: pytest.FixtureRequest) -> None:
    """Let Triton's kernels run where the backend is "triton"."""
    if (
        getattr(request.node, "callspec", None)
        and request.node.callspec.params.get("backend") == "triton"
    ):
        request.getfixturevalue("interpreted")


# float64 sums in float64 and overflows as torch does: its values keep their cubes within range.
LARGEST = {dtype: torch.finfo(dtype).max for dtype in FLOAT_DTYPES} | {torch.float64: 1e100}
SMALLEST = {
    dtype: torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in FLOAT_DTYPES
} | {torch.float64: 1e-100}


@dataclass(frozen=True)
class Described:
    """A gradient as plain values, from which it can be made again and again."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: str
    offset: int
    kind: str
    seed: int


@dataclass(frozen=True)
class DescribedList:
    """Gradients, and others that share the memory of one of them: (position, how)."""

    gradients: tuple[Described, ...]
    aliases: tuple[tuple[int, str], ...]

    @property
    def may_be_refused(self) -> bool:
        """Return whether a backend with kernels may leave the list to another one."""
        gaps = any(gradient.layout == "gaps" for gradient in self.gradients)
        return gaps or any(how in ("tail", "flat") for _, how in self.aliases)


def make_values(described: Described) -> Tensor:
    """Draw the elements, flat."""
    dtype, size = described.dtype, math.prod(described.shape)
    generator = torch.Generator().manual_seed(described.seed)
    normal = torch.randn(size, generator=generator, dtype=torch.float64)
    chosen = torch.randint(0, 8, (size,), generator=generator)
    largest, smallest = LARGEST[dtype], SMALLEST[dtype]
    if described.kind == "constant":
        return torch.full((size,), 0.1 * (1 + described.seed % 7), dtype=dtype)
    if described.kind == "huge":
        return (normal.clamp(-1, 1) * largest).to(dtype)
    if described.kind == "tiny":
        return (normal * smallest * 64).to(dtype)
    if described.kind == "special":
        pool = [0.0, -0.0, smallest, -largest, largest, largest**0.5, -1.0, smallest**0.5]
        return torch.tensor(pool, dtype=torch.float64)[chosen].to(dtype)
    if described.kind == "poisoned" and size:
        poisons = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64)
        normal[described.seed % size] = poisons[described.seed % 3]
    return normal.to(dtype)


def make_gradient(described: Described) -> tuple[Tensor, Tensor]:
    """Lay one gradient out in a buffer of NaN; return both."""
    size, first = math.prod(described.shape), GUARD + described.offset
    step = 2 if described.layout == "gaps" else 1
    buffer = torch.full((first + step * size + GUARD,), math.nan, dtype=described.dtype)
    inner = buffer[first : first + step * size]
    if described.layout == "gaps":
        gradient = inner.view(*described.shape, 2)[..., 0]
    elif described.layout == "permuted":
        gradient = inner.view(described.shape[::-1]).permute(
            tuple(range(len(described.shape)))[::-1]
        )
    else:
        gradient = inner.view(described.shape)
    gradient.copy_(make_values(described).view(described.shape))
    return gradient, buffer


def make_list(described: DescribedList) -> tuple[list[Tensor], list[Tensor]]:
    """Make all gradients and aliases; return them and the buffers that hold their memory."""
    made = [make_gradient(each) for each in described.gradients]
    gradients = [gradient for gradient, _ in made]
    for position, how in described.aliases:
        base = gradients[position % len(made)]
        aliases = {"same": base, "data": base.data}
        if base.is_contiguous():
            aliases |= {"flat": base.view(-1), "tail": base.view(-1)[1:]}
        gradients.append(aliases.get(how, base))
    return gradients, [buffer for _, buffer in made]


def distinct(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Leave out gradients of the same address, count, dtype and strides as an earlier one."""
    keys = [(g.data_ptr(), g.numel(), g.dtype, g.stride()) for g in gradients]
    return [g for i, g in enumerate(gradients) if not g.numel() or keys[i] not in keys[:i]]


def write(gradient: Tensor, values: oracle.Array) -> None:
    gradient.copy_(torch.from_numpy(values).view(gradient.shape))


def same(got: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors are equal; NaN equals NaN, and -0.0 does not equal 0.0."""
    held = ~expected.isnan()
    values = torch.equal(got.isnan(), expected.isnan()) and torch.equal(got[held], expected[held])
    return values and torch.equal(got[held].signbit(), expected[held].signbit())


def all_same(got: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(same(a, b) for a, b in zip(got, expected, strict=True))


def was_refused(error: RuntimeError, described: DescribedList, backend: str | None) -> bool:
    """Return whether this refuses a list that a backend with kernels may refuse."""
    refusal = f'backend "{backend}" cannot run this' in str(error)
    return refusal and backend in ("native", "triton") and described.may_be_refused


sizes = st.one_of(
    st.integers(0, 70),
    st.sampled_from([CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE + 3]),
)
shapes = st.one_of(
    st.just(()), st.tuples(sizes), st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple)
)
described_gradients = st.builds(
    Described,
    dtype=st.sampled_from(FLOAT_DTYPES),
    shape=shapes,
    layout=st.sampled_from(["contiguous", "contiguous", "permuted", "gaps"]),
    offset=st.integers(0, 17),
    kind=st.sampled_from(["normal", "normal", "constant", "huge", "tiny", "special", "poisoned"]),
    seed=st.integers(0, 10**6),
)
described_lists = st.builds(
    DescribedList,
    gradients=st.lists(described_gradients, min_size=1, max_size=6).map(tuple),
    aliases=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["same", "same", "data", "flat", "tail"])),
        max_size=2,
    ).map(tuple),
)
norm_types = st.sampled_from([1.0, 2.0, 2.0, 3.0, 2.5, 0.5, math.inf])
max_norms = st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1.0, 1e3, 1e30, math.inf, -1.0, math.nan])
total_norms = st.sampled_from([0.0, 1e-30, 0.5, 1.0, 3.0, 1e30, math.inf, math.nan])


@BACKENDS
@SETTINGS
@given(described=described_lists, norm_type=norm_types, max_norm=max_norms)
def test_clip_scales_every_distinct_gradient_by_the_coefficient(
    backend: str | None, described: DescribedList, norm_type: float, max_norm: float
) -> None:
    gradients, buffers = make_list(described)
    expected_gradients, expected = make_list(described)
    counted = distinct(expected_gradients)
    try:
        total_norm = fastclip.clip_grad_norm_(
            parameters(gradients), max_norm, norm_type, backend=backend
        )
    except RuntimeError as error:
        assert was_refused(error, described, backend), error
        assert all_same(buffers, expected)
        return
    right = oracle.total_norm(counted, norm_type)
    assert oracle.is_norm(total_norm.item(), right, total_norm.dtype), (total_norm, right)
    clip_coef = oracle.clip_coef(max_norm, total_norm)
    for gradient in counted if clip_coef != 1.0 else []:
        write(gradient, oracle.scaled(gradient, clip_coef))
    assert all_same(buffers, expected)


@BACKENDS
@SETTINGS
@given(described=described_lists, norm_type=norm_types, dtype=st.sampled_from([32, 64, None]))
def test_total_norm_counts_every_tensor(
    backend: str | None, described: DescribedList, norm_type: float, dtype: int | None
) -> None:
    tensors, buffers = make_list(described)
    asked = {None: None, 32: torch.float32, 64: torch.float64}[dtype]
    any_float64 = any(tensor.dtype == torch.float64 for tensor in tensors)
    try:
        total_norm = fastclip.get_total_norm(tensors, norm_type, dtype=asked, backend=backend)
    except RuntimeError as error:
        assert was_refused(error, described, backend), error
        return
    assert total_norm.dtype == asked or (torch.float64 if any_float64 else torch.float32)
    assert oracle.is_norm(
        total_norm.item(), oracle.total_norm(tensors, norm_type), total_norm.dtype
    )
    assert all_same(buffers, make_list(described)[1])


@BACKENDS
@SETTINGS
@given(described=described_lists, norm_type=norm_types, max_norm=max_norms)
def test_clipper_knows_the_norm_of_every_parameter(
    backend: str | None, described: DescribedList, norm_type: float, max_norm: float
) -> None:
    gradients, _ = make_list(described)
    norms = [oracle.tensor_norm(gradient, norm_type) for gradient in gradients]
    clipper = fastclip.GradClipper(parameters(gradients), max_norm, norm_type, backend=backend)
    try:
        total_norm = clipper.clip_()
    except RuntimeError as error:
        assert was_refused(error, described, backend), error
        return
    got = clipper.parameter_norms
    assert got.dtype == total_norm.dtype
    for norm, right in zip(got.tolist(), norms, strict=True):
        assert oracle.is_norm(norm, right, got.dtype), (norm, right)


@BACKENDS
@SETTINGS
@given(described=described_lists, clip_value=st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 100.0]))
def test_clamp_keeps_every_gradient_in_range(
    backend: str | None, described: DescribedList, clip_value: float
) -> None:
    gradients, buffers = make_list(described)
    expected_gradients, expected = make_list(described)
    try:
        fastclip.clip_grad_value_(parameters(gradients), clip_value, backend=backend)
    except RuntimeError as error:
        assert was_refused(error, described, backend), error
        assert all_same(buffers, expected)
        return
    for gradient in expected_gradients:
        write(gradient, oracle.clamped(gradient, clip_value))
    for got, right in zip(buffers, expected, strict=True):
        # A clip_value that rounds to 0 leaves either zero.
        assert oracle.equal(got, oracle.values_of(right), any_zero=True)


@pytest.mark.skipif(bool(NATIVE_REASONS), reason="needs the native backend")
@SETTINGS
@given(described=described_lists, total_norm=total_norms, max_norm=max_norms)
def test_native_and_reference_scale_to_the_same_bits_by_the_same_norm(
    described: DescribedList, total_norm: float, max_norm: float
) -> None:
    results = []
    for backend in ("native", "reference"):
        gradients, buffers = make_list(described)
        norm = torch.tensor(total_norm, dtype=torch.float64 if max_norm == 1.0 else torch.float32)
        try:
            fastclip.clip_grads_with_norm_(parameters(gradients), max_norm, norm, backend=backend)
        except RuntimeError as error:
            assert was_refused(error, described, backend), error
            return
        results.append(buffers)
    assert all_same(*results)
