"""What other Python code may do to gradients while the native backend works on them."""

import math
import threading
import time
from types import SimpleNamespace
from typing import cast

import oracle
import pytest
import torch
from native_cases import Computed, parameters_of, random_tensor, run_python, same_bits, scaled
from torch import Tensor

import fastclip


def test_a_grad_property_may_drop_the_gradients_before_it() -> None:
    parameters = parameters_of([torch.full((1000,), 3.0), torch.full((1000,), 4.0)])
    reused: list[Tensor] = []

    def drop_the_others() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        # This lands where the gradients were, unless they are held.
        reused.extend(torch.full((1000,), math.nan) for _ in range(20))
        return torch.zeros(2)

    objects = cast("list[Tensor]", [*parameters, Computed(drop_the_others)])
    total_norm = fastclip.clip_grad_norm_(objects, 1.0, backend="native")
    assert total_norm.item() == pytest.approx(math.sqrt(25_000.0))
    assert all(bool(tensor.isnan().all()) for tensor in reused)


@pytest.mark.parametrize("size", [1_000, 300_000])
@pytest.mark.parametrize("change", ["resize", "set", "data"])
def test_a_grad_property_may_replace_the_memory_of_a_gradient_before_it(
    change: str, size: int
) -> None:
    first = SimpleNamespace(grad=torch.ones(5))
    values = random_tensor(size, torch.float32)

    def replace_memory() -> Tensor:
        if change == "resize":
            first.grad.resize_(size).copy_(values)
        elif change == "set":
            first.grad.set_(values.clone())
        else:
            first.grad.data = values.clone()
        return torch.zeros(2)

    objects = cast("list[Tensor]", [first, Computed(replace_memory)])
    total_norm = fastclip.clip_grad_norm_(objects, 0.5, backend="native")
    assert oracle.is_norm(total_norm.item(), oracle.total_norm([values], 2.0), torch.float32)
    assert same_bits(first.grad, scaled(values, 0.5, total_norm))


def test_a_grad_property_may_turn_a_gradient_before_it_into_one_with_gaps() -> None:
    first = SimpleNamespace(grad=torch.ones(4, 4))
    columns = torch.ones(4, 8)[:, ::2]

    def replace_memory() -> Tensor:
        first.grad.set_(columns)
        return torch.zeros(2)

    objects = cast("list[Tensor]", [first, Computed(replace_memory)])
    with pytest.raises(RuntimeError, match="a tensor with gaps or with overlapping elements"):
        fastclip.clip_grad_norm_(objects, 0.5, backend="native")
    assert bool((columns == 1).all())


def test_a_grad_property_may_be_a_view_of_a_gradient_before_it() -> None:
    first = SimpleNamespace(grad=random_tensor(100, torch.float32))
    before = first.grad.clone()
    objects = cast("list[Tensor]", [first, Computed(lambda: first.grad[:])])
    total_norm = fastclip.clip_grad_norm_(objects, 0.5, backend="native")
    assert oracle.is_norm(total_norm.item(), oracle.total_norm([before], 2.0), torch.float32)
    assert same_bits(first.grad, scaled(before, 0.5, total_norm))
    objects = cast("list[Tensor]", [first, Computed(lambda: first.grad[50:])])
    with pytest.raises(RuntimeError, match="gradients that overlap in part"):
        fastclip.clip_grad_norm_(objects, 0.5, backend="native")


# Its sizes, layout and device come from Python code, which drops every other gradient.
WRAPPER_THAT_DROPS = """
import torch, fastclip
from torch.utils._pytree import tree_map

class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dispatch_sizes_strides_policy="sizes", dispatch_layout=True)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        for parameter in others:
            parameter.grad = None
        reused.extend(torch.full((100,), 7.0) for _ in range(500))
        args, kwargs = tree_map(
            lambda x: x.inner if isinstance(x, Wrapper) else x, (args, kwargs or {}))
        return func(*args, **kwargs)

others, reused = [], []
held = torch.nn.Parameter(torch.zeros(100))
held.grad = Wrapper(torch.ones(100))
flat = torch.ones(100)
parameters = [torch.nn.Parameter(torch.zeros(100)) for _ in range(100)]
for parameter in parameters:
    parameter.grad = flat.view(100)
others.extend(parameters)
try:
    fastclip.clip_grad_norm_([*parameters, held, *parameters], 1.0, backend="native")
except RuntimeError as error:
    print(error)
assert all(bool((tensor == 7.0).all()) for tensor in reused)
"""


@pytest.mark.parametrize("filler", ["1", "85", "255"])
def test_a_wrapper_that_is_asked_for_its_layout_may_drop_the_gradients_before_it(
    filler: str,
) -> None:
    # glibc fills freed memory with the complement of this byte.
    run = run_python(WRAPPER_THAT_DROPS, environment={"MALLOC_PERTURB_": filler})
    assert run.returncode == 0, run.stderr
    assert "a tensor with dispatch keys" in run.stdout
    assert "overlap" not in run.stdout


def test_another_thread_may_drop_an_alias_while_the_norm_is_taken() -> None:
    gradient = random_tensor(2_000_000, torch.float32)
    first, second = parameters_of([gradient, gradient.detach()])
    created: list[Tensor] = []
    started = threading.Event()

    def drop() -> None:
        started.wait()
        time.sleep(0.005)
        second.grad = None
        # One of these lands where the alias was, unless that is held: a bump of its version would
        # go to it.
        created.extend(torch.empty(3) for _ in range(2000))

    thread = threading.Thread(target=drop)
    thread.start()
    started.set()
    # An exponent that is not whole is slow enough for the other thread to come in between.
    fastclip.clip_grad_norm_([first, second], 1e30, 2.5, backend="native")
    thread.join()
    assert [tensor._version for tensor in created if tensor._version] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_flushed_denormals_stay_in_norms_coefficients_and_results(dtype: torch.dtype) -> None:
    value = 1e-310 if dtype == torch.float64 else 1e-39
    (tiny,) = parameters_of([torch.full((7,), value, dtype=dtype)])
    (large,) = parameters_of([torch.tensor([1.0, 2.0, 3.0], dtype=dtype)])
    clipper = fastclip.GradClipper([tiny], 1.0, norm_type=1.0, backend="native")

    def results() -> list[Tensor]:
        large.grad = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
        norm = fastclip.clip_grad_norm_([large], value, backend="native")
        return [norm, large.grad, clipper.clip_(), clipper.parameter_norms]

    expected = results()
    torch.set_flush_denormal(True)
    try:
        found = results()
    finally:
        torch.set_flush_denormal(False)
    assert all(bool((tensor != 0).all()) for tensor in expected)
    assert all(map(same_bits, found, expected))
