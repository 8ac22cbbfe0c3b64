"""Gradients of which each rank holds a part: those of FullyShardedDataParallel.

It keeps flat shards that torch cannot tell from ordinary tensors, so that their norm needs the
module: which parameters are sharded, and over which ranks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from .backends import check_backend, dispatch
from .backends.base import Backend, GradList, nonfinite_message, nonfinite_positions
from .backends.request import PARAMETERS, ClipRequest, Coefficient, Sums, number_of, roots

if TYPE_CHECKING:
    from torch.distributed.fsdp import FullyShardedDataParallel

Reduced = tuple[GradList, Sums]


def is_fully_sharded(value: object) -> TypeGuard[FullyShardedDataParallel]:
    """Return whether a value is a FullyShardedDataParallel, without an import of its module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(value, fsdp.FullyShardedDataParallel)


def has_shards(module: FullyShardedDataParallel) -> bool:
    """Prepare a root module and return whether any part of it is sharded.

    Raises:
        RuntimeError: it is no root, with the text of torch's own method.
    """
    from torch.distributed.fsdp._runtime_utils import _lazy_init

    _lazy_init(module, module)
    if not module._is_root:
        raise RuntimeError("`clip_grad_norm_()` should only be called on the root FSDP instance")
    return any(handle.uses_sharded_strategy for handle in module._all_handles)


def clip_fully_sharded(
    module: FullyShardedDataParallel,
    request: ClipRequest,
    backend: str | None,
    foreach: bool | None,
) -> Tensor:
    """Clip the gradients of a root module that has shards; one all-reduce.

    Every rank calls. The shards' sums are added over the ranks that share them, and those of
    parameters that every rank holds whole are added once.

    Args:
        module: a root; see ``has_shards``.
        request: with a ``norm_type`` of at most 0, the module's own method clips.
        backend, foreach: as for ``clip_grad_norm_``.

    Returns:
        The norm before clipping: 0-dim, float32, or float64 if a gradient is; on the module's
        device, or on the CPU where it offloads its parameters. The same on every rank, if the
        parameters that FSDP does not manage have the same gradients there.

    Raises:
        RuntimeError: as ``clip_grad_norm_``; a norm that is not finite raises on every rank.
    """
    check_backend("clip_grad_norm_", backend, foreach)
    if not request.norm_type > 0:
        if request.error_if_nonfinite:
            raise RuntimeError(
                "clip_grad_norm_: norm_type must be above 0 for an FSDP module with "
                f"error_if_nonfinite (got {request.norm_type})"
            )
        return module.clip_grad_norm_(number_of(request.max_norm), request.norm_type)
    sharded, whole = _parameters(module)

    def reduced(b: Backend, sources: list[Tensor]) -> Reduced:
        grads = b.gather(sources, PARAMETERS, foreach=foreach).hold()
        return grads, grads.reduce(request.norm_type)

    def reduce(sources: list[Tensor]) -> Reduced:
        return dispatch("clip_grad_norm_", backend, foreach, lambda b: reduced(b, sources))

    parts = [reduce(sharded), reduce(whole)]
    dtype = torch.promote_types(parts[0][1].dtype, parts[1][1].dtype)
    total, is_finite = _total(module, parts[0][1], parts[1][1], dtype)
    total_norm = roots(total, request.norm_type).to(dtype)
    # What every rank holds whole may differ: ranks that decided for themselves would part here.
    if request.error_if_nonfinite and not bool(is_finite):
        _raise_nonfinite(module, request, parts, sharded, whole)
    for grads, _ in parts:
        grads.scale(Coefficient(request.max_norm, total_norm))
    return total_norm


def _parameters(module: FullyShardedDataParallel) -> tuple[list[Tensor], list[Tensor]]:
    """Split a module's parameters into those that are sharded and those that each rank has."""
    sharded: dict[Tensor, None] = {}  # in order, and each once
    whole: dict[Tensor, None] = {}
    for handle in module._all_handles:
        held = handle.flat_param._params if handle._use_orig_params else [handle.flat_param]
        (sharded if handle.uses_sharded_strategy else whole).update(dict.fromkeys(held or ()))
    whole.update(dict.fromkeys(p for p in module.parameters() if p not in sharded))
    return list(sharded), list(whole)


def _total(
    module: FullyShardedDataParallel, sharded: Sums, whole: Sums, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Add the sums of all ranks: 0-dim, float64.

    Returns:
        The total, and whether every rank's part of it is finite: the same on every rank.
    """
    device = module.compute_device or torch.device("cpu")
    total, rest = _on_device(sharded, device), _on_device(whole, device)
    is_odd = (~torch.isfinite(rest)).double()
    if math.isinf(sharded.norm_type):
        # A maximum over ranks may lose NaN: it goes as a flag.
        is_nan = torch.isnan(total)
        vector = torch.stack([torch.where(is_nan, 0.0, total), is_nan.double(), is_odd])
        dist.all_reduce(vector, op=dist.ReduceOp.MAX, group=module.process_group)
        shared = torch.where(vector[1] > 0, math.nan, vector[0])
        total = torch.maximum(shared, rest)
    else:
        vector = torch.stack([total, is_odd])
        dist.all_reduce(vector, group=module.process_group)
        shared = vector[0]
        total = shared + rest
    shards_norm = roots(shared, sharded.norm_type).to(dtype)
    is_finite = torch.isfinite(shards_norm) & (vector[-1] == 0)
    return (total.cpu() if module.cpu_offload.offload_params else total), is_finite


def _on_device(sums: Sums, device: torch.device) -> Tensor:
    """Return a total on a device; without gradients no copy is made, which would wait for it."""
    if not sums.parts:
        return torch.zeros((), dtype=torch.float64, device=device)
    return sums.total.to(device, torch.float64)


def _raise_nonfinite(
    module: FullyShardedDataParallel,
    request: ClipRequest,
    parts: Iterable[Reduced],
    *sources: list[Tensor],
) -> NoReturn:
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    labels = list(_labels(parts, sources, names)) or ["none on this rank"]
    raise RuntimeError(nonfinite_message(request.norm_type, labels))


def _labels(
    parts: Iterable[Reduced], sources: Iterable[list[Tensor]], names: dict[Tensor, str]
) -> Iterator[str]:
    for (grads, _), held in zip(parts, sources, strict=True):
        for position in nonfinite_positions(grads):
            parameter = held[position]
            yield f"{names.get(parameter, position)} {tuple(parameter.shape)}"
