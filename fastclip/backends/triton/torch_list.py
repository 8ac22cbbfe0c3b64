"""Packing by torch operations on all tensors together, without the extension."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .. import tensors
from ..base import Reason, ReasonKind, RefusedError
from ..request import PARAMETERS, READ_ONLY, Kind

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""The dtypes by their codes, as in csrc/tensor_list.h."""

DTENSOR_REASON = "a DTensor, whose ranks clip together (supported: plain strided tensors)"
"""The same text as in csrc/binding/walk/dtensor.h."""

CODE_BITS = 2
SLOTS = 8
VECTOR_BYTES = 16
MIN_CHUNK_SIZE, MAX_CHUNK_SIZE = 1 << 14, 1 << 20
MAX_CHUNKS = 1 << 11
"""The numbers of csrc/gpu_work.h, which explains them."""

SMALL_BYTES = 4096
"""A tensor of fewer bytes is small; kSmall of csrc/binding/packing.h.

The CUDA kernels give 16 KiB to a warp. Here a small tensor is a row of a block, which loads 128
elements in each round, one by one: 16 KiB of 16-bit elements would take 64 rounds, one after
another, and a chunk takes one. With 512 elements in a round, a norm of three dtypes spills
registers (sm_90, Triton 3.9). Neither has been timed on a GPU.
"""


