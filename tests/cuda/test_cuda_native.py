"""The native backend for cuda gradients, over the emulator: devices, launches, errors, graphs.

The tests of the public functions also run over it (the fixture "backend"); here is what only GPUs
have.
"""

import math

import native_calls
import oracle
import pytest
import torch
from cuda_gradients import NORM_TYPES, mixed_gradients, place
from emulated_native import CPU, Emulated
from samples import assert_clipped, copies, gradient, parameters, versions
from torch import Tensor

import fastclip
from fastclip.backends.base import RefusedError

# Status codes of the CUDA runtime.
NO_DEVICE = 100
INSUFFICIENT_DRIVER = 35
NO_KERNEL_IMAGE = 209
LAUNCH_FAILURE = 719
COOPERATIVE_TOO_LARGE = 720
NOT_SUPPORTED = 801

SPLIT = ["reduce_kernel", "finish_and_scale_kernel"]


def kernels(emulated: Emulated) -> list[str]:
    """Return the names of the kernels launched, without template arguments."""
    return [
        launch.kernel.partition("<")[0].rpartition("::")[2].rpartition(" ")[2]
        for launch in emulated.launches
    ]


def test_a_clip_is_two_launches_and_one_by_choice(emulated: Emulated) -> None:
    grads = [gradient(1 + i % 7, torch.float32, seed=i) for i in range(1600)]
    results = []
    for is_fused, names in ((False, SPLIT), (True, ["clip_kernel"])):
        emulated.clear()
        emulated.fuse_clips(is_fused)
        held = parameters(copies(grads))
        norm = fastclip.clip_grad_norm_(held, 0.1, backend="native")
        assert kernels(emulated) == names
        assert all(launch.is_cooperative == is_fused for launch in emulated.launches)
        results.append([norm, *(p.grad for p in held)])
    for split, fused in zip(*results, strict=True):
        assert split is not None and fused is not None
        assert torch.equal(split, fused)


def test_longer_lists_take_a_few_launches_more(emulated: Emulated) -> None:
    grads = [gradient(1 + i % 7, torch.float32, seed=i) for i in range(3300)]
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, 0.1, backend="native")
    assert kernels(emulated) == [*["write_table_kernel"] * 3, *SPLIT]
    assert_clipped(held, grads, 0.1, norm)


def test_gradients_are_read_once_and_not_written_when_nothing_is_clipped(
    emulated: Emulated,
) -> None:
    grads = mixed_gradients()
    for grad in grads:
        emulated.watch(grad)
    held = parameters(grads)
    fastclip.clip_grad_norm_(held, 1e9, backend="native")
    for grad in grads:
        traffic = emulated.traffic(grad)
        assert (traffic.read, traffic.unique_read, traffic.written) == (grad.nbytes, grad.nbytes, 0)
    emulated.clear()
    fastclip.clip_grad_norm_(held, 0.1, backend="native")
    for grad in grads:
        traffic = emulated.traffic(grad)
        assert (traffic.read, traffic.written) == (2 * grad.nbytes, grad.nbytes)


def test_parameter_norms_take_no_further_pass(emulated: Emulated) -> None:
    grads = mixed_gradients()
    for grad in grads:
        emulated.watch(grad)
    clipper = fastclip.GradClipper(parameters(grads), 1e9, backend="native")
    clipper.clip_()
    norms = clipper.parameter_norms
    for actual, grad in zip(norms.tolist(), grads, strict=True):
        assert oracle.is_norm(actual, oracle.total_norm([grad], 2.0), norms.dtype)
        assert emulated.traffic(grad).read == grad.nbytes


def test_a_limit_on_the_gpu_is_read_by_the_kernel(emulated: Emulated) -> None:
    grads = mixed_gradients()
    held = parameters(copies(grads))
    limit = torch.tensor(0.5, dtype=torch.float64)
    norm = native_calls.clip_grad_norm_(held, limit, 2.0, False)
    assert norm is not None
    assert_clipped(held, grads, 0.5, norm)
    held = parameters(copies(grads))
    native_calls.clip_grads_with_norm_(held, limit, norm)
    assert_clipped(held, grads, 0.5, norm)
    with pytest.raises(RefusedError, match="max_norm is on device"):
        native_calls.clip_grad_norm_(held, torch.ones(2), 2.0, False)


def test_scalars_within_gradients_are_read_before_those_are_written(emulated: Emulated) -> None:
    grads = [torch.full((20_000,), 2.0) for _ in range(3)]
    norm = torch.tensor(2.0)
    for clip in (
        lambda held: native_calls.clip_grads_with_norm_(held, 1.0, held[1].grad[5]),
        lambda held: native_calls.clip_grads_with_norm_(held, held[2].grad[-1] / 2, norm),
        lambda held: native_calls.clip_grad_norm_(held, held[1].grad[5], 2.0, False),
    ):
        held = parameters(copies(grads))
        clip(held)
        (values,) = {tuple(p.grad.unique().tolist()) for p in held if p.grad is not None}
        assert len(values) == 1


