"""The native backend for gradients on several devices, over the emulator."""

import math

import native_calls
import oracle
import pytest
import torch
from cuda_gradients import NORM_TYPES, mixed_gradients, place
from emulated_native import CPU, Emulated
from samples import assert_clipped, copies, parameters
from torch import Tensor

import fastclip


@pytest.mark.parametrize("devices", ([0, 1], [1, 0], [2, 2, 0, 1], [CPU, 0], [1, CPU]), ids=str)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_gradients_on_several_devices_have_one_norm(
    emulated: Emulated, devices: list[int], norm_type: float
) -> None:
    emulated.machine(devices=3)
    grads = mixed_gradients()
    held = parameters(copies(grads))
    ours = [p.grad for p in held if p.grad is not None]
    place(emulated, ours, devices)
    norm = fastclip.clip_grad_norm_(held, 0.5, norm_type, backend="native")
    assert_clipped(held, grads, 0.5, norm, norm_type)
    assert {launch.device for launch in emulated.launches} == {d for d in devices if d != CPU}
    assert emulated.current_device == 0
    place(emulated, ours, [CPU])
    again = fastclip.get_total_norm(ours, norm_type, backend="native")
    assert oracle.is_norm(float(again), oracle.total_norm(ours, norm_type), torch.float32)


@pytest.mark.parametrize("devices", ([0, 1], [CPU, 0], [0, CPU]), ids=str)
def test_the_other_functions_take_several_devices(emulated: Emulated, devices: list[int]) -> None:
    emulated.machine(devices=2)
    grads = mixed_gradients()
    held = parameters(copies(grads))
    ours = [p.grad for p in held if p.grad is not None]
    place(emulated, ours, devices)
    norm = fastclip.get_total_norm(ours, backend="native")
    assert oracle.is_norm(float(norm), oracle.total_norm(grads, 2.0), torch.float32)
    fastclip.clip_grads_with_norm_(held, 0.5, norm, backend="native")
    assert_clipped(held, grads, 0.5, norm)
    before = copies(ours)
    fastclip.clip_grad_value_(held, 1e-3, backend="native")
    for grad, old in zip(ours, before, strict=True):
        assert oracle.equal(grad, oracle.clamped(old, 1e-3))


# No other test takes these devices: what a device can run is asked once.
@pytest.mark.parametrize("devices", ([5], [6, 8], [CPU, 9]), ids=str)
def test_no_other_device_is_used(emulated: Emulated, devices: list[int]) -> None:
    emulated.machine(devices=10)
    grads = mixed_gradients()
    held = parameters(grads)
    place(emulated, grads, devices)
    norm = fastclip.get_total_norm(grads, backend="native")
    fastclip.clip_grads_with_norm_(held, 0.5, norm, backend="native")
    fastclip.clip_grad_norm_(held, 0.1, error_if_nonfinite=True, backend="native")
    fastclip.clip_grad_value_(held, 1e-3, backend="native")
    clipper = fastclip.GradClipper(held, 0.5, backend="native")
    clipper.clip_()
    assert clipper.parameter_norms.isfinite().all()
    assert emulated.current_device == 0
    assert [d for d in range(10) if emulated.has_context(d)] == [d for d in devices if d != CPU]


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("devices", ([0], [0, 1], [CPU, 1]), ids=str)
def test_parameter_norms_are_in_the_order_of_the_parameters(
    emulated: Emulated, devices: list[int], norm_type: float
) -> None:
    emulated.machine(devices=2)
    grads: list[Tensor | None] = [*mixed_gradients(), None]
    held = parameters(grads)
    held.append(held[1])
    place(emulated, [grad for grad in grads if grad is not None], devices)
    expected = [0.0 if p.grad is None else oracle.total_norm([p.grad], norm_type) for p in held]
    clipper = fastclip.GradClipper(held, 0.5, norm_type, backend="native")
    clipper.clip_()
    for actual, wanted in zip(clipper.parameter_norms, expected, strict=True):
        assert oracle.is_norm(float(actual), wanted, torch.float32)


@pytest.mark.parametrize("devices", ([1], [1, 0], [CPU, 1]), ids=str)
def test_a_limit_is_moved_to_the_gradients(emulated: Emulated, devices: list[int]) -> None:
    emulated.machine(devices=2)
    grads = mixed_gradients()
    ours, again = copies(grads), copies(grads)
    place(emulated, ours, devices)
    place(emulated, again, devices)
    limit = torch.tensor(0.5)
    emulated.place(limit, 0)
    norm = native_calls.clip_grad_norm_(parameters(ours), limit, 2.0, False)
    assert norm is not None
    assert_clipped(parameters(ours), grads, 0.5, norm)
    native_calls.clip_grads_with_norm_(parameters(again), limit, norm)
    assert_clipped(parameters(again), grads, 0.5, norm)


@pytest.mark.parametrize("devices", ([0, 1], [CPU, 0], [0, CPU]), ids=str)
def test_a_norm_beyond_float32_is_inf(emulated: Emulated, devices: list[int]) -> None:
    emulated.machine(devices=2)
    grads = [torch.full((4,), 3e38) for _ in range(2)]
    place(emulated, grads, devices)
    assert fastclip.get_total_norm(grads, backend="native").item() == math.inf
    norm = fastclip.clip_grad_norm_(parameters(grads), 1.0, backend="native")
    assert norm.item() == math.inf
    assert not any(grad.any() for grad in grads)
