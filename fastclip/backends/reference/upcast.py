"""Norms in float64 of 16- and 32-bit tensors, a slice at a time.

In float64 the squares of float32 values are exact and can neither overflow nor vanish, so one pass
gives a norm that is right over the whole finite range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.utils._foreach_utils import _device_has_foreach_support

from ..tensors import are_plain, by_dtype, sizes_of

MAX_SLICE_SIZE = 2**24
"""The most elements converted at once: 128 MB of float64, 256 MB of complex128."""

CPU_SLICE_SIZE = 2**20
"""The same on the CPU: 8 MB should stay in the cache, and are worth starting the threads."""

GATHERED_SIZE = 2**16
"""CPU tensors below this many elements are gathered first: a copy costs less than the calls."""

BATCH_SIZE = 2**19
"""The most elements gathered at once, at least GATHERED_SIZE: 2 MB and their float64 values."""

_SPARE_ROOM = 2**14
"""Elements by which the freed block is larger than a batch: small allocations take some of it."""

_KNOWN_DEVICES = ("cpu", "cuda", "meta", "mps", "xpu")

_CPU_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def part_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Compute norms of parts that together hold every element once.

    This is right for a norm_type whose norms merge by the norm itself: any p > 0, and inf.

    Args:
        tensors: tensors without empties, all on one device, of any dtypes that torch has.
        norm_type: the p of the p-norm.

    Returns:
        0-dim float64 tensors on that device; how many depends on sizes, dtypes and strides.
    """
    if not are_plain(tensors):
        return [tensor_norm(t, norm_type) for t in tensors]
    norms: list[Tensor] = []
    device = tensors[0].device
    for dtype, group in by_dtype(tensors).items():
        if device.type == "cpu" and dtype in _CPU_DTYPES:
            norms.extend(_cpu_norm(part, norm_type) for part in _cpu_parts(group, norm_type))
        elif dtype.is_floating_point and _device_has_foreach_support(device):
            pieces = [piece for t in group for piece in slices_of(t, MAX_SLICE_SIZE)]
            foreach_norm = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]
            norms.extend(foreach_norm(pieces, norm_type, torch.float64))
        else:
            norms.extend(tensor_norm(t, norm_type) for t in group)
    return norms


def tensor_norm(tensor: Tensor, norm_type: float) -> Tensor:
    """Compute the norm of one tensor of any kind.

    Args:
        tensor: any floating point or complex tensor; a sparse one counts as its coalesced values.
        norm_type: the p of the p-norm, any float.

    Returns:
        A 0-dim tensor on the same device: float64 (float32 on devices without float64); 0 for a
        tensor without elements.
    """
    norms: list[Tensor] = []
    for values in stored_parts(tensor):
        if values.numel() == 0:
            continue
        if are_plain([values]) and values.is_cpu and values.dtype in _CPU_DTYPES:
            norms.extend(_cpu_norm(part, norm_type) for part in _cpu_parts([values], norm_type))
        else:
            norms.extend(_norm(piece, norm_type) for piece in slices_of(values, MAX_SLICE_SIZE))
    if not norms:
        return torch.zeros((), dtype=real_dtype(tensor.device), device=tensor.device)
    return norms[0] if len(norms) == 1 else merge_slices(torch.stack(norms), norm_type)


def tensor_norms(tensors: Sequence[Tensor], norm_type: float) -> list[Tensor]:
    """Compute the norm of each tensor, as ``tensor_norm`` does; gather small ones on the CPU.

    Args:
        tensors: floating point or complex tensors of any kind.
        norm_type: the p of the p-norm, any float.

    Returns:
        0-dim tensors, in the order of ``tensors``.
    """
    small: dict[torch.dtype, list[int]] = {}
    if are_plain(tensors):
        for position, t in enumerate(tensors):
            if t.is_cpu and t.dtype in _CPU_DTYPES and 0 < t.numel() < GATHERED_SIZE:
                small.setdefault(t.dtype, []).append(position)
    norms: dict[int, Tensor] = {}
    for positions in small.values():
        group = [tensors[position] for position in positions]
        norms.update(zip(positions, _small_norms(group, norm_type), strict=True))
    return [
        norms[position] if position in norms else tensor_norm(t, norm_type)
        for position, t in enumerate(tensors)
    ]


def merge_slices(norms: Tensor, norm_type: float) -> Tensor:
    """Merge the norms of the slices of one tensor, along dimension 0."""
    # The norm for p = 0 counts elements, and counts add up.
    return norms.sum(0) if norm_type == 0 else torch.linalg.vector_norm(norms, norm_type, dim=0)


def norm_of_nothing(norm_type: float, device: torch.device) -> Tensor:
    """Return the norm that changes nothing when ``merge_slices`` merges it with others."""
    value = math.inf if norm_type < 0 else 0.0
    return torch.full((), value, dtype=torch.float64, device=device)


