"""How the native backend reads ``.grad``, and what it does to the versions of gradients."""

import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import native_calls
import pytest
import torch
from native_cases import DTYPES, Computed, gradient_of, parameters_of, random_tensor
from torch import Tensor

import fastclip


class ComputedParameter(torch.nn.Parameter):
    """A parameter whose ``.grad`` is Python code, which keeps its gradient elsewhere."""

    held: Tensor

    @property
    def grad(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.held


def test_a_grad_that_is_a_property_is_read_through_python() -> None:
    parameter = ComputedParameter(torch.zeros(2))
    parameter.held = torch.tensor([3.0, 4.0])
    norms = [
        fastclip.clip_grad_norm_([parameter], 0.5, backend="native").item(),
        fastclip.GradClipper([parameter], 0.5, backend="native").clip_().item(),
    ]
    assert norms == pytest.approx([5.0, 0.5])
    assert torch.allclose(parameter.held, torch.tensor([0.3, 0.4]))


def test_what_a_grad_property_raises_arrives_before_any_write() -> None:
    def fail() -> Tensor:
        raise KeyError("no gradient today")

    first = SimpleNamespace(grad=torch.tensor([3.0, 4.0]))
    with pytest.raises(KeyError, match="no gradient today"):
        native_calls.clip_grad_norm_(cast("list[Tensor]", [first, Computed(fail)]), 0.5, 2.0, False)
    assert first.grad.tolist() == [3.0, 4.0]


def test_a_grad_property_may_shrink_the_list_and_drop_its_gradient() -> None:
    objects: list[Computed] = []

    def empty_the_list() -> Tensor:
        objects.clear()
        return torch.tensor([3.0, 4.0])

    objects += [Computed(empty_the_list), Computed(lambda: torch.ones(5))]
    parameters = cast("list[Tensor]", objects)
    total_norm = native_calls.clip_grad_norm_(parameters, 0.5, 2.0, False)
    assert total_norm is not None
    assert total_norm.item() == 5.0


def non_leaf_list() -> tuple[Tensor, list[Tensor]]:
    gradient = torch.tensor([3.0, 4.0])
    non_leaf = torch.ones(2, requires_grad=True) * 2
    return gradient, [*parameters_of([gradient]), non_leaf]


def clip_list(parameters: list[Tensor]) -> Tensor:
    return fastclip.clip_grad_norm_(parameters, 0.5, backend="native")


def clip_prepared(parameters: list[Tensor]) -> Tensor:
    return fastclip.GradClipper(parameters, 0.5, backend="native").clip_()


@pytest.mark.parametrize("call", [clip_list, clip_prepared])
def test_a_parameter_that_is_no_leaf_warns_as_in_python(
    call: Callable[[list[Tensor]], Tensor],
) -> None:
    gradient, parameters = non_leaf_list()
    with pytest.warns(UserWarning, match=r"not a leaf Tensor is being accessed"):
        assert call(parameters).item() == 5.0
    assert torch.allclose(gradient, torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize("call", [clip_list, clip_prepared])
def test_a_warning_that_is_an_error_arrives_before_any_write(
    call: Callable[[list[Tensor]], Tensor],
) -> None:
    gradient, parameters = non_leaf_list()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="not a leaf Tensor"):
            call(parameters)
    assert gradient.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_each_write_bumps_each_version_by_1_written_or_not(max_norm: float) -> None:
    gradients = [random_tensor(33, dtype) for dtype in DTYPES]
    parameters = parameters_of(gradients)
    clipper = fastclip.GradClipper(parameters, max_norm, backend="native")
    norm = torch.tensor(2.0)
    calls: list[Callable[[], object]] = [
        lambda: fastclip.clip_grad_norm_(parameters, max_norm, backend="native"),
        lambda: fastclip.clip_grads_with_norm_(parameters, max_norm, norm, backend="native"),
        lambda: fastclip.clip_grad_value_(parameters, max_norm, backend="native"),
        clipper.clip_,
    ]
    for count, call in enumerate(calls, start=1):
        call()
        assert [gradient._version for gradient in gradients] == [count] * len(gradients)


def test_reading_and_failing_leave_the_version() -> None:
    gradient = torch.tensor([1.0, math.inf])
    fastclip.get_total_norm([gradient], backend="native")
    with pytest.raises(RuntimeError, match="non-finite"):
        fastclip.clip_grad_norm_(parameters_of([gradient]), 1.0, 2.0, True, backend="native")
    assert gradient._version == 0
    assert gradient_of(parameters_of([gradient])[0]).tolist() == [1.0, math.inf]


def test_an_error_is_about_the_gradients_that_were_measured() -> None:
    reads: list[int] = []

    def bad_once() -> Tensor:
        reads.append(1)
        return torch.tensor([math.nan if len(reads) == 1 else 1.0])

    held = cast("list[Tensor]", [Computed(bad_once), *parameters_of([torch.ones(3)])])
    with pytest.raises(RuntimeError, match=r"non-finite gradients: 0 \(1,\)$"):
        fastclip.clip_grad_norm_(held, 1.0, error_if_nonfinite=True, backend="native")
    assert len(reads) == 2, "a walk, and the error's shapes"
