"""What the native backend takes as a gradient, what it refuses in words, and what shares memory."""

import math
from collections.abc import Callable, Sequence

import native_calls
import oracle
import pytest
import torch
from native_cases import (
    DTYPES,
    parameters_of,
    random_tensor,
    same_bits,
    scaled,
)
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import fastclip

PLAIN = "supported: plain strided tensors"


def clip(gradients: Sequence[Tensor], backend: str | None = "native") -> Tensor:
    return fastclip.clip_grad_norm_(parameters_of(gradients), 0.5, backend=backend)


def check_like_separate_copies(gradients: Sequence[Tensor], distinct: Sequence[Tensor]) -> None:
    """Clip ``gradients`` natively; each of ``distinct``, their memory, must be clipped once."""
    before = [gradient.clone() for gradient in distinct]
    expected = oracle.total_norm(before, 2.0)
    total_norm = clip(gradients)
    assert oracle.is_norm(total_norm.item(), expected, total_norm.dtype)
    for gradient, original in zip(distinct, before, strict=True):
        assert same_bits(gradient, scaled(original, 0.5, total_norm))


# Layouts and aliases that the kernels walk.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dense_layouts_are_walked_as_their_storage(dtype: torch.dtype) -> None:
    values = random_tensor(2 * 3 * 5 * 7, dtype)
    layouts = [
        values.clone().reshape(30, 7).t(),
        values.clone().reshape(2, 3, 5, 7).contiguous(memory_format=torch.channels_last),
        values.clone().reshape(2, 3, 5, 7).permute(2, 0, 3, 1),
        values.clone().as_strided((1, 210), (999, 1)),
        values.clone()[:1].reshape(()),
    ]
    strides = [layout.stride() for layout in layouts]
    check_like_separate_copies(layouts, layouts)
    assert [layout.stride() for layout in layouts] == strides


def test_subclasses_without_dispatch_are_scaled_in_memory_and_the_norm_is_plain() -> None:
    class Marked(Tensor):
        pass

    values = random_tensor(33, torch.float32)
    original = values.clone()
    marked = values.as_subclass(Marked)
    total_norm = clip([marked])
    assert (type(marked), type(total_norm)) == (Marked, Tensor)
    assert oracle.is_norm(total_norm.item(), oracle.total_norm([original], 2.0), torch.float32)
    assert same_bits(values, scaled(original, 0.5, total_norm))


def test_bucket_views_in_any_order_are_separate_gradients() -> None:
    bucket = random_tensor(1000, torch.float32)
    views = [bucket[0:100].view(10, 10), bucket[100:101], bucket[101:101], bucket[101:1000]]
    check_like_separate_copies(views[::-1], views)
    gap = bucket[::2]
    with pytest.raises(RuntimeError, match="gaps"):
        clip([gap])


def test_a_gradient_of_two_parameters_is_clipped_once() -> None:
    shared, own = random_tensor(33, torch.float32), random_tensor(17, torch.float32)
    check_like_separate_copies([shared, own, shared, shared], [shared, own])


def test_a_parameter_given_twice_is_clipped_once() -> None:
    gradient = random_tensor(33, torch.float32)
    parameter = parameters_of([gradient])[0]
    expected = oracle.total_norm([gradient], 2.0)
    total_norm = fastclip.clip_grad_norm_([parameter, parameter], 0.5, backend="native")
    assert oracle.is_norm(total_norm.item(), expected, torch.float32)
    assert oracle.total_norm([gradient], 2.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "alias",
    [
        lambda tensor: tensor.data,
        lambda tensor: tensor.detach(),
        lambda tensor: tensor[:],
        lambda tensor: torch.from_numpy(tensor.numpy()),
        lambda tensor: torch.frombuffer(tensor.numpy(), dtype=tensor.dtype),
        torch.from_dlpack,
    ],
    ids=["data", "detach", "view", "from_numpy", "frombuffer", "dlpack"],
)
def test_an_alias_of_a_gradient_is_clipped_once_and_both_versions_tell(
    alias: Callable[[Tensor], Tensor],
) -> None:
    gradient = random_tensor(33, torch.float32)
    other = alias(gradient)
    versions = gradient._version, other._version
    check_like_separate_copies([gradient, other], [gradient])
    assert gradient._version > versions[0]
    assert other._version > versions[1]


def test_buffers_wrapped_twice_are_clipped_once() -> None:
    memory = bytearray(random_tensor(64, torch.float32).numpy().tobytes())
    first, second = (torch.frombuffer(memory, dtype=torch.float32) for _ in range(2))
    check_like_separate_copies([first, second], [first])


def test_total_norm_counts_every_tensor_it_is_given() -> None:
    tensor = random_tensor(33, torch.float32)
    total_norm = fastclip.get_total_norm([tensor, tensor], backend="native").item()
    assert oracle.is_norm(total_norm, oracle.total_norm([tensor, tensor], 2.0), torch.float32)