def test_a_limit_on_the_gpu_is_for_gradients_there(emulated: Emulated) -> None:
    held = parameters([gradient(5, torch.float32)])
    place(emulated, [held[0].grad for _ in range(1) if held[0].grad is not None], [CPU])
    with pytest.raises(RefusedError, match="max_norm is on device"):
        native_calls.clip_grad_norm_(held, torch.tensor(1.0), 2.0, False)


def test_a_limit_on_the_gpu_needs_no_gradients(emulated: Emulated) -> None:
    for held in ([], parameters([None])):
        assert native_calls.clip_grad_norm_(held, torch.tensor(0.5), 2.0, False) is None


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_parameter_norms_are_the_callers(emulated: Emulated, norm_type: float) -> None:
    held = parameters([gradient(50, torch.float64, seed=i) for i in range(3)])
    clipper = fastclip.GradClipper(held, 1e9, norm_type, backend="native")
    clipper.clip_()
    norms = clipper.parameter_norms.clone()
    clipper.parameter_norms.zero_()
    assert torch.equal(clipper.parameter_norms, norms)


class MovesAnother:
    """A parameter whose ``.grad`` is a property that moves another gradient to the CPU."""

    def __init__(self, emulated: Emulated, grads: list[Tensor]) -> None:
        self._emulated, self._grads = emulated, grads

    @property
    def grad(self) -> Tensor:
        place(self._emulated, self._grads, [CPU])
        return self._grads[1]


def test_a_grad_property_may_move_a_gradient_of_before(emulated: Emulated) -> None:
    grads = [gradient(33, torch.float32, seed=i) for i in range(2)]
    before = copies(grads)
    held = [parameters(grads)[0], MovesAnother(emulated, grads)]
    norm = native_calls.clip_grad_norm_(held, 0.5, 2.0, False)
    assert norm is not None
    assert emulated.launches == []
    assert_clipped(parameters(grads), before, 0.5, norm)


@pytest.mark.parametrize("devices", ([0], [0, 1], [CPU, 0]), ids=str)
def test_an_error_names_the_parameters_and_writes_nothing(
    emulated: Emulated, devices: list[int]
) -> None:
    emulated.machine(devices=2)
    grads = mixed_gradients()
    grads[2].fill_(math.inf)
    grads[4][-1] = math.nan
    before = copies(grads)
    held = parameters(grads)
    place(emulated, grads, devices)
    seen = versions(grads)
    with pytest.raises(RuntimeError, match=r"non-finite gradients: .*2.*4"):
        fastclip.clip_grad_norm_(held, 0.5, error_if_nonfinite=True, backend="native")
    for grad, old in zip(grads, before, strict=True):
        assert torch.equal(grad.nan_to_num(nan=7.0), old.nan_to_num(nan=7.0))
    assert versions(grads) == seen


def test_versions_are_bumped_written_or_not(emulated: Emulated) -> None:
    grads = mixed_gradients()
    seen = versions(grads)
    fastclip.clip_grad_norm_(parameters(grads), 1e9, backend="native")
    assert versions(grads) == [version + 1 for version in seen]


@pytest.mark.parametrize(
    ("status", "name"),
    [(COOPERATIVE_TOO_LARGE, "CooperativeLaunchTooLarge"), (NOT_SUPPORTED, "NotSupported")],
)
def test_a_refused_fused_clip_raises_and_writes_nothing(
    emulated: Emulated, status: int, name: str
) -> None:
    grads = mixed_gradients()
    held = parameters(copies(grads))
    emulated.fuse_clips(True)
    if status == NOT_SUPPORTED:
        emulated.machine(has_cooperative_launch=False)
    else:
        emulated.errors(cooperative=status)
    with pytest.raises(RuntimeError, match=f"a launch on device cuda:0 failed: cudaError{name} "):
        fastclip.clip_grad_norm_(held, 0.5, backend="native")
    assert kernels(emulated) == ["clip_kernel"]
    for p, grad in zip(held, grads, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, grad)


@pytest.mark.parametrize("is_fused", (False, True))
def test_a_captured_clip_replays_on_changed_gradients(emulated: Emulated, is_fused: bool) -> None:
    grads = mixed_gradients()
    held = parameters(copies(grads))
    emulated.fuse_clips(is_fused)
    with emulated.capture() as graph:
        norm = fastclip.clip_grad_norm_(held, 0.5, backend="native")
    assert kernels(emulated) == (["clip_kernel"] if is_fused else SPLIT)
    for factor in (1.0, 3.0):
        new = [grad * factor for grad in grads]
        for p, grad in zip(held, new, strict=True):
            assert p.grad is not None
            p.grad.copy_(grad)
        graph.replay()
        assert_clipped(held, new, 0.5, norm)
        eager = parameters(copies(new))
        assert torch.equal(fastclip.clip_grad_norm_(eager, 0.5, backend="native"), norm)
        for p, q in zip(held, eager, strict=True):
            assert p.grad is not None and q.grad is not None
            assert torch.equal(p.grad, q.grad)


