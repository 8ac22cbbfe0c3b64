"""GradClipper: a fixed set of parameters whose gradients come and go."""

import copy
import gc
import math
import pickle
import re
import warnings
import weakref
from collections.abc import Callable

import oracle
import pytest
import torch
from samples import gradient, parameter, parameters, versions
from torch import Tensor

import fastclip
from fastclip import GradClipper

SIZES = (33, 0, 16385, 1, 400)


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


def backward(model: torch.nn.Module) -> None:
    model(torch.ones(4, 7)).square().sum().backward()


def grads_of(held: list[Tensor]) -> list[Tensor]:
    return [tensor.grad for tensor in held if tensor.grad is not None]


def check_clip(clipper: GradClipper, held: list[Tensor], max_norm: float) -> Tensor:
    """Clip and compare the norm, every norm per parameter and every gradient with the oracle."""
    before = [None if tensor.grad is None else tensor.grad.clone() for tensor in held]
    total_norm = clipper.clip_()
    expected = oracle.total_norm([grad for grad in before if grad is not None], clipper.norm_type)
    assert oracle.is_norm(total_norm.item(), expected, total_norm.dtype)
    norms = clipper.parameter_norms
    assert norms.shape == (len(held),)
    clip_coef = oracle.clip_coef(max_norm, total_norm)
    for tensor, grad, norm in zip(held, before, norms.tolist(), strict=True):
        if grad is None:
            assert (tensor.grad, norm) == (None, 0.0)
            continue
        assert oracle.is_norm(norm, oracle.tensor_norm(grad, clipper.norm_type), norms.dtype)
        assert tensor.grad is not None
        assert oracle.equal(tensor.grad, oracle.scaled(grad, clip_coef))
    return total_norm


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clip_does_what_clip_grad_norm_does(
    backend: str | None, max_norm: float, norm_type: float
) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        grads = [gradient(size, dtype, seed) for seed, size in enumerate(SIZES)]
        clipped = parameters([grad.clone() for grad in grads])
        held = parameters(grads)
        expected = fastclip.clip_grad_norm_(clipped, max_norm, norm_type, backend=backend)
        clipper = GradClipper(held, max_norm, norm_type, backend=backend)
        norm = check_clip(clipper, held, max_norm)
        # The reference backend sums tensor by tensor here, an order that shows only in float64.
        tolerance = 2.0**-50 if backend == "reference" and dtype == torch.float64 else 0.0
        torch.testing.assert_close(
            [norm, *grads_of(held)], [expected, *grads_of(clipped)], rtol=tolerance, atol=0.0
        )


def test_native_and_reference_give_the_same_gradients_and_norms() -> None:
    if fastclip.backend_report()["native"]:
        pytest.skip("needs the native backend")
    results = []
    for backend in ("native", "reference"):
        held = parameters([gradient(size, torch.float32, size) for size in SIZES])
        clipper = GradClipper(held, 1.0, backend=backend)
        # The backends add in different orders: their norms may differ in the last place.
        norms = [clipper.clip_(), clipper.parameter_norms]
        results.append((norms, grads_of(held)))
    (native_norms, native_grads), (reference_norms, reference_grads) = results
    for native, reference in zip(native_norms, reference_norms, strict=True):
        torch.testing.assert_close(native, reference, rtol=4 * 2.0**-24, atol=0)
    for native, reference in zip(native_grads, reference_grads, strict=True):
        torch.testing.assert_close(native, reference, rtol=8 * 2.0**-24, atol=0)


def test_each_call_returns_a_fresh_norm(backend: str | None) -> None:
    held = parameters([torch.tensor([3.0, 4.0])])
    clipper = GradClipper(held, 100.0, backend=backend)
    first, first_norms = clipper.clip_(), clipper.parameter_norms
    held[0].grad = torch.tensor([6.0, 8.0])
    second, second_norms = clipper.clip_(), clipper.parameter_norms
    assert (first.item(), second.item()) == (5.0, 10.0)
    assert (first_norms.item(), second_norms.item()) == (5.0, 10.0)
    assert first.data_ptr() != second.data_ptr()
    first.fill_(7.0)
    assert clipper.clip_().item() == 10.0
    for norm in (first, second, first_norms):
        assert not norm.requires_grad


# Gradients that come and go.


def test_gradients_set_to_none_and_made_anew(backend: str | None) -> None:
    model = make_model()
    held: list[Tensor] = list(model.parameters())
    clipper = GradClipper(held, 0.1, backend=backend)
    for set_to_none in (True, False, True):
        backward(model)
        assert check_clip(clipper, held, 0.1).item() > 0.1
        model.zero_grad(set_to_none=set_to_none)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that there are no gradients
            assert check_clip(clipper, held, 0.1).item() == 0.0


