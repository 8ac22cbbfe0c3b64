"""This machine's ceiling: the fastest of three streaming readers, and of two in-place updates."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("stream.c")
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]

# Used where the system does not say how large its last cache is.
_USUAL_LAST_CACHE_BYTES = 32 << 20


class Streams:
    """Readers and updates of one buffer of ``n_bytes``, on torch's threads.

    Attributes:
        note: why the loops of stream.c are not among them; empty if they are.
    """

    def __init__(self, n_bytes: int) -> None:
        self.note = ""
        # Ones: an update by 1.0 leaves them as they are, and they cost no more than other values.
        self._buffer = torch.ones(n_bytes // 8 * 2, dtype=torch.float32)
        self._evictor = torch.ones(2 * last_cache_bytes() // 8, dtype=torch.int64)
        self._library = self._load()

    def _load(self) -> ctypes.CDLL | None:
        with tempfile.TemporaryDirectory() as folder:
            built = str(Path(folder) / "stream.so")
            command = [os.environ.get("CC", "cc"), *_FLAGS, str(SOURCE), "-o", built]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
                library = ctypes.CDLL(built)
            except (OSError, subprocess.CalledProcessError) as error:
                self.note = f"stream.c was not built, torch's loops alone are the ceiling: {error}"
                return None
        if len(openmp_runtimes()) > 1:
            # Two thread pools spin against each other and slow down whatever is timed next.
            raise RuntimeError(f"stream.c brought a second OpenMP runtime: {openmp_runtimes()}")
        for function in (library.read_in_order, library.read_prefetched):
            function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            function.restype = ctypes.c_uint64
        library.update.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float, ctypes.c_int]
        library.update.restype = None
        return library

    def evict(self) -> None:
        """Read twice the last cache, so that what is timed next finds none of its data there."""
        self._evictor.sum()

    def loops(self, n_bytes: int, clipped: bool) -> dict[str, Callable[[], object]]:
        """Return the streaming readers of ``n_bytes``, and the in-place updates for a clip."""
        words = self.bytes_streamed(n_bytes) // 8
        floats = self._buffer[: 2 * words]
        found: dict[str, Callable[[], object]] = {"read: torch.sum": floats.view(torch.int64).sum}
        if clipped:
            found["update: torch.mul_"] = partial(floats.mul_, 1.0)
        if self._library is not None:
            address, threads = self._buffer.data_ptr(), torch.get_num_threads()
            for name in ("in order", "prefetched"):
                read = getattr(self._library, f"read_{name.replace(' ', '_')}")
                found[f"read: {name}"] = partial(read, address, words, threads)
            if clipped:
                update = partial(self._library.update, address, words, 1.0, threads)
                found["update: in order"] = update
        return found

    def bytes_streamed(self, n_bytes: int) -> int:
        """Return how much of ``n_bytes`` the loops really take: the buffer may be smaller."""
        return min(n_bytes, self._buffer.nbytes) // 8 * 8


def last_cache_bytes() -> int:
    """Return the size of the last cache, or a usual one where the system does not tell."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [text[:-1] for file in files if (text := file.read_text().strip()).endswith("K")]
    return max([_USUAL_LAST_CACHE_BYTES, *(int(size) << 10 for size in sizes)])


def openmp_runtimes() -> list[str]:
    """Return the OpenMP runtimes loaded in this process, by path."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    names = ("libgomp", "libomp.", "libiomp")
    return sorted({line.split()[-1] for line in lines if any(name in line for name in names)})
