"""The native backend over the emulator: CUDA kernels on tensors in CPU memory.

``fastclip._C`` is built once more, with the CUDA kernels compiled for the CPU (tests/emulator) and
with tests/support/emulated/emulated_accelerator.h in place of torch's GPU tensors: a tensor
in CPU memory is then on GPU 0, or where ``Emulated.place`` says.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import importlib.util
import sysconfig
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from build_program import build_program
from source_tree import ROOT
from torch import Tensor
from torch.utils import cpp_extension

from fastclip.backends import extension
from fastclip.backends.clip_mode import set_clip_mode

HERE = Path(__file__).resolve().parent / "emulated"
CPU = -1
SCHEDULES = ("fifo", "lifo", "random", "priorities")


@dataclass(frozen=True)
class Launch:
    """A kernel launch that the emulator has seen."""

    kernel: str
    device: int
    is_cooperative: bool


@dataclass(frozen=True)
class Traffic:
    """Bytes that kernels read and wrote of one tensor, in all and counted once."""

    read: int
    written: int
    unique_read: int
    unique_written: int


@dataclass(frozen=True)
class Plan:
    """How a list is cut into work for thread blocks."""

    groups: int
    chunk_size: int
    table_bytes: int


class Emulated:
    """The extension and what tests set and ask of its emulator."""

    def __init__(self, path: Path) -> None:
        self.module = _import(path)
        assert self.module.__file__ == str(path), "this is another extension"
        self._library = ctypes.CDLL(str(path))
        for name in ("report", "launch_kernel"):
            getattr(self._library, f"emulated_{name}").restype = ctypes.c_char_p
        self._library.emulated_end_capture.restype = ctypes.c_uint64
        self.reset()
        self.driver_version = self._call("default_driver")

    def _call(self, name: str, *arguments: int) -> int:
        wide = [ctypes.c_uint64(a) if a > 2**31 - 1 else ctypes.c_int(a) for a in arguments]
        return getattr(self._library, f"emulated_{name}")(*wide)

    def reset(self) -> None:
        """Forget all placements, launches, reports and settings."""
        self._library.emulated_reset()
        self.fuse_clips(False)

    def fuse_clips(self, is_fused: bool) -> None:
        """Let clips be launched as one kernel, or as two."""
        set_clip_mode("fused" if is_fused else "split")

    def machine(
        self,
        devices: int = 1,
        multiprocessors: int = 4,
        driver_version: int | None = None,
        has_cooperative_launch: bool = True,
    ) -> None:
        """Set what the machine is like."""
        version = self.driver_version if driver_version is None else driver_version
        self._call("set_machine", devices, multiprocessors, version, int(has_cooperative_launch))

    def errors(self, device: int = 0, cooperative: int = 0, code: int = 0) -> None:
        """Let calls fail: whatever needs a device, cooperative launches, asking for a kernel."""
        self._call("set_errors", device, cooperative, code)

    def fail_launch(self, n: int, error: int) -> None:
        """Let the n-th launch from now return ``error`` and run nothing."""
        self._call("fail_launch", n, error)

    def schedule(self, name: str, seed: int) -> None:
        """Choose the order in which threads run."""
        self._call("set_schedule", SCHEDULES.index(name), seed)

    def place(self, tensor: Tensor, device: int) -> None:
        """Place a tensor on a GPU, or on ``CPU``; no other GPU may touch it then."""
        storage = tensor.untyped_storage()
        data = ctypes.c_void_p(storage.data_ptr())
        self._library.emulated_place(data, ctypes.c_uint64(storage.nbytes()), device)

    def watch(self, tensor: Tensor) -> None:
        """Count what kernels read and write of a tensor."""
        data = ctypes.c_void_p(tensor.data_ptr())
        self._library.emulated_watch(data, ctypes.c_uint64(tensor.nbytes))

    def traffic(self, tensor: Tensor) -> Traffic:
        """Return what was counted since it was watched or cleared."""
        counts = (ctypes.c_uint64 * 4)()
        self._library.emulated_traffic(ctypes.c_void_p(tensor.data_ptr()), counts)
        return Traffic(*counts)

    def count_workspace(self) -> None:
        """Count, from here on, what kernels read and write of the binding's own memory."""
        self._call("count_workspace")

    def workspace_traffic(self) -> Traffic:
        """Return what was counted of the binding's own memory."""
        counts = (ctypes.c_uint64 * 4)()
        self._library.emulated_workspace_traffic(counts)
        return Traffic(*counts)

    def plan(self, counts: Sequence[int]) -> Plan:
        """Return how a list of float32 tensors with these numbers of elements would be cut."""
        result = (ctypes.c_int64 * 3)()
        self._library.emulated_plan(
            (ctypes.c_int64 * len(counts))(*counts), ctypes.c_int64(len(counts)), result
        )
        return Plan(*result)

    def clear(self) -> None:
        """Forget launches, reports and counts."""
        self._library.emulated_clear()

    @property
    def launches(self) -> list[Launch]:
        """List the launches since the last clear."""
        return [
            Launch(
                self._library.emulated_launch_kernel(i).decode(),
                self._call("launch_device", i),
                self._call("launch_is_cooperative", i) != 0,
            )
            for i in range(self._call("launches"))
        ]

    @property
    def reports(self) -> list[str]:
        """List what the emulator found wrong."""
        return [self._library.emulated_report(i).decode() for i in range(self._call("reports"))]

    @contextlib.contextmanager
    def capture(self) -> Iterator[Graph]:
        """Keep the launches on GPU 0's stream in a graph instead of running them."""
        graph = Graph(self._library)
        self._library.emulated_begin_capture()
        try:
            yield graph
        finally:
            launches = ctypes.c_int()
            graph.id = self._library.emulated_end_capture(ctypes.byref(launches))
            graph.launches = launches.value

    @property
    def last_error(self) -> int:
        """Return what cudaGetLastError() would: an error that was left behind, or 0."""
        return self._call("last_error")

    @property
    def current_device(self) -> int:
        """Return the device that is current."""
        return self._call("current_device")

    def has_context(self, device: int) -> bool:
        """Return whether anything has used a device, which costs memory there."""
        return self._call("has_context", device) != 0

    def use_device(self, device: int) -> None:
        """Make a device current."""
        self._call("use_device", device)