def stored_parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of a nested tensor, as views; for any other, its stored values.

    A nested tensor that is being traced stays whole: the number of its tensors is unknown.
    """
    if tensor.is_nested and not torch.compiler.is_compiling():
        return list(tensor.unbind())
    return [stored_values(tensor)]


def stored_values(tensor: Tensor) -> Tensor:
    """Return the values of a sparse tensor, in float64 if indices repeat; else the tensor."""
    if tensor.layout is torch.sparse_coo:
        return coalesced(tensor).values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        return tensor.values()
    return tensor


def coalesced(sparse: Tensor) -> Tensor:
    """Return a COO tensor without repeated indices: itself, or its sums in float64.

    Summed in their own dtype, 1000 terms of 1.0 give 256 in bfloat16, and two of 40,000 give inf in
    float16.
    """
    return sparse if sparse.is_coalesced() else sparse.to(_wide_dtype(sparse)).coalesce()


def slices_of(tensor: Tensor, size: int) -> Iterator[Tensor]:
    """Yield views of at most ``size`` elements that cover ``tensor``, in the order of memory."""
    if tensor.numel() <= size:
        yield tensor
        return
    strides = tensor.stride()
    ordered = tensor.permute(sorted(range(tensor.dim()), key=lambda d: strides[d], reverse=True))
    if ordered.is_contiguous():
        yield from ordered.view(-1).split(size)
        return
    row_size = tensor.numel() // ordered.shape[0]
    if row_size > size:
        for row in ordered.unbind(0):
            yield from slices_of(row, size)
    else:
        yield from ordered.split(size // row_size)


def real_dtype(device: torch.device) -> torch.dtype:
    """Return the widest real dtype of a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # Metal has no float64


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return the widest dtype of the tensor's device, complex if the tensor is."""
    real = real_dtype(tensor.device)
    if not tensor.is_complex():
        return real
    # to_complex() is not used, because torch.compile cannot trace it.
    return torch.complex128 if real == torch.float64 else torch.complex64


def _norm(piece: Tensor, norm_type: float) -> Tensor:
    if norm_type == 0:
        # vector_norm counts no complex element whose real part is 0.
        return torch.count_nonzero(piece).to(real_dtype(piece.device))
    if are_plain([piece]) and piece.device.type in _KNOWN_DEVICES:
        return torch.linalg.vector_norm(piece, norm_type, dtype=_wide_dtype(piece))
    try:
        return torch.linalg.vector_norm(piece, norm_type, dtype=_wide_dtype(piece))
    except (RuntimeError, TypeError):
        # A subclass, or a device from outside torch, may have the norm only without `dtype`, as
        # torch itself calls it. Then it accumulates in its own way.
        return torch.linalg.vector_norm(piece, norm_type).to(real_dtype(piece.device))


def _cpu_norm(part: Tensor, norm_type: float) -> Tensor:
    """Compute the norm of one part, in the fastest of the ways that torch's CPU kernels offer."""
    if norm_type == 2.0 and part.dim() == 1:
        return torch.dot(part, part).sqrt()
    if norm_type == 1.0:
        return part.abs().sum()
    if norm_type == math.inf:
        lowest, highest = torch.aminmax(part)
        return torch.maximum(-lowest, highest).abs().to(torch.float64)  # no -0.0
    return _norm(part, norm_type)


def _small_norms(tensors: Sequence[Tensor], norm_type: float) -> Iterator[Tensor]:
    """Yield the norm of each of many tensors that ``_cpu_batches`` gathers."""
    sizes = iter(sizes_of(tensors))
    for part in _cpu_parts(tensors, norm_type):
        gathered: list[int] = []
        left = part.numel()
        while left > 0:
            gathered.append(next(sizes))
            left -= gathered[-1]
        for values in part.split_with_sizes(gathered):
            yield _cpu_norm(values, norm_type)


def _cpu_parts(tensors: Sequence[Tensor], norm_type: float) -> Iterator[Tensor]:
    """Yield the elements of ``tensors`` in parts, in float64 unless only a maximum is needed.

    All tensors have one dtype. A part is valid only until the next one is asked for.
    """
    if norm_type == math.inf or tensors[0].dtype == torch.float64:
        yield from _cpu_batches(tensors)
        return
    size = min(max(CPU_SLICE_SIZE, BATCH_SIZE), sum(sizes_of(tensors)))
    # glibc does not reuse a freed aligned block for an equal request, and fresh pages cost more
    # than the copy (15 of 34 ms at 2000 x 4096). Freeing one larger block first leaves mapped
    # memory for all batches.
    room = torch.empty(min(size, BATCH_SIZE) + _SPARE_ROOM, dtype=tensors[0].dtype, device="cpu")
    buffer = torch.empty(size, dtype=torch.float64, device="cpu")
    del room
    for part in _cpu_batches(tensors):
        wide = buffer[: part.numel()]
        wide.view(part.shape).copy_(part)
        del part
        yield wide


def _cpu_batches(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the elements of ``tensors``: small ones gathered, large ones as views."""
    start, batch_size = 0, 0
    for position, size in enumerate(sizes_of(tensors)):
        if size >= GATHERED_SIZE or batch_size + size > BATCH_SIZE:
            if position > start:
                yield _flatten_dense_tensors(tensors[start:position])
            start, batch_size = position, 0
        if size >= GATHERED_SIZE:
            yield from slices_of(tensors[position], CPU_SLICE_SIZE)
            start = position + 1
        else:
            batch_size += size
    if len(tensors) > start:
        yield _flatten_dense_tensors(tensors[start:])
