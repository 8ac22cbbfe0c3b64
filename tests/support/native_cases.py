"""What the tests of the native backend share: gradients, parameters, bits, instruction sets.

Importing it skips the module that does so where the native backend cannot run, unless
FASTCLIP_REQUIRE_NATIVE is set, as it is in CI.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import oracle
import pytest
import torch
from torch import Tensor

import fastclip

REASONS = fastclip.backend_report()["native"]
if REASONS and not os.environ.get("FASTCLIP_REQUIRE_NATIVE"):
    pytest.skip(f"needs the native backend: {'; '.join(REASONS)}", allow_module_level=True)

from fastclip import _C as _C  # noqa: E402 - only where it is there

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NARROW = (torch.float32, torch.bfloat16, torch.float16)
NORM_TYPES = (1.0, 2.0, 3.0, 2.5, math.inf)
INSTRUCTION_SETS = tuple(_C.instruction_sets())

CHUNK_SIZE = 1 << 14
"""kMinChunkSize of csrc/tensor_list.h: what lists below 2^28 elements are cut into."""

SPAN_BYTES = 1 << 19
"""kSpanCost of csrc/cpu_engine.h: about what a thread takes at a time."""

# Sizes around a vector of each instruction set, a block, a chunk and several chunks.
SIZES = (
    *(0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129),
    *(CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE, 3 * CHUNK_SIZE + 5),
)

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype whose bits are compared, by element size."""


@contextmanager
def using(instruction_set: str) -> Iterator[None]:
    """Run the kernels of one instruction set for a while."""
    previous = _C.instruction_set()
    _C.set_instruction_set(instruction_set)
    try:
        yield
    finally:
        _C.set_instruction_set(previous)


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Let torch use this many threads for a while."""
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def parameters_of(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return a parameter for each gradient; the parameters take no memory."""
    parameters = []
    for gradient in gradients:
        parameter = torch.empty((), dtype=gradient.dtype).expand(gradient.shape)
        parameter.grad = gradient
        parameters.append(parameter)
    return parameters


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad


def random_tensor(size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Draw N(0, 1) values: the same for every dtype, rounded to it."""
    generator = torch.Generator().manual_seed(1000003 * seed + size)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def random_list(sizes: Sequence[int], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Draw one tensor for each size."""
    return [random_tensor(size, dtype, seed + i) for i, size in enumerate(sizes)]


def all_patterns(dtype: torch.dtype) -> Tensor:
    """Return every value of a 16-bit dtype, every NaN included."""
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)


def random_patterns(dtype: torch.dtype, size: int = 1 << 16) -> Tensor:
    """Draw random bits: every sign and exponent, denormals, inf and NaN included."""
    integer = INTEGERS[dtype.itemsize]
    limits = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(size)
    drawn = torch.randint(limits.min, limits.max, (size,), generator=generator, dtype=integer)
    edges = [0.0, -0.0, math.inf, -math.inf, math.nan]
    drawn[: len(edges)] = torch.tensor(edges, dtype=dtype).view(integer)
    return drawn.view(dtype)


def patterns(dtype: torch.dtype) -> Tensor:
    """Return every value of a 16-bit dtype, and random bits of a wider one."""
    return all_patterns(dtype) if dtype.itemsize == 2 else random_patterns(dtype)


def bits(tensor: Tensor) -> Tensor:
    """Return the elements' bits as integers, with one pattern for every NaN.

    Which NaN an operation on two of them gives depends on the order of its operands, which
    neither IEEE 754 nor the compiler fixes.
    """
    dense = tensor.detach().contiguous()
    nan = torch.tensor(math.nan, dtype=dense.dtype)
    return torch.where(dense.isnan(), nan, dense).view(INTEGERS[dense.dtype.itemsize])


def same_bits(got: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bits; all NaNs count as one."""
    same_kind = got.dtype == expected.dtype and got.shape == expected.shape
    return same_kind and torch.equal(bits(got), bits(expected))


def scaled(gradient: Tensor, max_norm: float, total_norm: Tensor) -> Tensor:
    """Scale as torch does, by the oracle's coefficient for the norm that a clip returned."""
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    return gradient.clone().mul_(torch.tensor(oracle.clip_coef(max_norm, total_norm), dtype=dtype))


def available_gigabytes() -> float:
    """Return the memory that could be allocated now, or 0 where the kernel does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0.0
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) / 1e6


class Computed:
    """Its ``.grad`` is Python code."""

    def __init__(self, compute: Callable[[], Tensor | None]) -> None:
        self.compute = compute

    @property
    def grad(self) -> Tensor | None:
        return self.compute()


def run_python(
    source: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter, which is free to crash."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
