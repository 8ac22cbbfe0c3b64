"""How many kernels torch.nn.utils.clip_grad_norm_(foreach=True) launches, read off torch's source.

Counted for one list of one dtype on one GPU, with p = 2 and torch 2.13 built with CUDA 13, whose
kernels take more tensors in a launch than those of older builds. Nobody has measured it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from shapes import Case

CHUNK_SIZE = 65536
"""kChunkSize of ATen/native/cuda/MultiTensorApply.cuh: a block takes as many elements."""

MAX_TENSORS = 770
"""depth_to_max_tensors[0] of MultiTensorApply.cuh: tensors in one launch over one list."""

MAX_BLOCKS = 2240
"""depth_to_max_blocks[0] of MultiTensorApply.cuh."""

MAX_CLEANED = 3200
"""MAX_TENSORS_PER_KERNEL of ATen/native/cuda/ForeachReduceOp.cu: norms that one launch finishes."""

MAX_STACKED = 128
"""CAT_ARRAY_BATCH_SIZE of ATen/native/cuda/Shape.cu: tensors that one launch of stack copies."""


def multi_tensor_apply(counts: Sequence[int]) -> int:
    """Return the launches of one foreach operation over tensors of these element counts.

    A launch goes out when it holds as many blocks as it can, or as many tensors, the last of them
    whole; a tensor that is cut goes on in the next one.
    """
    launches = tensors = blocks = 0
    for count in counts:
        n_chunks = -(-count // CHUNK_SIZE)
        tensors += n_chunks > 0
        for chunk in range(1, n_chunks + 1):
            blocks += 1
            is_last = chunk == n_chunks
            if blocks == MAX_BLOCKS or (is_last and tensors == MAX_TENSORS):
                launches += 1
                tensors, blocks = 0 if is_last else 1, 0
    return launches + (blocks > 0)


def stock_launches(case: Case) -> dict[str, int]:
    """Return the launches of each step of stock's clip, clipped or not."""
    counts = [prod(shape) for shape in case.shapes]
    foreach = multi_tensor_apply(counts)
    return {
        "zeros": 1,
        "foreach_norm": foreach,
        "cleanup": -(-len(counts) // MAX_CLEANED),
        "stack": -(-len(counts) // MAX_STACKED),
        "vector_norm": 1,
        "add": 1,
        # max_norm / tensor is tensor.reciprocal() * max_norm.
        "reciprocal": 1,
        "mul": 1,
        "clamp": 1,
        "foreach_mul": foreach,
    }
