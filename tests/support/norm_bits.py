"""Lists whose norms and clips are compared bit for bit with a record of an earlier version.

A row of the record holds, in hexadecimal, what ``row()`` found on a list for one norm_type. Values
come from integer arithmetic only, so that they are the same with every torch.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator

import torch
from samples import parameters
from torch import Tensor

import fastclip

NORM_TYPES = (2.0, 1.0, math.inf, 3.0)

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Sizes around vectors, warps, small tensors, chunks and spans, and many tiny tensors together.
SIZES: dict[str, tuple[int, ...]] = {
    "tiny": (1, 2, 3, 7),
    "vectors": (15, 16, 17, 31, 32, 33, 63, 64, 65),
    "small": (1023, 1024, 1025, 4095, 4096, 4097, 8191, 8192, 8193),
    "chunks": (16383, 16384, 16385, 32769),
    "many": tuple(range(120)),
    "alternating": (20000, 3, 20000, 5, 0, 20000, 1),
    "one": (50000,),
}


def values(size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Return values of sixteen binades, of both signs, from a counter."""
    bits = torch.arange(size, dtype=torch.int64) * 6364136223846793005 + seed * 1442695040889
    bits = (bits ^ (bits >> 29 & 0x7FFFFFFFF)) * 2862933555777941757
    bits = bits >> 16 & 0xFFFFFFFF
    fractions = (bits & 0xFFFFFF).double() / 2**24 - 0.5
    return (fractions * torch.exp2((bits >> 24 & 15).double() - 8)).to(dtype)


def lists() -> Iterator[tuple[str, list[Tensor | None]]]:
    """Yield names and fresh gradients, None among them."""
    for kind, sizes in SIZES.items():
        for seed, (name, dtype) in enumerate(DTYPES.items()):
            yield f"{kind}-{name}", [values(size, dtype, seed + i) for i, size in enumerate(sizes)]
    mixed = [values(17 * i % 5000, [*DTYPES.values()][i % 4], i) for i in range(40)]
    yield "mixed", [*mixed]
    yield "mixed-16-and-32", [grad for grad in mixed if grad.dtype != torch.float64]
    shared = values(300, torch.float32, 5)
    yield "shared", [shared, None, values(70, torch.float32, 6), shared, None]
    for name, dtype in DTYPES.items():
        whole = values(40000, dtype, 9)
        yield f"views-{name}", [whole[1:8], whole[9:20000], whole[20001:40000].clone()[3:]]
        yield f"columns-{name}", [values(35 * 41, dtype, 3).view(35, 41).t()]
        yield f"zeros-{name}", [torch.zeros(5000, dtype=dtype), torch.zeros(3, dtype=dtype)]
        for special in (math.inf, math.nan, torch.finfo(dtype).max, torch.finfo(dtype).tiny / 8):
            grads = [values(20, dtype, 1), values(20000, dtype, 2)]
            grads[1][17000] = special
            yield f"special-{special:.3g}-{name}", [*grads]
        small = [values(size, dtype, size) * 2.0**-70 for size in (5, 3000, 20000)]
        yield f"rescued-{name}", [*small]
    yield "nothing", [None, None]


def digest(tensors: list[Tensor]) -> str:
    """Return a short hash of the tensors' bits; all NaNs count as one."""
    found = hashlib.sha256()
    for tensor in tensors:
        wide = tensor.detach().double().contiguous()  # exact, and one NaN
        wide = torch.where(wide.isnan(), torch.full_like(wide, math.nan), wide)
        found.update(str(tensor.dtype).encode() + wide.numpy().tobytes())
    return found.hexdigest()[:16]


def row(name: str, grads: list[Tensor | None], norm_type: float, backend: str) -> str:
    """Take the norm, clip in both ways, and return the norms' bits and hashes of all else."""
    made = parameters(grads)
    before = {id(grad): grad.clone() for grad in grads if grad is not None}
    measured = [grad for grad in grads if grad is not None]
    alone = fastclip.get_total_norm(measured, norm_type, backend=backend)
    norm = fastclip.clip_grad_norm_(made, 1.0, norm_type, backend=backend)
    found = [hex_of(alone), hex_of(norm), digest(measured)]
    for grad in measured:
        grad.copy_(before[id(grad)])
    clipper = fastclip.GradClipper(made, 1.0, norm_type, backend=backend)
    found += [hex_of(clipper.clip_()), digest(measured), digest([clipper.parameter_norms])]
    return f"{name} p={norm_type:g}: {' '.join(found)}"


def hex_of(norm: Tensor) -> str:
    """Return the bits of a norm."""
    if norm.isnan():
        return "nan"
    is_float64 = norm.dtype == torch.float64
    return struct.pack(">d" if is_float64 else ">f", norm.item()).hex()


def rows(backend: str, max_elements: int = 1 << 30) -> Iterator[str]:
    """Yield a row for each list that is short enough and each norm_type."""
    for norm_type in NORM_TYPES:
        for name, grads in lists():
            if sum(grad.numel() for grad in grads if grad is not None) <= max_elements:
                yield row(name, grads, norm_type, backend)