class TorchList:
    """A ``PackedList``."""

    hold: Callable[[bool], TorchList]

    def __init__(
        self, grads: Sequence[Tensor], duplicates: Sequence[Tensor], places: Sequence[int]
    ) -> None:
        self._grads = grads
        self._duplicates = duplicates
        self.size = len(grads)
        self.places = None if places == list(range(self.size)) else _column(places)
        device = grads[0].device if grads else torch.device("cpu")
        self.device = -1 if device.type == "cpu" else _index_of(device)
        self._addresses = _column(map(Tensor.data_ptr, grads))
        counts = _column(map(Tensor.numel, grads))
        code_of = {dtype: code for code, dtype in enumerate(DTYPES)}
        codes = _column(code_of[t.dtype] for t in grads)
        sizes = _column(dtype.itemsize for dtype in DTYPES)[codes]
        self._packed_counts = counts << CODE_BITS | codes
        self.mix = sum(1 << code for code in set(codes.tolist()))
        self.has_float64 = bool(self.mix & 1 << code_of[torch.float64])
        self._byte_counts = counts * sizes
        self.chunk_size = _chunk_size(int(counts.sum()))
        self._first_slots, slots = _slots(self._addresses, counts, sizes, self.chunk_size)
        self.groups = -(-slots // SLOTS)

    def write(self, words: Tensor, fields: list[int], targets: list[int]) -> None:
        """Write the words that kernels read to a host tensor."""
        columns = [self._addresses, self._packed_counts, self._first_slots]
        made = torch.cat([_column(fields), *columns, _column(targets)])
        is_plain = words.is_cpu and words.is_contiguous() and words.dtype == made.dtype
        if words.shape != made.shape or not is_plain:
            raise ValueError(f"TorchList: words must be {len(made)} of int64 in host memory")
        words.copy_(made)

    def addresses_of(self, targets: list[Tensor]) -> list[int]:
        """Check the tensors that results are written to, and return where they begin."""
        if len(targets) != self.size:
            raise ValueError(f"fastclip: targets must be {self.size} tensors (got {len(targets)})")
        for i, (target, grad) in enumerate(zip(targets, self._grads, strict=True)):
            if not _is_target_for(target, grad):
                raise ValueError(
                    f"fastclip: target {i} must have the dtype, shape, strides and device of its "
                    "gradient"
                )
        if _share_memory(targets, self._grads):
            raise ValueError(
                "fastclip: targets must share no memory with each other or with gradients"
            )
        return [target.data_ptr() for target in targets]

    def holds(self, address: int) -> bool:
        """Return whether an address lies in the memory of a tensor."""
        ends = self._addresses + self._byte_counts
        return bool(((self._addresses <= address) & (address < ends)).any())

    def bump_versions(self) -> None:
        """Let autograd know that every tensor was written."""
        torch.autograd.graph.increment_version([*self._grads, *self._duplicates])


@functools.cache
def no_tensors() -> TorchList:
    """Return an empty list, for kernels that read no tensor."""
    return TorchList([], [], [])


def pack(
    sources: Sequence[Tensor], kind: Kind, is_interpreted: bool, takes_norm: bool
) -> TorchList:
    """Pack the gradients that sources have.

    Raises:
        RefusedError: see ``Pack``.
        RuntimeError: torch's own, for gradients that cannot be written.
    """
    if kind is not PARAMETERS:
        return _pack_gradients(sources, sources, kind, is_interpreted, takes_norm)
    grads = [p.grad for p in sources]
    return _pack_gradients(sources, grads, kind, is_interpreted, takes_norm)


def _pack_gradients(
    sources: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    kind: Kind,
    is_interpreted: bool,
    takes_norm: bool,
) -> TorchList:
    for position, grad in enumerate(grads):
        if grad is not None and not isinstance(grad, Tensor):
            raise _refusal(f"gradient {position} is no tensor")
    held = [grad for grad in grads if grad is not None]
    if kind is not READ_ONLY:
        tensors.check_writable(held)
        if takes_norm and tensors.is_sharded(sources, grads):
            raise _refusal(DTENSOR_REASON)
    _check(held, is_interpreted)
    packed = TorchList(held, [], _places(grads)) if kind is READ_ONLY else _distinct(grads, held)
    packed.hold = functools.partial(_pack_gradients, sources, grads, kind, is_interpreted)
    return packed


def _distinct(grads: Sequence[Tensor | None], held: list[Tensor]) -> TorchList:
    distinct = tensors.unique_gradients(held)
    _check_overlap(distinct)
    if len(distinct) == len(held):
        return TorchList(held, [], _places(grads))
    place_of = {tensors.identity(grad): place for place, grad in enumerate(distinct)}
    places = [-1 if grad is None else place_of[tensors.identity(grad)] for grad in grads]
    counted = {id(grad) for grad in distinct}
    duplicates = {id(grad): grad for grad in held if id(grad) not in counted}
    return TorchList(distinct, list(duplicates.values()), places)


def _places(grads: Sequence[Tensor | None]) -> list[int]:
    position = iter(range(len(grads)))
    return [-1 if grad is None else next(position) for grad in grads]


def _refusal(*texts: str) -> RefusedError:
    return RefusedError([Reason(ReasonKind.TENSORS, text) for text in texts])


def _check(grads: Sequence[Tensor], is_interpreted: bool) -> None:
    """Raise ``RefusedError`` unless all are dense tensors of known dtypes on one device."""
    if any(map(tensors.is_dtensor, grads)):
        raise _refusal(DTENSOR_REASON)
    if not tensors.are_plain(grads):
        raise _refusal("tensors of other kinds than plain strided ones")
    supported = "cpu" if is_interpreted else "cuda"
    where = "supported in Triton's interpreter" if is_interpreted else "supported"
    devices = {t.device for t in grads}
    reasons = [
        f"device {device} ({where}: {supported})"
        for device in sorted(devices, key=str)
        if device.type != supported
    ]
    if len(devices) > 1:
        reasons.append("gradients on several devices (supported: one)")
    names = ", ".join(_name(dtype) for dtype in DTYPES)
    for dtype in sorted({t.dtype for t in grads} - set(DTYPES), key=str):
        reasons.append(f"dtype {_name(dtype)} (supported: {names})")
    if any(map(_is_lazy, grads)):
        reasons.append("tensors that are negative views, zero tensors or inference tensors")
    if not all(map(Tensor.is_contiguous, grads)) and not all(map(_is_dense, grads)):
        reasons.append("a tensor with gaps or with overlapping elements")
    if any(t.data_ptr() % t.element_size() for t in grads):
        reasons.append("data that is not aligned to its element size")
    if reasons:
        raise _refusal(*reasons)


def _check_overlap(grads: Sequence[Tensor]) -> None:
    """Raise ``RefusedError`` if two tensors share memory; equal ones have been joined before."""
    begins = _column(t.data_ptr() for t in grads if t.numel() > 0)
    ends = begins + _column(t.nbytes for t in grads if t.numel() > 0)
    begins, order = begins.sort()
    if bool((begins[1:] < ends[order].cummax(0).values[:-1]).any()) if len(begins) > 1 else False:
        raise _refusal("gradients that overlap in part")


def _is_target_for(target: Tensor, grad: Tensor) -> bool:
    """Return whether kernels may write a gradient's product to a target."""
    if not isinstance(target, Tensor) or not tensors.are_plain([target]) or _is_lazy(target):
        return False
    layout = (target.dtype, target.shape, target.stride(), target.device)
    return layout == (grad.dtype, grad.shape, grad.stride(), grad.device)


def _share_memory(targets: Sequence[Tensor], grads: Sequence[Tensor]) -> bool:
    """Return whether a target shares memory with another one or with a gradient."""
    held = [(t, True) for t in targets] + [(t, False) for t in grads]
    extents = [(t.data_ptr(), t.data_ptr() + t.nbytes, is_target) for t, is_target in held]
    end = end_of_targets = 0
    for begin, stop, is_target in sorted(extent for extent in extents if extent[0] < extent[1]):
        if begin < (end if is_target else end_of_targets):
            return True
        end = max(end, stop)
        end_of_targets = max(end_of_targets, stop if is_target else 0)
    return False


def _is_lazy(tensor: Tensor) -> bool:
    """Return whether it is a negative view, a zero tensor or an inference tensor."""
    return tensor.is_neg() or tensor._is_zerotensor() or tensor.is_inference()


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill their memory, in any order of the dimensions."""
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
    # A large tensor begins a group, so the run of small tensors before it is padded to whole
    # groups.
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
    # The default device may be another one.
    return torch.tensor(list(values), dtype=torch.int64, device="cpu")


def _index_of(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