class Graph:
    """Launches that were captured."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.id = 0
        self.launches = 0

    def replay(self) -> None:
        """Run them."""
        status = self._library.emulated_replay(ctypes.c_uint64(self.id), self.launches)
        assert status == 0, f"replay: cudaError_t {status}"


@functools.cache
def build() -> Emulated:
    """Build the extension over the emulator, in build/emulated, and import it."""
    out = ROOT / "build" / "emulated"
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        # Tests in another process may be building the same program.
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = _build_into(out)
    return Emulated(path)


def _build_into(out: Path) -> Path:
    csrc = ROOT / "csrc"
    kernels = [path for path in sorted((csrc / "cuda").iterdir()) if path.suffix == ".cu"]
    sources = [
        csrc / "bindings.cpp",
        HERE / "controls.cpp",
        csrc / "cpu" / "kernels_baseline.cpp",
        csrc / "cuda" / "launchers.cpp",
        *kernels,
    ]
    torch_includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    return build_program(
        sources,
        out,
        shared=True,
        include=[HERE, csrc],
        flags=[
            "-std=c++20",
            "-fopenmp",
            "-fvisibility=hidden",
            "-fvisibility-inlines-hidden",
            "-fno-math-errno",
            "-DFASTCLIP_EMULATOR",
            "-DTORCH_EXTENSION_NAME=_C",
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            *(f"-isystem{path}" for path in torch_includes),
        ],
        link_flags=[
            f"-L{cpp_extension.TORCH_LIB_PATH}",
            *(f"-l{name}" for name in ("torch_python", "torch", "torch_cpu", "c10")),
        ],
    )


def _import(path: Path) -> types.ModuleType:
    # The module gets its own name: for a known name pybind11 returns the module that is there
    # already.
    spec = importlib.util.spec_from_file_location("emulated._C", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def in_use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulated]:
    """Let the native backend run on the emulator; nothing may be wrong at the end."""
    emulated = build()
    emulated.reset()
    monkeypatch.setattr(extension, "load", lambda: ())
    monkeypatch.setattr(extension, "binding", emulated.module)
    yield emulated
    assert emulated.reports == []
    assert emulated.last_error == 0
    emulated.reset()