def test_parameters_frozen_and_used_later(backend: str | None) -> None:
    model = make_model()
    held: list[Tensor] = list(model.parameters())
    clipper = GradClipper(held, 0.1, backend=backend)
    held[0].requires_grad_(False)
    backward(model)
    assert held[0].grad is None
    check_clip(clipper, held, 0.1)
    assert clipper.parameter_norms[0] == 0.0
    model.zero_grad()
    held[0].requires_grad_(True)
    backward(model)
    check_clip(clipper, held, 0.1)
    assert clipper.parameter_norms[0] > 0.0


def test_gradients_replaced_between_calls(backend: str | None) -> None:
    held = [torch.zeros(5, 4), torch.zeros(3)]
    clipper = GradClipper(held, 1.0, backend=backend)
    for seed in range(3):
        held[0].grad = gradient((4, 5), torch.float32, seed).t()
        held[1].grad = gradient(3, torch.float32, seed)
        check_clip(clipper, held, 1.0)


def test_no_gradient_at_all(backend: str | None) -> None:
    for held in ([], [torch.zeros(3)]):
        clipper = GradClipper(held, 1.0, backend=backend)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that there are no gradients
            total_norm = clipper.clip_()
        assert (total_norm.item(), total_norm.dtype, total_norm.dim()) == (0.0, torch.float32, 0)
        assert clipper.parameter_norms.tolist() == [0.0] * len(held)


def test_version_of_every_gradient_is_bumped(backend: str | None) -> None:
    held = parameters([gradient(5, torch.float32, seed) for seed in range(3)])
    for max_norm in (1.0, 1e9):
        before = versions(grads_of(held))
        GradClipper(held, max_norm, backend=backend).clip_()
        assert versions(grads_of(held)) == [version + 1 for version in before]


# Names and norms per parameter.


def test_names_are_those_given_or_positions(backend: str | None) -> None:
    model = make_model()
    named = GradClipper(model.named_parameters(), 1.0, backend=backend)
    assert named.names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert GradClipper(model.parameters(), 1.0, backend=backend).names == ["0", "1", "2", "3"]
    assert GradClipper(torch.zeros(3), 1.0, backend=backend).names == ["0"]
    assert GradClipper({"w": torch.zeros(3)}.items(), 1.0, backend=backend).names == ["w"]


def test_parameter_norms_are_in_construction_order(backend: str | None) -> None:
    held = parameters([torch.tensor([3.0, 4.0]), None, torch.zeros(0), torch.full((4,), 6.0)])
    held += [held[0], parameter(held[3].grad)]
    clipper = GradClipper(held, 1.0, backend=backend)
    # The last two share the gradients of the first and the fourth: named in full, counted once.
    assert clipper.clip_().item() == 13.0
    assert clipper.parameter_norms.tolist() == [5.0, 0.0, 0.0, 12.0, 5.0, 12.0]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float32, torch.bfloat16, torch.float16], torch.float32),
        ([torch.bfloat16], torch.float32),
        ([torch.float16, torch.float64, torch.float32], torch.float64),
        ([torch.float64], torch.float64),
    ],
)
def test_norms_are_float64_if_any_gradient_is(
    backend: str | None, dtypes: list[torch.dtype], expected: torch.dtype
) -> None:
    held = parameters([gradient(33, dtype, seed) for seed, dtype in enumerate(dtypes)])
    clipper = GradClipper(held, 1.0, backend=backend)
    assert check_clip(clipper, held, 1.0).dtype == expected
    assert clipper.parameter_norms.dtype == expected


def test_parameter_norms_before_the_first_call_raise(backend: str | None) -> None:
    clipper = GradClipper([torch.zeros(3)], 1.0, backend=backend)
    with pytest.raises(RuntimeError, match=r"GradClipper: parameter_norms needs a call of clip_\("):
        _ = clipper.parameter_norms


def test_parameter_norms_after_an_error_show_what_was_not_finite(backend: str | None) -> None:
    held = parameters([torch.tensor([3.0, 4.0]), torch.tensor([1.0, math.inf])])
    clipper = GradClipper(held, 1.0, error_if_nonfinite=True, backend=backend)
    with pytest.raises(RuntimeError, match="non-finite"):
        clipper.clip_()
    assert clipper.parameter_norms.tolist() == [5.0, math.inf]


