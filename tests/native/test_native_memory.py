"""The native backend touches only its gradients, writes only when it must, and copies nothing."""

import math
import os
import signal

import native_calls
import pytest
import torch
from native_cases import (
    CHUNK_SIZE,
    DTYPES,
    INSTRUCTION_SETS,
    available_gigabytes,
    gradient_of,
    parameters_of,
    random_tensor,
    run_python,
    same_bits,
    scaled,
    using,
)

GUARD = 67
OFFSETS = range(18)
GUARDED_SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130)

# Each case runs in a child process, which a write to a read-only page would end.
READ_ONLY = """
import mmap, os, sys, tempfile, warnings
import native_calls, torch
from fastclip import GradClipper
warnings.simplefilter("ignore")  # a buffer that is not writable, a fork beside idle threads
torch.set_num_threads(1)  # its threads would not survive the fork

def read_only(dtype):
    values = torch.full((40000,), 0.5, dtype=dtype)
    values[::3] = -0.25
    with tempfile.TemporaryFile() as file:
        file.write(values.view(torch.uint8).numpy().tobytes())
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    parameter = torch.empty((), dtype=dtype).expand(40000 - 3)
    parameter.grad = torch.frombuffer(pages, dtype=dtype)[3:]
    return parameter

NORM = torch.tensor(64.0)
# A limit at which nothing need be written, one at which something must, and the call.
CALLS = {
    "norm": (1e6, 1.0, lambda p, limit: native_calls.clip_grad_norm_([p], limit, 2.0, False)),
    "prepared": (1e6, 1.0, lambda p, limit: GradClipper([p], limit, backend="native").clip_()),
    # 1 / 64 * 64 is exactly 1, and 64 + 1e-6 is 64 in float32.
    "known": (64.0, 63.9, lambda p, limit: native_calls.clip_grads_with_norm_([p], limit, NORM)),
    "value": (0.5, 0.49, lambda p, limit: native_calls.clip_grad_value_([p], limit)),
}
for name in sys.argv[1:]:
    for call, (idle, due, clip) in CALLS.items():
        parameter = read_only(getattr(torch, name))
        for limit in (idle, due):
            child = os.fork()
            if child == 0:
                clip(parameter, limit)
                os._exit(10 + parameter.grad._version)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(name, call, "idle" if limit == idle else "due", status)
"""

FENCED = """
import ctypes, mmap, sys
import native_calls, torch
from fastclip import _C
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
pages = mmap.mmap(-1, 3 * PAGE)
start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
for fence in (start, start + 2 * PAGE):
    assert libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(PAGE), 0) == 0
for name in _C.instruction_sets():
    _C.set_instruction_set(name)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        size = PAGE // dtype.itemsize
        page = torch.frombuffer(pages, dtype=dtype, count=size, offset=PAGE)
        for count in range(1, int(sys.argv[1])):
            for gradient in (page[:count], page[size - count :]):
                gradient.fill_(2.0)
                parameter = torch.empty((), dtype=dtype).expand(count)
                parameter.grad = gradient
                for norm_type in (1.0, 2.0, 3.0, float("inf")):
                    native_calls.clip_grad_norm_([parameter], 1e-2, norm_type, False)
                native_calls.clip_grad_value_([parameter], 1e-9)
                native_calls.scaled([gradient], 0.5)
if sys.argv[2:] == ["beyond"]:
    ctypes.c_char.from_address(start + 2 * PAGE).value
print("done", flush=True)
"""

PEAK = """
import sys
import torch
import fastclip
def memory(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
dtype = getattr(torch, sys.argv[1])
count = 10**9 // dtype.itemsize // 50
parameters = []
for _ in range(50):
    parameter = torch.empty((), dtype=dtype).expand(count)
    parameter.grad = torch.full((count,), 0.01, dtype=dtype)
    parameters.append(parameter)
clipper = fastclip.GradClipper(parameters, 1e-3, backend="native")
for clip in (lambda: fastclip.clip_grad_norm_(parameters, 1e-3, backend="native"), clipper.clip_):
    clip()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = memory("VmHWM")
    clip()
    print(memory("VmHWM") - before, before)
"""