def test_the_norms_of_a_captured_clip_are_of_the_last_replay(emulated: Emulated) -> None:
    grads: list[Tensor | None] = [*mixed_gradients(), None]
    held = parameters(grads)
    clipper = fastclip.GradClipper(held, 1e9, backend="native")
    with emulated.capture() as graph:
        clipper.clip_()
        with pytest.raises(RuntimeError, match="must be read outside of a CUDA graph's capture"):
            _ = clipper.parameter_norms
    for factor in (1.0, 3.0):
        for grad in grads[:-1]:
            assert grad is not None
            grad.mul_(factor)
        graph.replay()
        wanted = [0.0 if p.grad is None else oracle.total_norm([p.grad], 2.0) for p in held]
        for actual, norm in zip(clipper.parameter_norms, wanted, strict=True):
            assert oracle.is_norm(float(actual), norm, torch.float32)


@pytest.mark.parametrize("count", (6, 2000))
def test_a_capture_refuses_to_read_the_norm_back(emulated: Emulated, count: int) -> None:
    grads = [gradient(1 + i % 7, torch.float32, seed=i) for i in range(count)]
    with (
        emulated.capture() as graph,
        pytest.raises(RuntimeError, match="error_if_nonfinite must be False while a CUDA graph"),
    ):
        fastclip.clip_grad_norm_(parameters(grads), 0.5, error_if_nonfinite=True, backend="native")
    assert graph.launches == 0


@pytest.mark.parametrize("failing", (1, 2))
def test_a_failed_launch_says_what_and_where(emulated: Emulated, failing: int) -> None:
    grads = mixed_gradients()
    before = copies(grads)
    emulated.fail_launch(failing, LAUNCH_FAILURE)
    with pytest.raises(
        RuntimeError,
        match=r"fastclip: a launch on device cuda:0 failed: cudaErrorLaunchFailure \(.*\); ",
    ):
        fastclip.clip_grad_norm_(parameters(grads), 0.5, backend="native")
    for grad, old in zip(grads, before, strict=True):
        assert torch.equal(grad, old)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (NO_DEVICE, r"cudaErrorNoDevice \(.*\); see whether nvidia-smi"),
        (INSUFFICIENT_DRIVER, r"cudaErrorInsufficientDriver \(.*\); update the NVIDIA driver"),
        (NO_KERNEL_IMAGE, r"cudaErrorNoKernelImageForDevice \(.*\); rebuild fastclip with TORCH_C"),
    ],
)
def test_a_device_that_cannot_run_kernels_is_a_reason(
    emulated: Emulated, status: int, words: str
) -> None:
    emulated.machine(devices=8)
    grads = mixed_gradients()
    before = copies(grads)
    place(emulated, grads, [7])
    if status == NO_KERNEL_IMAGE:
        emulated.errors(code=status)
    else:
        emulated.errors(device=status)
    held = parameters(grads)
    with pytest.raises(
        RuntimeError,
        match=rf'clip_grad_norm_: backend "native" cannot run this: the CUDA kernels cannot run on '
        rf"device cuda:7: {words}",
    ):
        fastclip.clip_grad_norm_(held, 0.5, backend="native")
    for grad, old in zip(grads, before, strict=True):
        assert torch.equal(grad, old)
    with pytest.warns(
        RuntimeWarning, match=rf"operations: the CUDA kernels cannot run .*: {words}"
    ):
        norm = fastclip.clip_grad_norm_(held, 0.5)  # another backend may be chosen
    assert_clipped(held, before, 0.5, norm)


def test_new_tensors_are_scaled_out_of_place(emulated: Emulated) -> None:
    grads = mixed_gradients()
    before = copies(grads)
    for coef in (0.25, 1.0, 3.0):
        results = native_calls.scaled(grads, coef)
        for result, grad, old in zip(results, grads, before, strict=True):
            assert oracle.equal(result, oracle.scaled(old, coef))
            assert torch.equal(grad, old)


@pytest.mark.parametrize("schedule", ("fifo", "lifo", "random", "priorities"))
def test_bits_do_not_depend_on_order_or_grid(emulated: Emulated, schedule: str) -> None:
    grads = [gradient(200_000, torch.float32), *mixed_gradients()]
    norms = []
    for multiprocessors in (1, 3):
        # The launchers ask a device for its size once, so another size needs another device.
        emulated.reset()
        emulated.machine(devices=20, multiprocessors=multiprocessors)
        place(emulated, grads, [10 + multiprocessors])
        emulated.schedule(schedule, seed=multiprocessors)
        norms.append(fastclip.get_total_norm(grads, backend="native").item())
    emulated.reset()
    emulated.schedule("fifo", seed=0)
    assert norms == [fastclip.get_total_norm(grads, backend="native").item()] * 2


def test_the_cpus_norm_agrees(emulated: Emulated) -> None:
    grads = mixed_gradients()
    on_gpu = fastclip.get_total_norm(grads, backend="native")
    place(emulated, grads, [CPU])
    emulated.clear()
    on_cpu = fastclip.get_total_norm(grads, backend="native")
    assert emulated.launches == []
    assert oracle.is_norm(float(on_gpu), float(on_cpu), torch.float32)
