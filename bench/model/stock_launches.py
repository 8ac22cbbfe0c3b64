"""How many kernels torch.nn.utils.clip_grad_norm_(foreach=True) launches, read off torch's source.

Counted for one list of one dtype on one GPU, with p = 2 and torch 2.13. Its kernels take more
tensors in a launch where it is built with CUDA 13 than in other builds. torch 2.11.0+cu130 launched
as other builds do (docs/roofline.md); nobody has counted a newer one on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from bench.core.shapes import Case

CHUNK_SIZE = 65536
"""kChunkSize of ATen/native/cuda/MultiTensorApply.cuh: a block takes as many elements."""


@dataclass(frozen=True)
class Limits:
    """What one launch over one list takes, as MultiTensorApply.cuh has it.

    Attributes:
        max_tensors: depth_to_max_tensors[0].
        max_blocks: depth_to_max_blocks[0].
    """

    max_tensors: int
    max_blocks: int


CUDA_13 = Limits(770, 2240)
OLDER = Limits(110, 320)

MAX_CLEANED = 3200
"""MAX_TENSORS_PER_KERNEL of ATen/native/cuda/ForeachReduceOp.cu: norms that one launch finishes."""

MAX_STACKED = 128
"""CAT_ARRAY_BATCH_SIZE of ATen/native/cuda/Shape.cu: tensors that one launch of stack copies."""


def limits_of(cuda: str | None) -> Limits:
    """Return the limits of a torch built with this CUDA, as ``torch.version.cuda``; None is HIP."""
    is_newer = cuda is not None and int(cuda.partition(".")[0]) >= 13
    return CUDA_13 if is_newer else OLDER


def multi_tensor_apply(counts: Sequence[int], limits: Limits = CUDA_13) -> int:
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
            if blocks == limits.max_blocks or (is_last and tensors == limits.max_tensors):
                launches += 1
                tensors, blocks = 0 if is_last else 1, 0
    return launches + (blocks > 0)


def stock_launches(case: Case, limits: Limits = CUDA_13) -> dict[str, int]:
    """Return the launches of each step of stock's clip, clipped or not."""
    counts = [prod(shape) for shape in case.shapes]
    foreach = multi_tensor_apply(counts, limits)
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