def test_parameter_norms_after_a_refusal_are_those_of_the_call_before(backend: str | None) -> None:
    held = [torch.zeros(2)]
    held[0].grad = torch.tensor([3.0, 4.0])
    clipper = GradClipper(held, 1.0, backend=backend)
    clipper.clip_()
    held[0].grad = torch.ones(1).expand(2)
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        clipper.clip_()
    assert clipper.parameter_norms.tolist() == [5.0]


def test_a_clip_that_native_refuses_falls_to_reference_and_back() -> None:
    held = parameters([gradient(66, torch.float32)])
    clipper = GradClipper(held, 1.0)
    check_clip(clipper, held, 1.0)
    held[0].grad = torch.empty(66, 2)[:, 0].copy_(gradient(66, torch.float32, 1))
    check_clip(clipper, held, 1.0)
    held[0].grad = gradient(66, torch.float32, 2)
    check_clip(clipper, held, 1.0)


def test_the_error_names_parameters_and_shapes(backend: str | None) -> None:
    model = make_model()
    clipper = GradClipper(model.named_parameters(), 1.0, error_if_nonfinite=True, backend=backend)
    backward(model)
    expected = [parameter.grad for parameter in model.parameters()]
    assert expected[1] is not None
    expected[1][0] = math.nan
    before = [grad.clone() for grad in grads_of(list(model.parameters()))]
    message = (
        "The total norm of order 2.0 for gradients from `parameters` is non-finite, so it cannot "
        "be clipped. To disable this error and scale the gradients by the non-finite norm anyway, "
        "set `error_if_nonfinite=False`; non-finite gradients: 0.bias (5,)"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        clipper.clip_()
    after = grads_of(list(model.parameters()))
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(after, before, strict=True))
    clipper.error_if_nonfinite = False
    assert math.isnan(clipper.clip_().item())


# Holding, copying, pickling.


def test_parameters_are_held_strongly(backend: str | None) -> None:
    held = parameters([torch.tensor([3.0, 4.0])])
    watch = weakref.ref(held[0])
    clipper = GradClipper(held, 1.0, backend=backend)
    clipper.clip_()
    del held
    gc.collect()
    assert watch() is not None
    assert clipper.clip_().item() == pytest.approx(1.0)
    del clipper
    gc.collect()
    assert watch() is None


def test_the_callers_list_may_change(backend: str | None) -> None:
    held = parameters([torch.tensor([3.0, 4.0])])
    clipper = GradClipper(held, 100.0, backend=backend)
    held.append(parameter(torch.ones(100)))
    assert clipper.clip_().item() == 5.0
    held.clear()
    assert clipper.clip_().item() == 5.0
    assert GradClipper(iter([]), 1.0, backend=backend).names == []


Pair = tuple[GradClipper, torch.nn.Module]


def as_deepcopy(pair: Pair) -> Pair:
    return copy.deepcopy(pair)


def as_pickle(pair: Pair) -> Pair:
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("duplicate", [as_deepcopy, as_pickle])
def test_copies_clip_their_own_parameters(
    backend: str | None, duplicate: Callable[[Pair], Pair]
) -> None:
    model = make_model()
    clipper = GradClipper(model.named_parameters(), 0.1, 1.0, True, backend=backend)
    backward(model)
    clipper.clip_()
    other, other_model = duplicate((clipper, model))
    assert (other.names, other.norm_type, other.max_norm) == (clipper.names, 1.0, 0.1)
    assert (other.error_if_nonfinite, other.backend) == (True, backend)
    with pytest.raises(RuntimeError, match="needs a call"):
        _ = other.parameter_norms
    other_model.zero_grad()
    backward(other_model)
    before = [grad.clone() for grad in grads_of(list(model.parameters()))]
    check_clip(other, list(other_model.parameters()), 0.1)
    assert all(map(torch.equal, grads_of(list(model.parameters())), before))
    check_clip(clipper, list(model.parameters()), 0.1)


def test_a_copy_has_a_max_norm_tensor_of_its_own() -> None:
    limit = torch.tensor(2.0)
    clipper = GradClipper(parameters([torch.tensor([3.0, 4.0])]), limit)
    other = copy.deepcopy(clipper)
    limit.fill_(1.0)
    assert float(other.max_norm) == 2.0


def test_repr_says_what_it_holds() -> None:
    clipper = GradClipper([torch.zeros(3)], 2.0, backend="reference")
    assert repr(clipper) == (
        "GradClipper(1 parameters, max_norm=2.0, norm_type=2.0, error_if_nonfinite=False, "
        "backend='reference')"
    )
