"""GradClipper's arguments: what they may be, what may be set between calls, what is refused."""

import inspect
import re

import oracle
import pytest
import torch
from samples import parameter
from torch import Tensor

import fastclip
from fastclip import GradClipper


def test_signature() -> None:
    signature = inspect.signature(GradClipper)
    assert list(signature.parameters)[1:] == [
        "max_norm",
        "norm_type",
        "error_if_nonfinite",
        "backend",
    ]
    assert signature.parameters["norm_type"].default == 2.0
    assert signature.parameters["error_if_nonfinite"].default is False
    assert signature.parameters["backend"].default is None
    assert signature.parameters["backend"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("limit", [1, 1.0, "1.0", torch.tensor(1.0), torch.tensor(1)])
def test_max_norm_is_a_float_or_a_0_dim_tensor(backend: str | None, limit: float) -> None:
    grad = torch.tensor([3.0, 4.0])
    held = [parameter(grad)]
    GradClipper(held, limit, backend=backend).clip_()
    assert oracle.tensor_norm(grad, 2.0) == pytest.approx(1.0)


def test_max_norm_is_settable_between_calls(backend: str | None) -> None:
    grad = torch.tensor([3.0, 4.0])
    held = [parameter(grad)]
    clipper = GradClipper(held, 100.0, backend=backend)
    limits = [4.0, torch.tensor(3.0), 2, "1.5"]
    for limit in limits:
        clipper.max_norm = limit
        clipper.clip_()
        assert oracle.tensor_norm(grad, 2.0) == pytest.approx(float(limit))
    assert clipper.max_norm == 1.5


def test_the_value_of_a_max_norm_tensor_is_read_at_each_call(backend: str | None) -> None:
    grad = torch.tensor([3.0, 4.0])
    held = [parameter(grad)]
    limit = torch.tensor(4.0)
    clipper = GradClipper(held, limit, backend=backend)
    for value in (4.0, 3.0, 2.0):
        limit.fill_(value)
        clipper.clip_()
        assert oracle.tensor_norm(grad, 2.0) == pytest.approx(value)
    assert clipper.max_norm is limit


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "must be an iterable of tensors or of (name, tensor) pairs"),
        (3, "must be an iterable of tensors or of (name, tensor) pairs"),
        (torch.nn.Linear(2, 2), "got Linear"),
        (
            [torch.zeros(3), 3],
            "GradClipper: entry 1 must be a tensor or a (name, tensor) pair (got int)",
        ),
        (
            [("w", 3)],
            "GradClipper: entry 0 must be a tensor or a (name, tensor) pair (got (str, int))",
        ),
        ("abc", "GradClipper: entry 0 must be a tensor or a (name, tensor) pair (got str)"),
        (
            [{"params": []}],
            "GradClipper: entry 0 must be a tensor or a (name, tensor) pair (got dict)",
        ),
        ([("w", torch.zeros(3), 1)], "GradClipper: entry 0 must be"),
        ([("w",)], "GradClipper: entry 0 must be"),
        ([(torch.zeros(3), torch.zeros(3))], "GradClipper: entry 0 must be"),
    ],
)
def test_what_is_no_parameter_is_a_type_error(given: list[Tensor], words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        GradClipper(given, 1.0)


def test_arguments_out_of_range_are_refused_at_construction() -> None:
    held = [torch.zeros(3)]
    with pytest.raises(ValueError, match="could not convert string to float: 'abc'"):
        GradClipper(held, "abc")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        GradClipper(held, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="could not convert string to float: 'two'"):
        GradClipper(held, 1.0, "two")  # pyright: ignore[reportArgumentType]
    message = r"GradClipper: max_norm must be 0-dim \(got shape \(1,\)\)"
    with pytest.raises(ValueError, match=message):
        GradClipper(held, torch.ones(1))
    message = (
        r"GradClipper: backend must be one of native, triton, reference or None \(got 'cuda'\)"
    )
    with pytest.raises(ValueError, match=message):
        GradClipper(held, 1.0, backend="cuda")


def test_a_refused_max_norm_leaves_the_one_before(backend: str | None) -> None:
    clipper = GradClipper([torch.zeros(3)], 2.0, backend=backend)
    with pytest.raises(ValueError, match="max_norm must be 0-dim"):
        clipper.max_norm = torch.ones(2, 2)
    with pytest.raises(ValueError, match="could not convert"):
        clipper.max_norm = "wide"  # pyright: ignore[reportAttributeAccessIssue]
    assert clipper.max_norm == 2.0


def test_the_backend_that_was_named_runs_or_raises() -> None:
    if fastclip.backend_report()["native"]:
        pytest.skip("needs the native backend")
    held = [parameter(torch.tensor([3 + 4j]))]
    message = 'GradClipper: backend "native" cannot run this: dtype complex64 (supported: float32, '
    with pytest.raises(RuntimeError, match=re.escape(message)):
        GradClipper(held, 1.0, backend="native").clip_()
    assert GradClipper(held, 1.0).clip_().item() == 5.0


def test_expanded_gradients_raise_before_any_write(backend: str | None) -> None:
    grad = torch.tensor([3.0, 4.0])
    held = [parameter(grad), parameter(torch.ones(1).expand(3))]
    for max_norm in (1.0, 1e9):
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            GradClipper(held, max_norm, backend=backend).clip_()
    assert grad.tolist() == [3.0, 4.0]
