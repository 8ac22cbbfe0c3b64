"""The operations of native lists on several devices and in captures, over the emulator."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from cuda_gradients import mixed_gradients, place
from emulated_native import CPU, Emulated
from engine_lists import assert_unchanged
from samples import copies, versions
from torch import Tensor

from fastclip.backends import NATIVE
from fastclip.backends.base import GradList, NonFiniteError
from fastclip.backends.request import TENSORS, Coefficient, clip_request

DEVICES = ([0, 1], [1, 0], [CPU, 0], [1, CPU], [2, 2, 0, 1])
"""Where gradients lie, in turn."""

SCALARS = (0, 1, CPU)
"""Where inv_scale and found_inf lie."""


def scalar(emulated: Emulated, value: float, device: int) -> Tensor:
    tensor = torch.tensor(value)
    emulated.place(tensor, device)
    return tensor


def placed(emulated: Emulated, grads: list[Tensor], devices: list[int]) -> GradList:
    emulated.machine(devices=3)
    place(emulated, grads, devices)
    return NATIVE.gather(grads, TENSORS)


def assert_scaled(grads: list[Tensor], before: list[Tensor], factor: float) -> None:
    for grad, old in zip(grads, before, strict=True):
        assert oracle.equal(grad, oracle.scaled(old, factor))


@pytest.mark.parametrize("where", SCALARS)
@pytest.mark.parametrize("devices", DEVICES, ids=str)
def test_a_clip_unscales_on_every_device(
    emulated: Emulated, devices: list[int], where: int
) -> None:
    grads = mixed_gradients()
    before = copies(grads)
    grad_list = placed(emulated, grads, devices)
    found_inf = scalar(emulated, 0.0, where)
    request = clip_request(
        0.5, inv_scale=scalar(emulated, 0.25, where), found_inf=found_inf, keeps_norms=True
    )
    norms = grad_list.clip(request)
    total_norm = norms.total_norm
    assert total_norm is not None
    expected = oracle.total_norm(before, 2.0) * 0.25
    assert oracle.is_norm(total_norm.item(), expected, total_norm.dtype)
    coef = oracle.clip_coef(0.5, total_norm)
    assert norms.clip_coef.item() == coef and found_inf.item() == 0
    is_wide = total_norm.dtype == torch.float64
    factor = coef * 0.25 if is_wide else float(torch.tensor(coef) * 0.25)
    assert_scaled(grads, before, factor)
    for actual, old in zip(norms.parameter_norms().tolist(), before, strict=True):
        wanted = oracle.tensor_norm(old, 2.0) * 0.25
        assert actual == pytest.approx(wanted, rel=2.0**-22, abs=1e-40)
    assert versions(grads) == [1] * len(grads)


@pytest.mark.parametrize("where", SCALARS)
@pytest.mark.parametrize("bad", (0, 3, -1))
@pytest.mark.parametrize("devices", DEVICES, ids=str)
def test_inf_on_one_device_stops_the_writes_on_all(
    emulated: Emulated, devices: list[int], bad: int, where: int
) -> None:
    for operation in ("clip", "steps", "scale", "clamp"):
        emulated.reset()  # where tensors that are gone have been
        grads = [grad for grad in mixed_gradients() if grad.numel() > 0]
        grads[bad].view(-1)[0] = math.inf
        before = copies(grads)
        grad_list = placed(emulated, grads, devices)
        found_inf = scalar(emulated, 0.0, where)
        if operation == "clip":
            grad_list.clip(clip_request(0.5, found_inf=found_inf))
        elif operation == "steps":
            held = grad_list.hold()
            held.reduce(2.0, found_inf=found_inf)
            emulated.clear()
            held.scale(0.5, found_inf=found_inf)
            # Gradients that have been checked are not read again to look for inf.
            assert all("scale_kernel" in launch.kernel for launch in emulated.launches)
        elif operation == "scale":
            grad_list.scale(0.5, found_inf=found_inf)
        else:
            grad_list.clamp(0.1, inv_scale=scalar(emulated, 0.5, where), found_inf=found_inf)
        assert found_inf.item() == 1, operation
        assert_unchanged(grads, before)


@pytest.mark.parametrize("devices", DEVICES, ids=str)
def test_the_steps_have_the_bits_of_a_clip_on_several_devices(
    emulated: Emulated, devices: list[int]
) -> None:
    for norm_type in (2.0, 1.0, math.inf):
        emulated.reset()  # where tensors that are gone have been
        grads, again = mixed_gradients(), mixed_gradients()
        request = clip_request(0.5, norm_type, keeps_norms=True)
        norms = placed(emulated, grads, devices).clip(request)
        held = placed(emulated, again, devices).hold()
        sums = held.reduce(norm_type)
        assert len(sums.parts) == len(set(devices))
        steps = held.finish(sums, request)
        held.scale(steps.clip_coef)
        assert torch.equal(norms.sums.total, sums.total)
        for ours, theirs in (
            (steps.total_norm, norms.total_norm),
            (steps.clip_coef, norms.clip_coef),
            (steps.parameter_norms(), norms.parameter_norms()),
            *zip(again, grads, strict=True),
        ):
            assert ours is not None and theirs is not None and torch.equal(ours, theirs)


@pytest.mark.parametrize("devices", DEVICES, ids=str)
def test_coefficients_are_laid_out_like_the_sums(emulated: Emulated, devices: list[int]) -> None:
    grads = mixed_gradients()
    before = copies(grads)
    held = placed(emulated, grads, devices).hold()
    sums = held.reduce(math.inf)
    coefs = [torch.full_like(part, 0.5) / (1 + part) for part in sums.parts]
    held.scale(coefs)
    for grad, old in zip(grads, before, strict=True):
        coef = 0.5 / (1 + oracle.tensor_norm(old, math.inf))
        assert oracle.equal(grad, oracle.scaled(old, coef))


@pytest.mark.parametrize("devices", DEVICES, ids=str)
def test_targets_and_norms_on_several_devices(emulated: Emulated, devices: list[int]) -> None:
    grads = mixed_gradients()
    before = copies(grads)
    grad_list = placed(emulated, grads, devices)
    targets = [torch.full_like(grad, 3.0) for grad in grads]
    place(emulated, targets, devices)
    norm = scalar(emulated, 8.0, 0)
    grad_list.scale_into(targets, Coefficient(2.0, norm))
    coef = oracle.clip_coef(2.0, norm)
    assert_scaled(targets, before, coef)
    assert_unchanged(grads, before)
    grad_list.scale(Coefficient(2.0, norm))
    assert_scaled(grads, before, coef)


@pytest.mark.parametrize("devices", ([0], *DEVICES), ids=str)
def test_an_error_is_raised_before_any_device_writes(
    emulated: Emulated, devices: list[int]
) -> None:
    grads = [grad for grad in mixed_gradients() if grad.numel() > 0]
    grads[2].view(-1)[-1] = math.nan
    before = copies(grads)
    grad_list = placed(emulated, grads, devices)
    with pytest.raises(NonFiniteError) as raised:
        grad_list.clip(clip_request(0.5, error_if_nonfinite=True))
    assert raised.value.positions == [2]
    assert_unchanged(grads, before)
    assert versions(grads) == [0 if i != 2 else 1 for i in range(len(grads))]


def test_every_operation_can_be_captured(emulated: Emulated) -> None:
    grads = mixed_gradients()
    before = copies(grads)
    inv_scale, found_inf = torch.tensor(0.5), torch.tensor(0.0)
    targets = [torch.empty_like(grad) for grad in grads]
    held = NATIVE.gather(grads, TENSORS).hold()
    request = clip_request(0.5, inv_scale=inv_scale, found_inf=found_inf)
    with emulated.capture() as graph:
        held.scale_into(targets, 0.25, inv_scale=inv_scale)
        sums = held.reduce(2.0, found_inf=found_inf)
        norms = held.finish(sums, request)
        held.scale(norms.clip_coef, inv_scale=inv_scale, found_inf=found_inf)
        clipped = held.clip(request)
        held.clamp(1e-3, found_inf=found_inf)
    for factor in (1.0, 3.0):
        for grad, old in zip(grads, before, strict=True):
            grad.copy_(old * factor)
        new = copies(grads)
        graph.replay()
        assert_scaled(targets, new, 0.125)
        assert norms.total_norm is not None and clipped.total_norm is not None
        expected = 0.5 * oracle.total_norm(new, 2.0)
        assert oracle.is_norm(norms.total_norm.item(), expected, norms.total_norm.dtype)
        once = [grad.clone() for grad in new]
        eager = NATIVE.gather(once, TENSORS)
        eager.clip(request)
        assert torch.equal(eager.clip(request).total_norm or grads[0], clipped.total_norm)
        eager.clamp(1e-3)
        for grad, wanted in zip(grads, once, strict=True):
            assert torch.equal(grad, wanted)
    grads[1].view(-1)[0] = math.nan
    stopped = copies(grads)
    graph.replay()
    assert found_inf.item() == 1
    assert_unchanged(grads, stopped)
