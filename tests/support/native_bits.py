"""A digest of every bit that native clips produce, for tests that compare it in many settings."""

import hashlib
from collections.abc import Sequence

import torch
from native_cases import (
    CHUNK_SIZE,
    DTYPES,
    NORM_TYPES,
    SPAN_BYTES,
    bits,
    parameters_of,
    random_list,
)
from torch import Tensor

import fastclip

# Tensors longer than a span and ones that share a span with others, so that threads meet in both.
LENGTHS = (3, 2 * SPAN_BYTES // 4 + CHUNK_SIZE + 5, 0, 33, CHUNK_SIZE - 1, 7 * CHUNK_SIZE + 1, 1)


def shifted(tensors: Sequence[Tensor], offset: int) -> list[Tensor]:
    """Copy each tensor to ``offset`` elements past the start of fresh memory."""
    copies = []
    for tensor in tensors:
        copy = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)[offset:]
        copies.append(copy.copy_(tensor))
    return copies


def digest(
    lengths: Sequence[int] = LENGTHS,
    offset: int = 0,
    norm_types: Sequence[float] = NORM_TYPES,
) -> str:
    """Hash every bit that clips by norm and by value produce, over the dtypes and norm types."""
    hashed = hashlib.sha256()
    for dtype in DTYPES:
        original = random_list(lengths, dtype)
        for norm_type in norm_types:
            gradients = shifted(original, offset)
            parameters = parameters_of(gradients)
            total_norm = fastclip.clip_grad_norm_(parameters, 1.0, norm_type, backend="native")
            fastclip.clip_grad_value_(parameters, 1e-3, backend="native")
            for tensor in (total_norm, *gradients):
                hashed.update(bits(tensor).numpy().tobytes())
    return hashed.hexdigest()
