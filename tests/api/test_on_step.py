"""clip_on_step: what an optimizer's step does to gradients, and when it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import fastclip

GRADS = ([3.0, 0.0, -4.0], [[12.0], [0.0]])  # norm 13


def optimizer_of(kind: type[torch.optim.Optimizer] = torch.optim.SGD, **options: object):  # noqa: ANN201
    held = [torch.nn.Parameter(torch.zeros_like(torch.tensor(grad))) for grad in GRADS]
    for parameter, grad in zip(held, GRADS, strict=True):
        parameter.grad = torch.tensor(grad)
    return kind([{"params": held[:1]}, {"params": held[1:]}], lr=1.0, **options), held  # pyright: ignore


def test_a_step_clips_all_groups_as_one_vector() -> None:
    optimizer, held = optimizer_of()
    clip = fastclip.clip_on_step(optimizer, 6.5)
    assert clip.total_norm is None
    optimizer.step()
    assert clip.total_norm is not None and clip.total_norm.item() == 13
    for parameter, grad in zip(held, GRADS, strict=True):
        torch.testing.assert_close(parameter.detach(), torch.tensor(grad) * -0.5)
        torch.testing.assert_close(parameter.grad, torch.tensor(grad) * 0.5)


@pytest.mark.parametrize("kind", (torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad))
def test_training_equals_a_call_before_each_step(kind: type[torch.optim.Optimizer]) -> None:
    ours, clipped = optimizer_of(kind)
    theirs, called = optimizer_of(kind)
    fastclip.clip_on_step(ours, 0.5, norm_type=1.0)
    for step in range(3):
        for held in (clipped, called):
            for parameter, grad in zip(held, GRADS, strict=True):
                parameter.grad = torch.tensor(grad) * (step - 1.5)
        fastclip.clip_grad_norm_(called, 0.5, 1.0)
        ours.step()
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(clipped, called, strict=True))


def test_a_group_that_is_added_later_is_clipped() -> None:
    optimizer, _ = optimizer_of()
    clip = fastclip.clip_on_step(optimizer, 6.5)
    later = torch.nn.Parameter(torch.zeros(1))
    later.grad = torch.tensor([84.0])
    optimizer.add_param_group({"params": [later]})
    optimizer.step()
    assert clip.total_norm is not None and clip.total_norm.item() == 85
    torch.testing.assert_close(later.grad, torch.tensor([84 * 6.5 / 85]))


def test_remove_and_the_end_of_a_with_stop_clipping() -> None:
    optimizer, held = optimizer_of()
    with fastclip.clip_on_step(optimizer, 6.5):
        pass
    clip = fastclip.clip_on_step(optimizer, 6.5)
    clip.remove()
    clip.remove()
    optimizer.step()
    assert clip.total_norm is None
    torch.testing.assert_close(held[0].detach(), -torch.tensor(GRADS[0]))


def test_max_norm_may_change_and_be_a_tensor() -> None:
    optimizer, held = optimizer_of()
    limit = torch.tensor(26.0)
    clip = fastclip.clip_on_step(optimizer, limit)
    optimizer.step()
    torch.testing.assert_close(held[0].grad, torch.tensor(GRADS[0]))
    limit.fill_(6.5)
    optimizer.step()
    torch.testing.assert_close(held[0].grad, torch.tensor(GRADS[0]) * 0.5)
    clip.max_norm = 1.3
    optimizer.step()
    torch.testing.assert_close(held[0].grad, torch.tensor(GRADS[0]) * 0.1)


@pytest.mark.parametrize("as_keyword", (False, True))
def test_a_closure_is_refused_before_anything_is_written(as_keyword: bool) -> None:
    optimizer, held = optimizer_of()
    fastclip.clip_on_step(optimizer, 1.0)

    def closure() -> float:
        raise AssertionError("the closure ran")

    with pytest.raises(RuntimeError, match="clip_on_step: step must be called without a closure"):
        optimizer.step(closure=closure) if as_keyword else optimizer.step(closure)
    torch.testing.assert_close(held[0].grad, torch.tensor(GRADS[0]))
    torch.testing.assert_close(held[0].detach(), torch.zeros(3))


def test_a_closure_of_none_is_none() -> None:
    optimizer, held = optimizer_of()
    fastclip.clip_on_step(optimizer, 6.5)
    optimizer.step(None)
    torch.testing.assert_close(held[0].grad, torch.tensor(GRADS[0]) * 0.5)


def test_a_nonfinite_gradient_raises_and_nothing_is_stepped() -> None:
    optimizer, held = optimizer_of()
    assert held[0].grad is not None
    held[0].grad[1] = torch.inf
    fastclip.clip_on_step(optimizer, 1.0, error_if_nonfinite=True)
    with pytest.raises(RuntimeError, match="non-finite gradients: 0 "):
        optimizer.step()
    torch.testing.assert_close(held[1].detach(), torch.zeros(2, 1))
    torch.testing.assert_close(held[1].grad, torch.tensor(GRADS[1]))


@pytest.mark.parametrize("fused", (False, True))
@pytest.mark.parametrize("has_inf", (False, True))
def test_under_a_grad_scaler(fused: bool, has_inf: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, held = optimizer_of(fused=fused)
    clip = fastclip.clip_on_step(optimizer, 6.5)
    loss = scaler.scale(sum_of(held))
    for parameter in held:
        parameter.grad = None
    loss.backward()
    if has_inf:
        assert held[0].grad is not None
        held[0].grad[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    expected = 0.0 if has_inf else -0.5
    for parameter, grad in zip(held, GRADS, strict=True):
        torch.testing.assert_close(parameter.detach(), torch.tensor(grad) * expected)
    if not has_inf:
        assert clip.total_norm is not None and clip.total_norm.item() == pytest.approx(13)
    assert scaler.get_scale() == (512.0 if has_inf else 1024.0)


def sum_of(held: list[torch.nn.Parameter]) -> Tensor:
    """Return a loss whose gradients are GRADS."""
    terms = [(p * torch.tensor(grad)).sum() for p, grad in zip(held, GRADS, strict=True)]
    return terms[0] + terms[1]


def test_a_copy_of_the_optimizer_does_not_clip() -> None:
    optimizer, _ = optimizer_of()
    clip = fastclip.clip_on_step(optimizer, 6.5)
    copy.deepcopy(optimizer).step()
    assert clip.total_norm is None


def test_a_wrapper_that_holds_the_optimizer() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    optimizer, held = optimizer_of()
    fastclip.clip_on_step(Wrapper(optimizer), 6.5)  # pyright: ignore
    optimizer.step()
    torch.testing.assert_close(held[0].grad, torch.tensor(GRADS[0]) * 0.5)


class Empty(torch.optim.SGD):
    def __init__(self) -> None:
        super().__init__([torch.zeros(1)])
        self.param_groups = [{"params": []}, {"params": []}]


@pytest.mark.parametrize(
    ("make", "max_norm", "backend", "error", "text"),
    [
        (lambda: "sgd", 1.0, None, TypeError, r"must be a torch\.optim\.Optimizer \(got str\)"),
        (Empty, 1.0, None, ValueError, r"must hold parameters \(got 2 groups without any\)"),
        (lambda: optimizer_of()[0], torch.ones(2), None, ValueError, r"0-dim \(got shape \(2,\)\)"),
        (lambda: optimizer_of()[0], 1.0, "cuda", ValueError, "backend must be one of"),
        (lambda: optimizer_of()[0], "much", None, ValueError, "could not convert"),
    ],
)
def test_bad_arguments(
    make: object, max_norm: object, backend: str | None, error: type[Exception], text: str
) -> None:
    optimizer = make()  # pyright: ignore
    with pytest.raises(error, match=text):
        fastclip.clip_on_step(optimizer, max_norm, backend=backend)  # pyright: ignore
    if isinstance(optimizer, torch.optim.Optimizer):
        assert not optimizer._optimizer_step_pre_hooks
