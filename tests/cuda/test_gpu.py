"""The backends with kernels on a real GPU. Marked "gpu": skipped where there is none, with reasons.

tests/cuda/test_cuda_native.py and tests/cuda_kernels run the CUDA kernels over the emulator,
tests/triton/test_triton.py the Triton kernels in Triton's interpreter; here is what only hardware
can show. ``make gpu`` runs this file with TRITON_INTERPRET=0, as the Triton kernels need it, and
``make sanitize`` under compute-sanitizer's four tools.
"""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import oracle
import pytest
import torch
from samples import assert_clipped, copies, gradient, parameters
from torch import Tensor

import fastclip
from fastclip.backends import clip_mode

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NORM_TYPES = (2.0, 1.0, math.inf, 3.0, 0.5)
SIZES = (0, 1, 31, 33, 1023, 1024, 1025, 4097, 16383, 16385, 50001, 300_007)


@pytest.fixture(params=["native", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return each backend that has kernels; let a failure of one test's show in that test."""
    reasons = fastclip.backend_report("cuda")[request.param]
    if reasons:
        pytest.skip(f"needs a GPU: {'; '.join(reasons)}")
    yield request.param
    torch.cuda.synchronize()


def skip_without_several_devices(backend: str) -> None:
    """Skip unless the backend is the one that takes several devices in a call."""
    if backend != "native":
        pytest.skip("the Triton backend takes gradients on one device")


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Raise where the host waits for the device."""
    try:
        with warnings.catch_warnings():
            # torch warns that the mode is a prototype.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(tensors: list[Tensor], device: str = "cuda") -> list[Tensor]:
    return [tensor.to(device, copy=True) for tensor in tensors]


def mixed_gradients() -> list[Tensor]:
    return [gradient(size, DTYPES[i % 4], seed=i) for i, size in enumerate(SIZES)]


def narrow_gradients(seed: int = 0) -> list[Tensor]:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return [gradient(size, dtypes[i % 3], seed=seed + i) for i, size in enumerate(SIZES)]


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", (0.5, 1e9))
def test_clip_matches_the_oracle(backend: str, norm_type: float, max_norm: float) -> None:
    for grads in (mixed_gradients(), narrow_gradients()):
        held = parameters(on_gpu(grads))
        norm = fastclip.clip_grad_norm_(held, max_norm, norm_type, backend=backend)
        assert norm.device.type == "cuda" and norm.dim() == 0
        has_float64 = any(grad.dtype == torch.float64 for grad in grads)
        assert norm.dtype == (torch.float64 if has_float64 else torch.float32)
        assert_clipped(held, grads, max_norm, norm, norm_type)


@pytest.mark.parametrize("max_norm", (0.5, 1e9))
def test_one_launch_gives_the_bits_of_two(backend: str, max_norm: float) -> None:
    before = clip_mode.clip_mode()
    results: list[list[Tensor]] = []
    try:
        for mode in (clip_mode.SPLIT, clip_mode.FUSED):
            clip_mode.set_clip_mode(mode)
            held = parameters(on_gpu(mixed_gradients()))
            norm = fastclip.clip_grad_norm_(held, max_norm, backend=backend)
            assert_clipped(held, mixed_gradients(), max_norm, norm)
            results.append([norm, *(p.grad for p in held if p.grad is not None)])
    finally:
        clip_mode.set_clip_mode(before)
    for split, fused in zip(*results, strict=True):
        assert torch.equal(split, fused)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_misalignment(backend: str, dtype: torch.dtype) -> None:
    step = 16 // dtype.itemsize
    grads = [gradient(20_000 + i, dtype, seed=i) for i in range(step)]
    held = parameters(grad.cuda()[i:] for i, grad in enumerate(grads))
    grads = [grad[i:] for i, grad in enumerate(grads)]
    norm = fastclip.clip_grad_norm_(held, 0.5, backend=backend)
    assert_clipped(held, grads, 0.5, norm)


@pytest.mark.parametrize("count", (198, 199, 1630, 1631, 10_000))
def test_lists_of_every_length(backend: str, count: int) -> None:
    grads = [gradient(1 + i % 97, torch.float32, seed=i) for i in range(count)]
    held = parameters(on_gpu(grads))
    norm = fastclip.clip_grad_norm_(held, 0.5, backend=backend)
    assert_clipped(held, grads, 0.5, norm)


def test_the_other_functions(backend: str) -> None:
    grads = narrow_gradients()
    held = parameters(on_gpu(grads))
    ours = [p.grad for p in held if p.grad is not None]
    norm = fastclip.get_total_norm(ours, backend=backend)
    fastclip.clip_grads_with_norm_(held, 0.5, norm, backend=backend)
    assert_clipped(held, grads, 0.5, norm)
    before = [grad.cpu() for grad in ours]
    fastclip.clip_grad_value_(held, 1e-3, backend=backend)
    for grad, old in zip(ours, before, strict=True):
        assert oracle.equal(grad.cpu(), oracle.clamped(old, 1e-3))


def test_no_host_sync(backend: str) -> None:
    grads: list[Tensor | None] = [*on_gpu(narrow_gradients()), None]
    held = parameters(grads)
    held.append(held[3])
    limit = torch.tensor(0.5, device="cuda")
    clipper = fastclip.GradClipper(held, 1e9, backend=backend)
    clipper.clip_()
    _ = clipper.parameter_norms  # torch allocates what it pins
    with no_host_sync():
        norm = fastclip.clip_grad_norm_(held, 0.5, backend=backend)
        fastclip.clip_grad_norm_(held, limit, backend=backend)
        fastclip.clip_grads_with_norm_(held, 0.5, norm, backend=backend)
        fastclip.clip_grad_value_(held, 1e-3, backend=backend)
        clipper.clip_()
        norms = clipper.parameter_norms
    # The clipper clips nothing: the gradients are still what the norms were taken of.
    for p, actual in zip(held, norms.tolist(), strict=True):
        wanted = 0.0 if p.grad is None else oracle.total_norm([p.grad.cpu()], 2.0)
        assert oracle.is_norm(actual, wanted, torch.float32)


# torch refuses to allocate in a capture without its caching allocator.
needs_caching = pytest.mark.skipif(
    "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ, reason="needs torch's caching allocator"
)


@needs_caching
def test_a_graph_replays_on_changed_gradients(backend: str) -> None:
    grads = narrow_gradients()
    held = parameters(on_gpu(grads))
    fastclip.clip_grad_norm_(held, 0.5, backend=backend)  # loads the kernels before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = fastclip.clip_grad_norm_(held, 0.5, backend=backend)
    for factor in (1.0, 3.0):
        new = [grad * factor for grad in grads]
        for p, grad in zip(held, new, strict=True):
            assert p.grad is not None
            p.grad.copy_(grad)
        graph.replay()
        torch.cuda.synchronize()
        assert_clipped(held, new, 0.5, norm)
        eager = parameters(on_gpu(new))
        assert torch.equal(fastclip.clip_grad_norm_(eager, 0.5, backend=backend), norm)
        for a, b in zip(held, eager, strict=True):
            assert a.grad is not None and b.grad is not None
            assert torch.equal(a.grad, b.grad)


@needs_caching
def test_a_graph_with_a_table_in_memory(backend: str) -> None:
    grads = [gradient(1 + i % 97, torch.float32, seed=i) for i in range(2500)]
    held = parameters(on_gpu(grads))
    fastclip.clip_grad_norm_(held, 1e9, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = fastclip.clip_grad_norm_(held, 0.5, backend=backend)
    graph.replay()
    torch.cuda.synchronize()
    assert_clipped(held, grads, 0.5, norm)


@needs_caching
def test_a_captured_limit_may_change_and_parameter_norms_follow(backend: str) -> None:
    grads = narrow_gradients()
    held = parameters(on_gpu(grads))
    limit = torch.tensor(1e9, device="cuda")
    clipper = fastclip.GradClipper(held, limit, backend=backend)
    clipper.clip_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = clipper.clip_()
    for factor, max_norm in ((2.0, 0.5), (3.0, 1e9)):
        new = [grad * factor for grad in grads]
        for p, grad in zip(held, new, strict=True):
            assert p.grad is not None
            p.grad.copy_(grad)
        limit.fill_(max_norm)
        graph.replay()
        assert_clipped(held, new, max_norm, norm)
        for actual, grad in zip(clipper.parameter_norms.tolist(), new, strict=True):
            assert oracle.is_norm(actual, oracle.total_norm([grad], 2.0), torch.float32)


@needs_caching
def test_a_capture_refuses_to_read_the_norm_back(backend: str) -> None:
    held = parameters(on_gpu(narrow_gradients()))
    fastclip.clip_grad_norm_(held, 0.5, backend=backend)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.ones(1, device="cuda")  # torch warns of graphs without a kernel
        with pytest.raises(RuntimeError, match="error_if_nonfinite must be False while a CUDA"):
            fastclip.clip_grad_norm_(held, 0.5, error_if_nonfinite=True, backend=backend)


def test_several_streams(backend: str) -> None:
    lists = [narrow_gradients(seed=100 * i) for i in range(4)]
    helds = [parameters(on_gpu(grads)) for grads in lists]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in lists]
    norms = []
    for stream, held in zip(streams, helds, strict=True):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)
            norms.append(fastclip.clip_grad_norm_(held, 0.5, backend=backend))
    torch.cuda.synchronize()
    for held, grads, norm in zip(helds, lists, norms, strict=True):
        assert_clipped(held, grads, 0.5, norm)


def test_bits_are_the_same_on_every_run(backend: str) -> None:
    grads = on_gpu([gradient(3_000_001, torch.float32), *narrow_gradients()])
    norms = {fastclip.get_total_norm(grads, backend=backend).item() for _ in range(20)}
    assert len(norms) == 1


def test_an_error_names_the_parameters_and_writes_nothing(backend: str) -> None:
    grads = on_gpu(narrow_gradients())
    grads[3].fill_(math.inf)
    before = copies(grads)
    with pytest.raises(RuntimeError, match=r"non-finite gradients: 3 \(33,\)$"):
        fastclip.clip_grad_norm_(parameters(grads), 0.5, error_if_nonfinite=True, backend=backend)
    for grad, old in zip(grads, before, strict=True):
        assert torch.equal(grad, old)


@pytest.mark.big
def test_more_than_two_to_the_31_elements(backend: str) -> None:
    count = 2**31 + 4099
    # The gradient, its parameter and a comparison: 5 bytes an element.
    if torch.cuda.mem_get_info()[0] < 6 * count:
        pytest.skip("needs 13 GB of free GPU memory")
    grad = torch.full((count,), 0.5, dtype=torch.bfloat16, device="cuda")
    held = parameters([grad])
    norm = fastclip.clip_grad_norm_(held, 1.0, backend=backend)
    assert oracle.is_norm(norm.item(), 0.5 * math.sqrt(count), torch.float32)
    expected = oracle.scaled(torch.full((1,), 0.5), oracle.clip_coef(1.0, norm.cpu()))
    wanted = torch.tensor(float(expected[0])).bfloat16().item()
    assert grad[:1].item() == wanted and grad[-1:].item() == wanted
    assert bool((grad == wanted).all())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gradients_on_a_device_that_is_not_current(backend: str) -> None:
    grads = narrow_gradients()
    held = parameters(on_gpu(grads, "cuda:1"))
    norm = fastclip.clip_grad_norm_(held, 0.5, backend=backend)
    assert torch.cuda.current_device() == 0
    assert norm.device == torch.device("cuda:1")
    assert_clipped(held, grads, 0.5, norm)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gradients_on_several_devices_have_one_norm(backend: str) -> None:
    skip_without_several_devices(backend)
    grads = narrow_gradients()
    moved = [grad.to(f"cuda:{i % 2}") for i, grad in enumerate(grads)]
    held = parameters(moved)
    norm = fastclip.clip_grad_norm_(held, 0.5, backend=backend)
    assert norm.device == moved[0].device
    assert_clipped(held, grads, 0.5, norm)


def test_gradients_on_the_cpu_and_a_gpu_have_one_norm(backend: str) -> None:
    skip_without_several_devices(backend)
    grads = narrow_gradients()
    held = parameters([grad.to("cuda") if i % 2 else grad.clone() for i, grad in enumerate(grads)])
    norm = fastclip.clip_grad_norm_(held, 0.5, backend=backend)
    assert norm.device.type == "cpu"
    assert_clipped(held, grads, 0.5, norm)