@pytest.mark.parametrize(
    "views",
    [
        lambda bucket: [bucket[:60], bucket[59:]],
        lambda bucket: [bucket[50:], bucket[:60]],
        lambda bucket: [bucket, bucket[:10]],
        lambda bucket: [bucket[:10], bucket[20:30], bucket[5:25]],
        lambda bucket: [bucket.view(10, 10), bucket.view(10, 10).t()],
        lambda bucket: [bucket, bucket.view(torch.bfloat16)],
        lambda bucket: [bucket[10:20], torch.from_numpy(bucket.numpy())],
        lambda bucket: [bucket, torch.from_dlpack(bucket)[1:]],
    ],
    ids=["tail", "head", "within", "three", "transposed", "dtype", "numpy", "dlpack"],
)
def test_partial_overlap_is_refused_by_native_and_done_by_reference(
    views: Callable[[Tensor], list[Tensor]],
) -> None:
    bucket = random_tensor(100, torch.float32)
    before = bucket.clone()
    message = 'clip_grad_norm_: backend "native" cannot run this: gradients that overlap in part'
    with pytest.raises(RuntimeError, match=message):
        clip(views(bucket))
    assert same_bits(bucket, before)
    stock = before.clone()
    total_norm = clip(views(bucket), backend=None)
    # torch also multiplies one view after the other, except for the coefficient's float32 steps.
    for view in views(stock):
        view.mul_(torch.tensor(oracle.clip_coef(0.5, total_norm)))
    assert same_bits(bucket, stock)


def test_touching_views_do_not_overlap() -> None:
    bucket = random_tensor(100, torch.bfloat16)
    check_like_separate_copies([bucket[:33], bucket[33:66], bucket[66:]], [bucket])


def test_copy_on_write_gradients_are_cloned_before_they_are_written() -> None:
    original = random_tensor(33, torch.float32)
    before = original.clone()
    first, second = torch.ops.aten._lazy_clone(original), torch.ops.aten._lazy_clone(original)
    check_like_separate_copies([first, second], [first, second])
    assert same_bits(original, before)
    third = torch.ops.aten._lazy_clone(original)
    fastclip.clip_grad_value_(parameters_of([third]), 0.1, backend="native")
    assert same_bits(third, before.clamp(-0.1, 0.1))
    assert same_bits(original, before)


def test_a_norm_leaves_copy_on_write_tensors_lazy() -> None:
    original = random_tensor(33, torch.float32)
    lazy = torch.ops.aten._lazy_clone(original)
    fastclip.get_total_norm([lazy], backend="native")
    native_calls.scaled([lazy], 0.5)
    assert torch._C._is_cow_tensor(lazy)  # pyright: ignore[reportAttributeAccessIssue]


# Gradients that the kernels refuse.


def misaligned() -> Tensor:
    memory = bytearray(b"\0" + random_tensor(33, torch.float32).numpy().tobytes())
    return torch.frombuffer(memory, dtype=torch.float32, offset=1)


REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "complex": (lambda: torch.tensor([3 + 4j, 12j]), "dtype complex64"),
    "conjugate": (lambda: torch.tensor([3 + 4j, 12j]).conj(), "dtype complex64"),
    "negative": (lambda: torch.ops.aten._neg_view(random_tensor(33, torch.float32)), PLAIN),
    "gaps": (lambda: random_tensor(66, torch.float32)[::2], "gaps or with overlapping elements"),
    "misaligned": (misaligned, "not aligned to its element size"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_native_refuses_in_words_reference_clips(kind: str) -> None:
    make, words = REFUSED[kind]
    gradient, expected = make(), make().clone()
    with pytest.raises(RuntimeError, match='backend "native" cannot run this: .*' + words):
        clip([gradient])
    assert torch.equal(gradient, expected)
    total_norm = clip([gradient], backend=None)
    assert oracle.is_norm(total_norm.item(), oracle.total_norm([expected], 2.0), torch.float32)
    assert torch.equal(gradient, expected * oracle.clip_coef(0.5, total_norm))


def test_every_reason_is_said() -> None:
    gradients = [make() for make, _ in REFUSED.values()]
    before = [gradient.clone() for gradient in gradients]
    with pytest.raises(RuntimeError) as raised:
        clip(gradients)
    for _, words in REFUSED.values():
        assert words in str(raised.value)
    assert str(raised.value).count("complex64") == 1, "each reason is said once"
    assert all(map(torch.equal, gradients, before))


@pytest.mark.parametrize("norm_type", [0.0, -1.0, -math.inf, math.nan])
def test_norm_types_that_native_refuses(norm_type: float) -> None:
    parameters = parameters_of([random_tensor(3, torch.float32)])
    with pytest.raises(RuntimeError, match='"native" cannot run this: norm_type'):
        fastclip.clip_grad_norm_(parameters, 1.0, norm_type, backend="native")


# torch scripts some of its forward-mode formulas when they are first used.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_gradient_with_a_tangent_is_refused_and_reference_scales_it(dtype: torch.dtype) -> None:
    def dual() -> Tensor:
        primal, tangent = torch.tensor([[3.0, 4.0], [1.0, -1.0]], dtype=dtype)
        return forward_ad.make_dual(primal, tangent)

    with forward_ad.dual_level():
        gradient, stock = dual(), dual()
        with pytest.raises(RuntimeError, match="carries a forward-mode tangent"):
            clip([gradient])
        clip([gradient], backend=None)
        torch.nn.utils.clip_grad_norm_(parameters_of([stock]), 0.5, foreach=False)
        for got, expected in zip(
            forward_ad.unpack_dual(gradient), forward_ad.unpack_dual(stock), strict=True
        ):
            assert got is not None
            assert expected is not None
            assert torch.allclose(got, expected)


class Recorder(TorchDispatchMode):
    """Keeps the names of the operations that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_an_active_dispatch_mode_sees_every_operation() -> None:
    gradient = torch.tensor([3.0, 4.0])
    parameters = parameters_of([gradient])
    with Recorder() as recorder:
        with pytest.raises(RuntimeError, match="a TorchDispatchMode is active"):
            fastclip.clip_grad_norm_(parameters, 0.5, backend="native")
        assert recorder.names == []
        fastclip.clip_grad_norm_(parameters, 0.5)
    assert any("mul" in name for name in recorder.names)
    assert torch.allclose(gradient, torch.tensor([0.3, 0.4]))
