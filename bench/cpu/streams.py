"""This machine's ceiling: the fastest of three streaming readers, and of two in-place updates."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("stream.c")
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]

# Used where the system does not say how large its last cache is.
_USUAL_LAST_CACHE_BYTES = 32 << 20


class Streams:
    """Readers and updates of one buffer, on torch's threads."""

    def __init__(self, n_bytes: int) -> None:
        """Allocate and touch a buffer of ``n_bytes``; compile the C loops if that is possible."""
        self.note = ""
        # Ones: an update by 1.0 leaves them as they are, and they cost no more than other values.
        self._buffer = torch.ones(n_bytes // 8 * 2, dtype=torch.float32)
        self._evictor = torch.ones(2 * last_cache_bytes() // 8, dtype=torch.int64)
        self._library = self._load()

    def _load(self) -> ctypes.CDLL | None:
        compiler = os.environ.get("CC", "cc")
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / "stream.so"
            command = [compiler, *_FLAGS, str(SOURCE), "-o", str(built)]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
                library = ctypes.CDLL(str(built))
            except (OSError, subprocess.CalledProcessError) as error:
                self.note = f"stream.c was not built, torch's loops alone are the ceiling: {error}"
                return None
        if len(openmp_runtimes()) > 1:
            # Two thread pools spin against each other and slow down whatever is timed next.
            raise RuntimeError(f"stream.c brought a second OpenMP runtime: {openmp_runtimes()}")
        for name in ("read_in_order", "read_prefetched"):
            function = getattr(library, name)
            function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            function.restype = ctypes.c_uint64
        library.update.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float, ctypes.c_int]
        library.update.restype = None
        return library

    def evict(self) -> None:
        """Read twice the last cache, so that what is timed next finds none of its data there."""
        self._evictor.sum()

    def readers(self, n_bytes: int) -> dict[str, Callable[[], object]]:
        """Return the streaming readers of ``n_bytes`` of the buffer, by name."""
        words = self._words(n_bytes)
        integers = self._buffer[: 2 * words].view(torch.int64)
        found: dict[str, Callable[[], object]] = {"read: torch.sum": integers.sum}
        if self._library is not None:
            address, threads = self._buffer.data_ptr(), torch.get_num_threads()
            in_order, prefetched = self._library.read_in_order, self._library.read_prefetched
            found["read: in order"] = lambda: in_order(address, words, threads)
            found["read: prefetched"] = lambda: prefetched(address, words, threads)
        return found

    def updates(self, n_bytes: int) -> dict[str, Callable[[], object]]:
        """Return the in-place updates of ``n_bytes`` of the buffer, by name."""
        words = self._words(n_bytes)
        floats = self._buffer[: 2 * words]
        found: dict[str, Callable[[], object]] = {"update: torch.mul_": lambda: floats.mul_(1.0)}
        if self._library is not None:
            address, threads = self._buffer.data_ptr(), torch.get_num_threads()
            update = self._library.update
            found["update: in order"] = lambda: update(address, words, 1.0, threads)
        return found

    def bytes_streamed(self, n_bytes: int) -> int:
        """Return how much of ``n_bytes`` the readers really read: the buffer may be smaller."""
        return 8 * self._words(n_bytes)

    def _words(self, n_bytes: int) -> int:
        return min(n_bytes, self._buffer.nbytes) // 8


def last_cache_bytes() -> int:
    """Return the size of the last cache, or a usual one where the system does not tell."""
    sizes = [_USUAL_LAST_CACHE_BYTES]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes)


def openmp_runtimes() -> list[str]:
    """Return the OpenMP runtimes loaded in this process, by path."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    names = ("libgomp", "libomp.", "libiomp")
    return sorted({line.split()[-1] for line in lines if any(name in line for name in names)})
