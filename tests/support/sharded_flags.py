"""Operations of a sharded list with ``inv_scale`` and ``found_inf``: all ranks find the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import oracle
import torch
import torch.distributed as dist
from reference_calls import REFERENCE
from sharded_clips import MAX_NORM, check_same_bits, grads_of
from sharded_lists import Case, Parameters, local_of, whole_of
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from fastclip.backends.base import GradList, NonFiniteError
from fastclip.backends.reference.sharded import ShardedList
from fastclip.backends.request import Coefficient, Kind, clip_request

Act = Callable[[GradList, Tensor | None, Tensor], object]


def reduce_and_scale(grads: GradList, inv_scale: Tensor | None, found_inf: Tensor) -> None:
    held = grads.hold()
    sums = held.reduce(2.0, found_inf=found_inf)
    norms = held.finish(sums, clip_request(MAX_NORM, inv_scale=inv_scale))
    held.scale(norms.clip_coef, inv_scale=inv_scale, found_inf=found_inf)


ACTS: dict[str, Act] = {
    "clip": lambda grads, inv_scale, found_inf: grads.clip(
        clip_request(MAX_NORM, inv_scale=inv_scale, found_inf=found_inf)
    ),
    "clip and keep": lambda grads, inv_scale, found_inf: grads.clip(
        clip_request(MAX_NORM, math.inf, inv_scale=inv_scale, found_inf=found_inf, keeps_norms=True)
    ),
    "clip by minimum": lambda grads, inv_scale, found_inf: grads.clip(
        clip_request(MAX_NORM, -math.inf, inv_scale=inv_scale, found_inf=found_inf)
    ),
    "scale": lambda grads, inv_scale, found_inf: grads.scale(
        0.5, inv_scale=inv_scale, found_inf=found_inf
    ),
    "clamp": lambda grads, inv_scale, found_inf: grads.clamp(
        0.25, inv_scale=inv_scale, found_inf=found_inf
    ),
    "reduce and scale": reduce_and_scale,
}


def gathered(held: Parameters) -> GradList:
    return REFERENCE.gather(held, Kind.PARAMETERS)


def some_parameters(mesh: DeviceMesh, *, missing_on: int | None = None) -> Parameters:
    """Return a split, a copied and a plain gradient; the first is missing on one rank."""
    lie = [Shard(0)] * mesh.ndim, [Replicate()] * mesh.ndim
    held: Parameters = [
        nn.Parameter(distribute_tensor(torch.zeros(7, 2), mesh, placements)) for placements in lie
    ]
    held.append(nn.Parameter(torch.zeros(3)))
    for i, parameter in enumerate(held):
        grad = torch.full_like(parameter, 1.0 + i)
        parameter.grad = grad.detach()
    if dist.get_rank() == missing_on:
        held[0].grad = None
    return held


def check_flags(mesh: DeviceMesh) -> None:
    """Inf on any rank, or a flag that one rank has, stops the writes of all of them."""
    ranks = range(mesh.size())
    for name, act in ACTS.items():
        for faulty in (*ranks, None):
            for is_set in (False, True):
                for missing_on in (None,) if is_set else (None, mesh.size() - 1):
                    held = some_parameters(mesh, missing_on=missing_on)
                    found_inf = torch.zeros(1)
                    if dist.get_rank() == faulty and is_set:
                        found_inf.fill_(1)
                    elif dist.get_rank() == faulty:
                        local_of(grads_of(held)[-1]).view(-1)[-1] = math.inf
                    before = [local_of(grad).clone() for grad in grads_of(held)]
                    act(gathered(held), torch.tensor(0.5), found_inf)
                    what = (name, faulty, is_set, missing_on, found_inf)
                    assert found_inf.item() == (faulty is not None), what
                    for grad, old in zip(grads_of(held), before, strict=True):
                        is_same = oracle.equal(local_of(grad), oracle.values_of(old))
                        assert is_same == (faulty is not None), what
    print("flags")


def check_inf_in_a_shard(mesh: DeviceMesh) -> None:
    """One rank has the only element, in its shard; the shards of other ranks may be empty."""
    for name, act in ACTS.items():
        held: Parameters = [nn.Parameter(distribute_tensor(torch.zeros(1, 2), mesh, [Shard(0)]))]
        held[0].grad = torch.ones_like(held[0]).detach()
        if mesh.get_rank() == 0:
            local_of(held[0].grad)[0, 1] = math.nan
        found_inf = torch.zeros(())
        act(gathered(held), None, found_inf)
        assert found_inf.item() == 1, name
    share = DTensor.from_local(torch.full((2,), 3e38), mesh, [Partial()], run_check=False)
    parameter = nn.Parameter(share.clone().detach())
    parameter.grad = share
    found_inf = torch.zeros(())
    gathered([parameter]).scale(0.5, found_inf=found_inf)
    assert found_inf.item() == (mesh.size() > 1)  # the sum is inf
    assert local_of(share).max().item() == torch.tensor(3e38 if found_inf else 1.5e38).item()
    print("inf in a shard")


def check_scales(case: Case) -> None:
    """With ``inv_scale`` all ranks have the norm of the multiples, and write these."""
    scale = torch.tensor(0.375)
    for norm_type in (2.0, math.inf, 0.0):
        for keeps_norms in (False, True):
            held = case.parameters()
            expected = 0.375 * whole_of(held).norm(norm_type)
            before = [local_of(grad).clone() for grad in grads_of(held)]
            request = clip_request(
                MAX_NORM,
                norm_type,
                inv_scale=scale,
                found_inf=torch.zeros(1),
                keeps_norms=keeps_norms,
            )
            total_norm = gathered(held).clip(request).total_norm
            value = total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm
            assert value is not None
            assert oracle.is_norm(value.item(), expected, torch.float32), (value, expected)
            check_same_bits(value)
            factor = float(np.float32(oracle.clip_coef(MAX_NORM, value)) * np.float32(0.375))
            for grad, old in zip(grads_of(held), before, strict=True):
                assert oracle.equal(local_of(grad), oracle.scaled(old, factor))
    held = case.parameters()
    expected = [oracle.clamped(local_of(grad) * 0.375, 0.5) for grad in grads_of(held)]
    gathered(held).clamp(0.5, inv_scale=scale, found_inf=torch.zeros(1))
    for grad, values in zip(grads_of(held), expected, strict=True):
        assert oracle.equal(local_of(grad), values)


def check_sums(case: Case) -> None:
    """Sums, places and coefficients have an element for each parameter, on every rank."""
    held = case.parameters()
    if dist.get_rank() == 0:
        held[-1].grad = None
    norms = whole_of(held).norms(2.0)
    found = gathered(held).hold()
    sums = found.reduce(2.0)
    [part] = sums.parts
    for value, norm in zip(part.tolist(), norms, strict=True):
        assert math.isclose(value, norm * norm, rel_tol=1e-12)
    assert sums.places is None
    assert math.isclose(sums.total.item(), sum(part.tolist()), rel_tol=1e-12)
    check_same_bits(part)
    norm = found.finish(sums, clip_request(1.0)).total_norm
    clipped = found.clip(clip_request(1.0, writes=False, keeps_norms=True)).total_norm
    assert norm is not None
    assert clipped is not None
    assert type(norm) is type(clipped)
    assert torch.equal(local_of(norm), local_of(clipped))
    coefs = torch.linspace(0.25, 0.75, len(part))
    before = [None if p.grad is None else local_of(p.grad).clone() for p in held]
    targets = [torch.zeros_like(grad) for grad in grads_of(held)]
    found.scale_into(targets, [coefs], inv_scale=torch.tensor(0.5))
    found.scale([coefs], inv_scale=torch.tensor(0.5))
    written = iter(targets)
    for p, old, coef in zip(held, before, coefs.tolist(), strict=True):
        if old is not None and p.grad is not None:
            values = oracle.scaled(old, float(np.float32(coef) * np.float32(0.5)))
            assert oracle.equal(local_of(p.grad), values)
            assert oracle.equal(local_of(next(written)), values)


def check_gathers(mesh: DeviceMesh) -> None:
    """One gather for a clip and for a reduce, none for a scale that follows, one for another."""
    gathers: list[int] = []
    gather = ShardedList._gather

    def counted(self: ShardedList, row: Tensor) -> Tensor:
        gathers.append(row.numel())
        return gather(self, row)

    ShardedList._gather = counted
    try:
        held, found_inf = some_parameters(mesh), torch.zeros(())
        gathered(held).clip(clip_request(1.0, found_inf=found_inf))
        assert gathers == [2]
        gathered(held).clip(clip_request(1.0))
        assert gathers == [2, 1]
        kept = gathered(held).hold()
        kept.reduce(2.0, found_inf=found_inf)
        kept.scale(0.5, found_inf=found_inf)
        assert gathers == [2, 1, 4]
        gathered(held).scale(0.5, found_inf=found_inf)
        gathered(held).scale(0.5)
        gathered(held).clamp(0.5)
        assert gathers == [2, 1, 4, 1]
    finally:
        ShardedList._gather = gather
    print("gathers")


def check_nothing_alone(mesh: DeviceMesh) -> None:
    """A rank without any gradient takes part, also where the norm is not finite."""
    for act in ACTS.values():
        held = some_parameters(mesh)
        if mesh.get_rank() == 0:
            for parameter in held:
                parameter.grad = None
        elif mesh.get_rank() == mesh.size() - 1:
            local_of(grads_of(held)[1]).view(-1)[0] = math.nan
        found_inf = torch.zeros(1)
        act(gathered(held), None, found_inf)
        assert found_inf.item() == (mesh.size() > 1)
    total_norm = distribute_tensor(torch.tensor(4.0), mesh, [Replicate()])
    for held in (some_parameters(mesh), []):
        found = gathered(held)
        assert found.scale(Coefficient(1.0, total_norm)) == (len(held) > 0)
    held = some_parameters(mesh)
    if mesh.get_rank() == 0:
        local_of(grads_of(held)[0]).view(-1)[0] = math.inf
    found_inf = torch.zeros(1)
    request = clip_request(1.0, error_if_nonfinite=True, found_inf=found_inf, keeps_norms=True)
    try:
        gathered(held).clip(request)
    except NonFiniteError as error:
        assert error.positions == [0]
        assert not error.norms.parameter_norms().isfinite()[0]
    else:
        raise AssertionError("no error for inf")
    assert found_inf.item() == 1
    print("nothing alone")


def check_tensors(mesh: DeviceMesh) -> None:
    """In a list of DTensors, one that is given again counts once, unless the list is read only."""
    grad = distribute_tensor(torch.full((4,), 2.0), mesh, [Shard(0)])
    for kind, factor in ((Kind.TENSORS, 1), (Kind.READ_ONLY, 2)):
        sums = REFERENCE.gather([grad, grad], kind).reduce(2.0)
        assert math.isclose(sums.total.item(), 16 * factor, rel_tol=1e-15)
    found = REFERENCE.gather([grad, grad], Kind.TENSORS)
    norms = found.clip(clip_request(1e9, keeps_norms=True))
    assert norms.parameter_norms().tolist() == [4.0, 4.0]
    found.scale(0.5, found_inf=torch.zeros(1))
    assert torch.equal(local_of(grad), torch.ones_like(local_of(grad)))
    print("tensors")


def check_outside_flags() -> None:
    """A rank outside the mesh looks only at its own gradients, and no rank waits for it."""
    if dist.get_world_size() < 3:
        return
    mesh = DeviceMesh("cpu", [0, 1])
    rank = dist.get_rank()
    for act in ACTS.values():
        local = torch.ones(2) if rank < 2 else torch.empty(0)
        sizes = {"shape": torch.Size([4]), "stride": (1,)}
        grad = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, **sizes)
        sharded = nn.Parameter(grad.clone().detach())
        sharded.grad = grad
        plain = nn.Parameter(torch.zeros(2))
        plain.grad = torch.ones(2)
        if rank == 0:
            local_of(grad)[0] = math.nan
        found_inf = torch.zeros(1)
        act(gathered([sharded, plain]), None, found_inf)
        assert found_inf.item() == (rank < 2)
        assert torch.equal(plain.grad, torch.ones(2)) == (rank < 2)
    print("outside flags")


def check_operations(line: DeviceMesh) -> None:
    """Run every check on a mesh of one dimension, and some on a square."""
    check_flags(line)
    check_inf_in_a_shard(line)
    check_gathers(line)
    check_nothing_alone(line)
    check_tensors(line)
    check_outside_flags()
    if dist.get_world_size() == 4:
        check_flags(init_device_mesh("cpu", (2, 2)))