def test_the_neighbours_of_every_gradient_are_unchanged_and_uncounted() -> None:
    for name in INSTRUCTION_SETS:
        with using(name):
            for dtype in DTYPES:
                for offset in OFFSETS:
                    check_guards(dtype, offset)


def check_guards(dtype: torch.dtype, offset: int) -> None:
    """Clip views into buffers of NaN: an element read beyond a view makes the norm NaN."""
    buffers, views = [], []
    for size in GUARDED_SIZES:
        buffer = torch.full((GUARD + offset + size + GUARD,), math.nan, dtype=dtype)
        buffers.append(buffer)
        views.append(buffer[GUARD + offset : GUARD + offset + size])
        views[-1].copy_(random_tensor(size, dtype))
    before = [view.clone() for view in views]
    parameters = parameters_of(views)
    total_norm = native_calls.clip_grad_norm_(parameters, 0.5, 2.0, False)
    assert total_norm is not None
    assert math.isfinite(total_norm.item())
    for view, original in zip(views, before, strict=True):
        assert same_bits(view, scaled(original, 0.5, total_norm))
    clipped = [view.clone() for view in views]
    native_calls.clip_grad_value_(parameters, 0.01)
    for buffer, view, original in zip(buffers, views, clipped, strict=True):
        assert same_bits(view, original.clamp(-0.01, 0.01))
        view.fill_(math.nan)
        assert buffer.isnan().all()


def test_nothing_is_read_or_written_beyond_the_page_a_gradient_ends_on() -> None:
    run = run_python(FENCED, "140")
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")
    assert run_python(FENCED, "1", "beyond").returncode == -signal.SIGSEGV, "the fence must be felt"


@pytest.fixture(scope="module")
def read_only_runs() -> dict[str, str]:
    """Return how each call on read-only gradients ended, by dtype, call and "idle" or "due"."""
    run = run_python(READ_ONLY, *(str(dtype).removeprefix("torch.") for dtype in DTYPES))
    assert (run.returncode, run.stderr) == (0, "")
    return dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", ["norm", "prepared", "known", "value"])
def test_nothing_is_written_unless_it_must_be(
    call: str, dtype: torch.dtype, read_only_runs: dict[str, str]
) -> None:
    case = f"{str(dtype).removeprefix('torch.')} {call}"
    assert read_only_runs[f"{case} idle"] == "11", "10 and the version, bumped by 1"
    assert read_only_runs[f"{case} due"] == str(-signal.SIGSEGV), "a write must be felt"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamp_finds_one_value_out_of_range_anywhere(dtype: torch.dtype) -> None:
    # 4096 bytes are looked at before they are written or not.
    span = 4096 // dtype.itemsize
    gradient = random_tensor(3 * CHUNK_SIZE + 5, dtype).clamp_(-1.0, 1.0)
    for position in (0, span - 1, span, CHUNK_SIZE - 1, CHUNK_SIZE, 3 * CHUNK_SIZE + 4):
        expected = gradient.clone()
        gradient[position] = -2.0
        expected[position] = -1.0
        native_calls.clip_grad_value_(parameters_of([gradient]), 1.0)
        assert same_bits(gradient, expected)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_written(norm: float) -> None:
    parameters = parameters_of([torch.tensor([1.0, -2.0])])
    native_calls.clip_grads_with_norm_(parameters, 1.0, torch.tensor(norm))
    expected = torch.tensor([1.0, -2.0]) * (1.0 / (torch.tensor(norm) + 1e-6))
    assert same_bits(gradient_of(parameters[0]), expected)


@pytest.mark.slow
@pytest.mark.skipif(available_gigabytes() < 3, reason="needs 3 GB of free memory")
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs /proc/self/clear_refs"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_grows_by_less_than_4_megabytes_for_a_gigabyte(dtype: str) -> None:
    run = run_python(PEAK, dtype)
    assert run.returncode == 0, run.stderr
    for line in run.stdout.splitlines():
        grown, before = (int(number) for number in line.split())
        assert before > 10**9, "the gradients must be in memory before the clip is measured"
        assert grown < 4 * 2**20
    assert len(run.stdout.splitlines()) == 2
