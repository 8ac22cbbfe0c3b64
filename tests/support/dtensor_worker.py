"""One rank of a gloo group that clips DTensors: ``dtensor_worker.py RANK WORLD_SIZE STORE_FILE``.

Prints one line for each check; any difference is an error.
"""

from __future__ import annotations

import math
import sys
import warnings
from datetime import timedelta

import oracle
import torch
import torch.distributed as dist
from sharded_clips import (
    CLIPS,
    MAX_NORM,
    NORM_TYPES,
    by_clipper,
    by_function,
    check_case,
    grads_of,
    in_two_calls,
    one_at_a_time,
)
from sharded_flags import check_operations, check_scales, check_sums
from sharded_lists import Case, Parameters, cases, local_of, shard_model, small_model, with_plain
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

import fastclip


def check_partial(mesh: DeviceMesh) -> None:
    """Terms of a sum are added before the norm is taken; nothing clamps them one by one."""
    partial = [Partial()] * mesh.ndim
    ranks = mesh.size()
    parameter: Tensor = nn.Parameter(torch.zeros(0))
    for norm_type in NORM_TYPES:
        share = DTensor.from_local(torch.full((4,), 3.0), mesh, partial, run_check=False)
        parameter = nn.Parameter(share.detach().clone())
        parameter.grad = share
        norm = fastclip.clip_grad_norm_([parameter], 1.0, norm_type)
        assert isinstance(norm, DTensor)
        expected = oracle.total_norm([torch.full((4,), 3.0 * ranks)], norm_type)
        assert oracle.is_norm(norm.full_tensor().item(), expected, torch.float32)
        coef = oracle.clip_coef(1.0, norm.full_tensor())
        torch.testing.assert_close(share.full_tensor(), torch.full((4,), 3.0 * ranks * coef))
    plain = nn.Parameter(torch.zeros(2))
    plain.grad = torch.full((2,), 9.0)
    try:
        fastclip.clip_grad_value_([plain, parameter], 0.5)
    except RuntimeError as error:
        assert "Partial" in str(error), error
    else:
        raise AssertionError("a Partial gradient was clamped")
    assert plain.grad.tolist() == [9.0, 9.0]
    print("partial")


def check_training() -> None:
    """A step's gradients, sharded by FSDP2 and TP, have the norm that one process finds."""
    names, shape = (("dp", "tp"), (2, 2)) if dist.get_world_size() == 4 else (("dp",), None)
    mesh = init_device_mesh("cpu", shape or (dist.get_world_size(),), mesh_dim_names=names)
    alone, sharded = small_model(), shard_model(small_model(), mesh)
    inputs = torch.linspace(-1, 1, 12).view(3, 4)
    for model in (alone, sharded):
        model(inputs).square().sum().backward()
    expected = oracle.total_norm([p.grad for p in alone.parameters() if p.grad is not None], 2.0)
    total_norm = fastclip.clip_grad_norm_(sharded.parameters(), 0.01)
    assert isinstance(total_norm, DTensor)
    # The products of a layer are summed in another order, in float32.
    assert abs(total_norm.full_tensor().item() / expected - 1) < 1e-5
    assert expected > 0.1
    print("training")


class Strange(Placement):
    """A placement of an unknown class."""


def check_refused(mesh: DeviceMesh) -> None:
    """Lists that the library cannot handle raise on every rank before any rank communicates."""
    other = DeviceMesh("cpu", list(reversed(range(mesh.size()))))
    here = DTensor.from_local(torch.ones(2), mesh, [Shard(0)], run_check=False)
    there = DTensor.from_local(torch.ones(2), other, [Shard(0)], run_check=False)
    strange = DTensor.from_local(torch.ones(2), mesh, [Shard(0)], run_check=False)
    strange._spec.placements = (Strange(),)
    refused = [(strange, "placements must be")]
    if mesh.size() > 1:
        refused.append((there, "must all be on one mesh"))
    for tensor, message in refused:
        try:
            fastclip.get_total_norm([here, tensor])
        except RuntimeError as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"no error: {message}")
    print("refused")


