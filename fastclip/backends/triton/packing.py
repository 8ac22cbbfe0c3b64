"""From tensors to a packed list: in C++ where there is the extension, else by torch operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .. import checks, native
from ..base import UnsupportedError

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""By their codes, as in csrc/tensor_list.h."""

DTENSOR_REASON = "a DTensor, whose ranks clip together (supported: plain strided tensors)"
"""As csrc/binding/dtensor.h words it."""

CODE_BITS = 2
SLOTS = 8
VECTOR_BYTES = 16
MIN_CHUNK_SIZE, MAX_CHUNK_SIZE = 1 << 14, 1 << 20
MAX_CHUNKS = 1 << 11
"""As in csrc/gpu_work.h, which says what they are for."""

SMALL_BYTES = 4096
"""Of a small tensor, fewer than this; kSmall of csrc/binding/packed_list.h.

The CUDA kernels give 16 KiB to a warp. Here a tensor is a row of a block, which loads 128 elements
a round, one by one: 16 KiB of 16-bit elements would be 64 rounds, one after another, where a chunk
is one. With 512 a round a norm of three dtypes spills registers (sm_90, Triton 3.9). On a GPU
neither has been timed.
"""


class PackedList(Protocol):
    """A list cut into work for the kernels; it holds its tensors.

    Attributes:
        size: how many tensors.
        device: the number of their GPU, -1 for the CPU and for none.
        chunk_size: elements in a chunk.
        groups: pieces of work.
        mix: a bit for the code of each dtype in the list.
        has_float64: whether a tensor is.
        places: for each source its position in the list, -1 where ``.grad`` is None.
        is_in_order: whether ``places`` are 0, 1, 2, ...: they need not be asked for then.
    """

    size: int
    device: int
    chunk_size: int
    groups: int
    mix: int
    has_float64: bool
    places: list[int]
    is_in_order: bool

    def write(self, words: Tensor, fields: list[int], targets: list[int]) -> None:
        """Write the words that kernels are given to a host tensor.

        Args:
            words: int64, as long as the fields and three or four words for each tensor.
            fields: the values of all fields.
            targets: addresses, one for each tensor, or none.

        Raises:
            ValueError: ``words`` has another length or dtype, gaps, or lies on a GPU.
        """
        ...

    def holds(self, address: int) -> bool:
        """Tell whether an address lies in the memory of a tensor."""
        ...

    def bump_versions(self) -> None:
        """Tell autograd that every tensor was written."""
        ...


Pack = Callable[[], PackedList]


def pack_parameters(parameters: list[Tensor], is_interpreted: bool, takes_norm: bool) -> PackedList:
    """Pack the gradients of parameters, equal ones once.

    ``takes_norm``: whether their norm is taken, which is for the ranks of a mesh to do together.

    Raises:
        UnsupportedError: a gradient is none that the kernels can take; nothing has been written.
    """
    c = native.packer()
    if c is not None:
        return native.translated(c.pack_parameters, parameters, is_interpreted, takes_norm)
    return _pack_distinct(parameters, is_interpreted, takes_norm)


def pack_tensors(tensors: list[Tensor], is_interpreted: bool) -> PackedList:
    """Pack tensors that are read and not written, each as often as it is given.

    Raises:
        UnsupportedError: a tensor is none that the kernels can take.
    """
    c = native.packer()
    if c is not None:
        return native.translated(c.pack_tensors, tensors, is_interpreted)
    _check(tensors, is_interpreted)
    return TorchList(tensors, [], list(range(len(tensors))))


def prepared_pack(parameters: list[Tensor], is_interpreted: bool) -> Pack:
    """Return what packs the gradients that parameters have when it is called.

    What it returns raises ``UnsupportedError`` as ``pack_parameters`` does.
    """
    c = native.packer()
    if c is None:
        return lambda: pack_parameters(parameters, is_interpreted, takes_norm=True)
    held = c.ParameterList(parameters)
    return lambda: native.translated(held.pack, is_interpreted)


