"""Where clips are timed: a GPU, or the CPU that stands in for one to try the rest of the program.

`python bench devices` ends with status 1 and one sentence where there is no GPU; with --build it
prints the FASTCLIP_BUILD that its torch is to be measured with.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from statistics import median

import torch
from torch import Tensor

from bench.core.timing import Clip, wall_clock
from bench.gpu import facts

WARM_UPS = 3
"""Calls on the side before a capture, as torch's manual has it."""

AHEAD = 1.5
"""How much longer than the host takes to launch a call the GPU is kept busy before it."""

AHEAD_MS = 0.1
"""The same for what the host does around a call: it records the events."""

CALIBRATED_CYCLES = 10_000_000
CALIBRATIONS, CALIBRATED = 50, 9
"""Spins, together some 0.3 s at the clocks of a GPU that works, and how many of the last count."""

FLUSH_IN_L2S = 4
"""The buffer that a flush writes and reads, in multiples of L2."""

HIP_FLUSH_BYTES = 512 << 20
"""What it holds at least on AMD's GPUs: twice the Infinity Cache, of which torch says nothing."""


class NotCapturedError(Exception):
    """A call cannot be captured in a CUDA graph; the message says why."""


class NotTriedError(NotCapturedError):
    """A call was not even tried, since an earlier capture failed."""


class Device:
    """What the measurements need of a machine; as it stands, the CPU in place of a GPU.

    Attributes:
        host_was_ahead: whether the host had launched all of the call that was timed last before
            the device began with it.
    """

    type, name, is_gpu = "cpu", "a CPU in place of a GPU", False
    host_was_ahead = True
    _failed_capture: str | None = None

    def clock(self, call: Callable[[], object]) -> tuple[object, float]:
        """Run a call and return its result and how many nanoseconds the device took."""
        return wall_clock(call)

    def flush(self, host_ms: float) -> None:
        """Drive all else out of the cache, and stay busy while the host launches what follows.

        Not on the CPU, whose times are not quoted.
        """

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""

    def capture(self, call: Clip) -> Clip:
        """Return a replay of a call, which returns the tensor that each replay writes.

        Raises:
            NotCapturedError: the call cannot be captured.
            NotTriedError: an earlier call could not. Torch's allocator may still believe that its
                capture is under way: this process makes no other.
        """
        if self._failed_capture is not None:
            raise NotTriedError(f"not tried, as an earlier capture failed: {self._failed_capture}")
        try:
            return self._capture(call)
        except NotCapturedError as error:
            self._failed_capture = str(error)
            raise

    def _capture(self, call: Clip) -> Clip:
        return call

    def free_memory(self) -> None:
        """Give back the memory that is in use no more."""

    def facts(self) -> dict[str, str]:
        """Describe the device and its driver."""
        return {"device": "the CPU: the wall clock for events, the call again for a replay"}

    def state(self) -> dict[str, str]:
        """Return what may change from one moment to the next."""
        return {}


class CudaDevice(Device):
    """Torch's current GPU, timed by events on its current stream."""

    type, is_gpu = "cuda", True

    def __init__(self) -> None:
        self._properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.name = self._properties.name
        n_bytes = flushed_bytes(self._properties.L2_cache_size)
        self._buffer = torch.zeros(n_bytes // 4, dtype=torch.int32, device="cuda")
        self._highest = torch.zeros((), dtype=torch.int32, device="cuda")
        self._cycles_per_ms = self._calibrated()

    def _calibrated(self) -> float:
        """Return how many cycles of ``torch.cuda._sleep`` are a millisecond, by events."""
        # The first pay for loading the kernel, and wake the GPU from its idle clocks.
        spin = partial(torch.cuda._sleep, CALIBRATED_CYCLES)
        taken = [self.clock(spin)[1] for _ in range(CALIBRATIONS)][-CALIBRATED:]
        return CALIBRATED_CYCLES / (median(taken) / 1e6)

    def clock(self, call: Callable[[], object]) -> tuple[object, float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = call()
        end.record()
        self.host_was_ahead = not start.query()
        end.synchronize()
        return result, start.elapsed_time(end) * 1e6

    def flush(self, host_ms: float) -> None:
        """Write a buffer larger than L2, read it, and spin until the host is surely ahead.

        Reading leaves L2 full of lines that need no writing back, which would take bandwidth from
        what is timed. One kernel that spins keeps the GPU busy, since the queue of launches is
        short. The first event after it is then recorded when all of the call is in the queue, and
        the time between the events is the GPU's alone.
        """
        self._buffer.fill_(1)
        torch.amax(self._buffer, 0, out=self._highest)
        torch.cuda._sleep(ceil((AHEAD * host_ms + AHEAD_MS) * self._cycles_per_ms))

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def _capture(self, call: Clip) -> Clip:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        aside.wait_stream(here)
        try:
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    call()
        finally:
            here.wait_stream(aside)
        try:
            # A capture that fails leaves its stream the current one.
            with torch.cuda.stream(here), torch.cuda.graph(graph):
                total_norm = call()
        except Exception as error:  # noqa: BLE001 - Triton's errors are no RuntimeErrors
            raise NotCapturedError(str(error).partition("\n")[0]) from None

        def replay() -> Tensor:
            graph.replay()
            return total_norm

        return replay

    def free_memory(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def facts(self) -> dict[str, str]:
        properties = self._properties
        is_hip = torch.version.hip is not None
        architecture = {"architecture": properties.gcnArchName} if is_hip else {}
        return {
            "device": self.name,
            **architecture,
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory": f"{properties.total_memory / 1e9:.1f} GB",
            "L2": f"{properties.L2_cache_size / 2**20:g} MiB",
            "driver": facts.driver(is_hip),
            **facts.highest_clocks(self._uuid()),
        }

    def state(self) -> dict[str, str]:
        return facts.state(self._uuid())

    def _uuid(self) -> str:
        return str(getattr(self._properties, "uuid", ""))


def flushed_bytes(l2_bytes: int) -> int:
    """Return the size of the buffer that drives all else out of the caches of torch's GPUs."""
    return max(FLUSH_IN_L2S * l2_bytes, 0 if torch.version.hip is None else HIP_FLUSH_BYTES)


def why_no_gpu() -> str | None:
    """Say in one sentence why there is no GPU to measure; None if there is one."""
    if torch.cuda.is_available():
        return None
    version = torch.__version__
    if torch.version.cuda is None and torch.version.hip is None:
        return f"a GPU is needed: torch {version} in this environment is built without CUDA"
    return f"a GPU is needed: torch {version} sees none on this machine"


def open_device(device_type: str) -> Device:
    """Return the device of this type: "cuda" or "cpu"."""
    return CudaDevice() if device_type == "cuda" else Device()


def main(arguments: Sequence[str]) -> int:
    """Return 1, having said why, where there is no GPU; print what to build if asked for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", action="store_true", help="print what to build, and no more")
    if parser.parse_args(arguments).build:
        # "cuda" does not leave the CUDA kernels out.
        print("auto" if torch.version.cuda is None else "cuda")
        return 0
    reason = why_no_gpu()
    if reason is not None:
        print(f"make gpu: {reason}", file=sys.stderr)
    return int(reason is not None)
