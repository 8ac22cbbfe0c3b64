"""A call's words and memory on the device, and the launch of a kernel on them."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence

import torch
import triton
from torch import Tensor

from ..request import is_capturing
from .answers import ANSWERS, LaunchError, first_line_of, is_transient
from .device import words
from .device.kernels import clip_kernel
from .device.reduce import THREADS
from .device.table import WORDS, write_words_kernel
from .packing import PackedList

PROGRAMS_EACH = 2
"""Programs on a multiprocessor: with MAX_REGISTERS and 256 threads this many are resident."""

MAX_REGISTERS = 128

INTERPRETED_PROGRAMS = 5
"""The same in Triton's interpreter, which runs one after another: an odd number."""

WORD_BYTES = 8

Kernel = triton.JITFunction
Field = triton.language.constexpr


@functools.cache
def are_interpreted() -> bool:
    """Return whether the kernels were made for Triton's interpreter."""
    return not isinstance(clip_kernel, triton.JITFunction)


class Results:
    """What kernels leave at the end of a call's memory, from index ``first`` on.

    They are a sum for each tensor, their total, and a coefficient.
    """

    __slots__ = ("_first", "_memory")

    def __init__(self, memory: Tensor, first: int) -> None:
        self._memory = memory
        self._first = first

    def sums(self) -> Tensor:
        """Return what was summed up for each tensor, before the root."""
        return self._memory[self._first : -2].view(torch.float64)

    def total(self) -> Tensor:
        """Return the total of the sums: 0-dim."""
        return self._memory[-2:-1].view(torch.float64)[0]

    def clip_coef(self, dtype: torch.dtype) -> Tensor:
        """Return the coefficient, which kernels wrote in this dtype: 0-dim."""
        return self._memory[-1:].view(dtype)[0]

    def is_capturing(self) -> bool:
        """Return whether a CUDA graph is being captured on the results' device."""
        return is_capturing(self._memory.device)

    def use(self) -> None:
        """Keep the memory from being reused until the current stream is done with it."""
        if self._memory.is_cuda:
            self._memory.record_stream(torch.cuda.current_stream(self._memory.device))