def check_outside() -> None:
    """A rank outside the mesh has only its plain gradients, and no rank waits for it."""
    if dist.get_world_size() < 3:
        return
    mesh = DeviceMesh("cpu", [0, 1])
    rank = dist.get_rank()
    local = torch.full((2,), rank + 1.0) if rank < 2 else torch.empty(0)
    sizes = {"shape": torch.Size([4]), "stride": (1,)}
    sharded = nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)], run_check=False, **sizes))
    plain = nn.Parameter(torch.zeros(3))

    def set_gradients() -> None:
        sharded.grad = DTensor.from_local(local.clone(), mesh, [Shard(0)], run_check=False, **sizes)
        plain.grad = torch.full((3,), 2.0)

    for clip in CLIPS[:3]:
        for beside in (False, True):
            for is_missing in (False, True):
                set_gradients()
                if is_missing:
                    sharded.grad = None
                held: Parameters = [sharded, plain] if beside else [sharded]
                if is_missing and clip is in_two_calls:
                    continue  # a list of tensors does not tell which are missing
                total_norm = clip(held, MAX_NORM, 2.0)
                value = total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm
                of_shards = 0 if is_missing or rank >= 2 else 2 * 1 + 2 * 4
                expected = math.sqrt(of_shards + beside * 3 * 4)
                assert oracle.is_norm(value.item(), expected, torch.float32), (value, expected)
                if beside and plain.grad is not None:
                    coef = oracle.clip_coef(MAX_NORM, value)
                    assert oracle.equal(plain.grad, oracle.scaled(torch.full((3,), 2.0), coef))
    set_gradients()
    clipper = fastclip.GradClipper([sharded, plain], 1.0)
    clipper.clip_()
    assert clipper.parameter_norms.shape == (2,)
    assert rank < 2 or clipper.parameter_norms[0] == 0.0
    plain.grad = torch.full((3,), math.nan)
    try:
        fastclip.clip_grad_norm_([sharded, plain], 1.0, error_if_nonfinite=True)
    except RuntimeError as error:
        assert str(error).endswith("non-finite gradients: 1 (3,)"), error
    else:
        raise AssertionError("no error for nan")
    print("outside")


def check_without_a_say(mesh: DeviceMesh) -> None:
    """A parameter without a gradient changes neither the norm nor its kind, wherever it lies."""
    size = mesh.size()
    other = init_device_mesh("cpu", (1, size))
    used = nn.Parameter(distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)]))
    elsewhere = distribute_tensor(torch.zeros(4, 2), other, [Replicate(), Shard(0)])
    beside = [
        nn.Parameter(elsewhere.clone(), requires_grad=False),
        nn.Parameter(elsewhere.clone()),
        nn.Parameter(torch.zeros(3), requires_grad=False),
        nn.Parameter(torch.zeros(3, dtype=torch.float64)),
        nn.Parameter(torch.zeros(3, device="meta"), requires_grad=False),
    ]
    for parameter in beside:
        orders: list[Parameters] = [[used, parameter], [parameter, used]]
        for held in orders:
            for clip in (by_function, one_at_a_time, by_clipper):
                used.grad = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
                total_norm = clip(held, MAX_NORM, 2.0)
                assert isinstance(total_norm, DTensor)
                assert total_norm.dtype == torch.float32
                assert oracle.is_norm(total_norm.full_tensor().item(), 8**0.5, torch.float32)
    used.grad = None
    for held in ([used, beside[1]], [used, *beside]):  # several meshes, and no gradient at all
        assert type(fastclip.clip_grad_norm_(held, MAX_NORM)) is Tensor
    max_norm = distribute_tensor(torch.tensor(MAX_NORM), mesh, [Replicate()])
    for clip in (
        lambda: fastclip.clip_grad_norm_([used], max_norm),
        lambda: fastclip.GradClipper([used], max_norm).clip_(),
    ):
        used.grad = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
        clip()
        after = fastclip.get_total_norm([used.grad])
        assert abs(full(after) / MAX_NORM - 1) < 1e-5
    print("without a say")


def full(value: Tensor) -> float:
    return (value.full_tensor() if isinstance(value, DTensor) else value).item()