class TorchList:
    """A packed list made with torch operations on all tensors together."""

    def __init__(
        self, tensors: Sequence[Tensor], duplicates: Sequence[Tensor], places: list[int]
    ) -> None:
        self._written = [*tensors, *duplicates]
        self.places = places
        self.size = len(tensors)
        self.is_in_order = places == list(range(self.size))
        device = tensors[0].device if tensors else torch.device("cpu")
        self.device = -1 if device.type == "cpu" else _index_of(device)
        self._addresses = _column(map(Tensor.data_ptr, tensors))
        counts = _column(map(Tensor.numel, tensors))
        code_of = {dtype: code for code, dtype in enumerate(DTYPES)}
        codes = _column(code_of[t.dtype] for t in tensors)
        sizes = _column(dtype.itemsize for dtype in DTYPES)[codes]
        self._packed_counts = counts << CODE_BITS | codes
        self.mix = sum(1 << code for code in set(codes.tolist()))
        self.has_float64 = bool(self.mix & 1 << code_of[torch.float64])
        self._byte_counts = counts * sizes
        self.chunk_size = _chunk_size(int(counts.sum()))
        self._first_slots, slots = _slots(self._addresses, counts, sizes, self.chunk_size)
        self.groups = -(-slots // SLOTS)

    def write(self, words: Tensor, fields: list[int], targets: list[int]) -> None:
        """Write the words that kernels are given to a host tensor."""
        columns = [self._addresses, self._packed_counts, self._first_slots]
        made = torch.cat([_column(fields), *columns, _column(targets)])
        is_plain = words.is_cpu and words.is_contiguous() and words.dtype == made.dtype
        if words.shape != made.shape or not is_plain:
            raise ValueError(f"TorchList: words must be {len(made)} of int64 in host memory")
        words.copy_(made)

    def holds(self, address: int) -> bool:
        """Tell whether an address lies in the memory of a tensor."""
        ends = self._addresses + self._byte_counts
        return bool(((self._addresses <= address) & (address < ends)).any())

    def bump_versions(self) -> None:
        """Tell autograd that every tensor was written."""
        torch.autograd.graph.increment_version(self._written)


def _pack_distinct(parameters: list[Tensor], is_interpreted: bool, takes_norm: bool) -> TorchList:
    grads = [p.grad for p in parameters]
    held = [grad for grad in grads if grad is not None]
    for position, grad in enumerate(grads):
        if grad is not None and not isinstance(grad, Tensor):
            raise UnsupportedError([f"gradient {position} is no tensor"])
    checks.check_writable(held)
    if takes_norm and checks.is_sharded(parameters, grads):
        raise UnsupportedError([DTENSOR_REASON])
    _check(held, is_interpreted)
    distinct = checks.unique_gradients(held)
    _check_overlap(distinct)
    if len(distinct) == len(held):
        position = iter(range(len(held)))
        return TorchList(held, [], [-1 if grad is None else next(position) for grad in grads])
    place_of = {checks.identity(grad): place for place, grad in enumerate(distinct)}
    places = [-1 if grad is None else place_of[checks.identity(grad)] for grad in grads]
    counted = {id(grad) for grad in distinct}
    duplicates = {id(grad): grad for grad in held if id(grad) not in counted}
    return TorchList(distinct, list(duplicates.values()), places)


def _check(tensors: Sequence[Tensor], is_interpreted: bool) -> None:
    """Raise ``UnsupportedError`` unless all are dense tensors of known dtypes on one device."""
    if any(map(checks.is_dtensor, tensors)):
        raise UnsupportedError([DTENSOR_REASON])
    if not checks.are_plain(tensors):
        raise UnsupportedError(["tensors of other kinds than plain strided ones"])
    supported = "cpu" if is_interpreted else "cuda"
    where = "supported in Triton's interpreter" if is_interpreted else "supported"
    devices = {t.device for t in tensors}
    reasons = [
        f"device {device} ({where}: {supported})"
        for device in sorted(devices, key=str)
        if device.type != supported
    ]
    if len(devices) > 1:
        reasons.append("gradients on several devices (supported: one)")
    names = ", ".join(_name(dtype) for dtype in DTYPES)
    for dtype in sorted({t.dtype for t in tensors} - set(DTYPES), key=str):
        reasons.append(f"dtype {_name(dtype)} (supported: {names})")
    if any(map(_is_lazy, tensors)):
        reasons.append("tensors that are negative views, zero tensors or inference tensors")
    if not all(map(Tensor.is_contiguous, tensors)) and not all(map(_is_dense, tensors)):
        reasons.append("a tensor with gaps or with overlapping elements")
    if any(t.data_ptr() % t.element_size() for t in tensors):
        reasons.append("data that is not aligned to its element size")
    if reasons:
        raise UnsupportedError(reasons)


def _check_overlap(tensors: Sequence[Tensor]) -> None:
    """Raise ``UnsupportedError`` if two tensors share memory: equal ones are one already."""
    begins = _column(t.data_ptr() for t in tensors if t.numel() > 0)
    ends = begins + _column(t.nbytes for t in tensors if t.numel() > 0)
    begins, order = begins.sort()
    if bool((begins[1:] < ends[order].cummax(0).values[:-1]).any()) if len(begins) > 1 else False:
        raise UnsupportedError(["gradients that overlap in part"])


def _is_lazy(tensor: Tensor) -> bool:
    return tensor.is_neg() or tensor._is_zerotensor() or tensor.is_inference()


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill their memory, in any order of the dimensions."""
    expected = 1
    dims = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in dims if size != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def _slots(addresses: Tensor, counts: Tensor, sizes: Tensor, chunk_size: int) -> tuple[Tensor, int]:
    """Return every tensor's first slot and how many slots there are."""
    heads = torch.minimum((-addresses & (VECTOR_BYTES - 1)) // sizes, counts)
    is_large = counts * sizes >= SMALL_BYTES
    taken = torch.where(is_large, SLOTS * ((counts - heads + chunk_size - 1) // chunk_size), 1)
    # A large tensor begins a group: the run of small ones before it is filled up.
    large = is_large.nonzero().flatten()
    small_before = (~is_large).cumsum(0)[large]
    run = torch.diff(small_before, prepend=small_before.new_zeros(1))
    begins = taken.clone()
    begins[large] += -run % SLOTS
    ends = begins.cumsum(0)
    return ends - taken, int(ends[-1]) if len(ends) else 0


def _chunk_size(total_count: int) -> int:
    size = MIN_CHUNK_SIZE
    while size < MAX_CHUNK_SIZE and total_count // size > MAX_CHUNKS:
        size *= 2
    return size


def _column(values: Iterable[int]) -> Tensor:
    # The default device may be another.
    return torch.tensor(list(values), dtype=torch.int64, device="cpu")


def _index_of(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