class Call:
    """A packed list and the device memory of one call: its words, partials and results.

    Args:
        device: the list's device; for an empty list, where the call's memory is to lie.
        packed: the list.
        targets: addresses for results out of place, one for each tensor, or none.
    """

    def __init__(
        self, device: torch.device, packed: PackedList, targets: Sequence[int] = ()
    ) -> None:
        self.device = device
        self.packed = packed
        self._held: list[Tensor] = []
        self._targets = list(targets)
        self._used = words.FIELDS.value + 3 * packed.size + len(self._targets)
        # Rounded up to what write_words_kernel writes at a time: it has no mask.
        partials = -(-self._used // WORDS) * WORDS
        sums = partials + packed.groups
        total = sums + packed.size
        self._memory = torch.empty(total + 2, dtype=torch.int64, device=device)
        self.address = self._memory.data_ptr()
        self.results = Results(self._memory, sums)
        self._fields = [0] * words.FIELDS.value
        self.set(words.TENSORS, packed.size)
        self.set(words.CHUNK_SIZE, packed.chunk_size)
        self.set(words.GROUPS, packed.groups)
        self.set(words.PARTIALS, self.address + WORD_BYTES * partials)
        self.set(words.SUMS, self.address + WORD_BYTES * sums)
        self._total_at = self.address + WORD_BYTES * total

    def set(self, field: Field, value: int) -> None:
        """Set a field that holds an integer."""
        self._fields[field.value] = value

    def set_number(self, field: Field, value: float) -> None:
        """Set a field that holds a float64."""
        (bits,) = struct.unpack("<q", struct.pack("<d", value))
        self.set(field, bits)

    def point(self, field: Field, tensor: Tensor) -> None:
        """Set a field that holds an address; the tensor lives until the launches are made."""
        self._held.append(tensor)
        self.set(field, tensor.data_ptr())

    def ask_for_total(self) -> None:
        """Let a kernel leave the total of the sums among the results."""
        self.set(words.TOTAL, self._total_at)

    def ask_for_coefficient(self) -> None:
        """Let a kernel leave the coefficient among the results."""
        self.set(words.CLIP_COEF, self._total_at + WORD_BYTES)

    def upload(self) -> None:
        """Bring the words to the device, after the work that its stream already has."""
        if is_capturing(self.device):
            self._upload_in_arguments()
        elif self.device.type == "cpu":
            self._write(self._memory[: self._used])
        else:
            # torch does not reuse pinned memory before the copy is done.
            pinned = torch.empty(self._used, dtype=torch.int64, device="cpu", pin_memory=True)
            self._write(pinned)
            self._memory[: self._used].copy_(pinned, non_blocking=True)

    def _upload_in_arguments(self) -> None:
        """Bring the words in the arguments of kernels, where a graph's replay finds them again."""
        host = torch.empty(self._used, dtype=torch.int64, device="cpu")
        self._write(host)
        values = host.tolist()
        for first in range(0, len(values), WORDS):
            part = values[first : first + WORDS]
            part += [0] * (WORDS - len(part))
            launch(write_words_kernel, self.device, 1, self.address, first, *part)

    def _write(self, host: Tensor) -> None:
        self.packed.write(host, self._fields, self._targets)

    def programs(self) -> int:
        """Return how many programs to launch: one for each group, at most those that are resident.

        The CUDA kernels do the same, which made lists of many small tensors faster. Triton's
        kernels have not been timed with that many programs.
        """
        if are_interpreted():
            return max(1, min(INTERPRETED_PROGRAMS, self.packed.groups))
        return max(1, min(_resident_programs(self.device.index), self.packed.groups))

    def launch(
        self,
        kernel: Kernel,
        programs: int | None = None,
        is_cooperative: bool = False,
        **constants: int,
    ) -> None:
        """Launch a kernel on the list, by default with ``programs()`` programs."""
        count = self.programs() if programs is None else programs
        launch(kernel, self.device, count, self.address, is_cooperative=is_cooperative, **constants)


def launch(
    kernel: Kernel,
    device: torch.device,
    programs: int,
    *arguments: int,
    is_cooperative: bool = False,
    **constants: int,
) -> None:
    """Launch a kernel on the current stream of a device, which must be current.

    Raises:
        LaunchError: Triton or the driver refused; the kernel has not run.
    """
    if are_interpreted():
        kernel[(programs,)](*arguments, **constants)
        return
    options = _options(device, is_cooperative)
    key = (kernel.fn.__name__, device, *constants.items())
    if key in ANSWERS.refused:
        raise LaunchError(ANSWERS.refused[key])
    try:
        kernel[(programs,)](*arguments, **constants, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        text = f"Triton cannot launch {key[0]} on device {device}: {first_line_of(error)}"
        # A cooperative launch may be refused for its number of programs, and another list has
        # fewer.
        if not is_cooperative and not is_transient(error):
            ANSWERS.refused[key] = text
        raise LaunchError(text) from error


def _options(device: torch.device, is_cooperative: bool = False) -> Mapping[str, int | bool]:
    """Return the options of a launch, the same for every list."""
    warp_size = _properties(device.index).warp_size
    return compile_options(warp_size, torch.version.hip is None, is_cooperative)


@functools.cache
def compile_options(warp_size: int, is_nvidia: bool, is_cooperative: bool) -> dict[str, int | bool]:
    """Return what Triton compiles a kernel with."""
    options: dict[str, int | bool] = {
        "num_warps": THREADS.value // warp_size,
        "num_stages": 1,
        # A product is rounded before it is added, unless the source says fma.
        "enable_fp_fusion": False,
    }
    if is_nvidia:
        options["maxnreg"] = MAX_REGISTERS
    if is_cooperative:
        options["launch_cooperative_grid"] = True
    return options


@functools.cache
def _properties(index: int) -> torch._C._CudaDeviceProperties:
    return torch.cuda.get_device_properties(index)


def _resident_programs(index: int) -> int:
    return PROGRAMS_EACH * _properties(index).multi_processor_count