def check_clipper_warning(mesh: DeviceMesh) -> None:
    """A rank without gradients does not take the others' for a sign of replaced parameters."""
    held = nn.Parameter(distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)]))
    if mesh.get_rank() != 0:
        held.grad = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)], src_data_rank=None)
    clipper = fastclip.GradClipper([held], 1.0)
    warned: list[int] = []
    for _ in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clipper.clip_()
        warned.append(sum("GradClipper" in str(warning.message) for warning in caught))
        held.grad = None
    assert warned == ([1, 0, 0] if mesh.size() == 1 else [0, 1, 0]), warned
    print("clipper's warning")


def check_named_backend(mesh: DeviceMesh) -> None:
    """A backend that takes no DTensors refuses them, also those that have no gradient yet."""
    parameter = nn.Parameter(DTensor.from_local(torch.ones(2), mesh, [Shard(0)], run_check=False))
    plain = nn.Parameter(torch.zeros(2))
    plain.grad = torch.tensor([3.0, 4.0])
    # Nobody waits for a clamp, nor for a scale by a norm that is known.
    fastclip.clip_grad_value_([parameter, plain], 3.5, backend="native")
    fastclip.clip_grads_with_norm_([parameter, plain], 1.0, torch.tensor(2.0), backend="native")
    assert oracle.equal(plain.grad, oracle.scaled(torch.tensor([3.0, 3.5]), 0.49999974966049194))
    for grad in (None, parameter.detach().clone()):
        parameter.grad = grad
        for call in (
            lambda: fastclip.clip_grad_norm_([parameter], 1.0, backend="native"),
            lambda: fastclip.GradClipper([parameter], 1.0, backend="native").clip_(),
        ):
            try:
                call()
            except RuntimeError as error:
                assert "a DTensor" in str(error), error
                assert "Dispatch" not in str(error), error
            else:
                raise AssertionError("the native backend took a DTensor")
    frozen = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    plain = nn.Parameter(torch.zeros(2))
    plain.grad = torch.tensor([3.0, 4.0])
    norm = fastclip.clip_grad_norm_([frozen, plain], 1.0, backend="native")
    assert norm.item() == 5.0
    print("named backend")


def check_known_values(rank: int, known: dict[str, Case]) -> None:
    """Two lists whose norms were once wrong without an error, with their values written out."""
    if dist.get_world_size() == 4:
        held = known["fsdp2 + tp on 2 x 2"].parameters()[:1]
        [grad] = grads_of(held)
        row = local_of(grad)
        assert row.shape == (1, 4)
        row.fill_(rank + 1.0)
        norm = fastclip.clip_grad_norm_(held, 1.0)
        assert isinstance(norm, DTensor)
        assert round(norm.full_tensor().item(), 3) == 10.954
    if dist.get_world_size() == 2:
        mesh = init_device_mesh("cpu", (2,))
        ones = DTensor.from_local(torch.ones(2), mesh, [Shard(0)], run_check=False)
        held = [nn.Parameter(ones), nn.Parameter(torch.zeros(4))]
        held[0].grad = ones.clone()
        held[1].grad = torch.full((4,), 10.0 if rank == 0 else 1.0)
        norm = fastclip.clip_grad_norm_(held, 1e9)
        assert type(norm) is Tensor
        assert norm.item() == torch.tensor(4 * 1.0 + (400.0 + 4.0) / 2).sqrt().item()
    print("known values")


def main() -> None:
    rank, world_size, store_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "GradClipper: none of its .* has a gradient here")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store_file}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    line = init_device_mesh("cpu", (world_size,))
    known = cases()
    check_known_values(rank, known)
    check_partial(line)
    check_refused(line)
    check_named_backend(line)
    check_outside()
    check_without_a_say(line)
    check_clipper_warning(line)
    check_training()
    check_operations(line)
    for name, case in known.items():
        if case.ranks == world_size:
            check_case(name, case)
            check_scales(case)
            check_sums(case)
            if name in ("fsdp2 on 2", "fsdp2 on 3", "fsdp2 + tp on 2 x 2"):
                check_case(f"{name}, with plain tensors", with_plain(case))
                check_scales(with_plain(case))
                check_sums(with_plain(case))
    dist.barrier()  # nobody closes a connection that another rank still reads
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
