"""Clips of sharded lists, and what each of them must hold to on every rank."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracle
import torch
import torch.distributed as dist
from sharded_lists import Case, Parameters, local_of, whole_of
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

import fastclip

NORM_TYPES = (2.0, 1.0, 3.0, math.inf)
TWO_LEVEL_NORM_TYPES = (0.0, -1.0, -math.inf)
MAX_NORM = 0.5

Clip = Callable[[Parameters, float, float], Tensor]


def by_function(held: Parameters, max_norm: float, norm_type: float) -> Tensor:
    return fastclip.clip_grad_norm_(held, max_norm, norm_type)


def one_at_a_time(held: Parameters, max_norm: float, norm_type: float) -> Tensor:
    return fastclip.clip_grad_norm_(held, max_norm, norm_type, foreach=False)


def in_two_calls(held: Parameters, max_norm: float, norm_type: float) -> Tensor:
    total_norm = fastclip.get_total_norm([p.grad for p in held if p.grad is not None], norm_type)
    fastclip.clip_grads_with_norm_(held, max_norm, total_norm)
    return total_norm


def by_clipper(held: Parameters, max_norm: float, norm_type: float) -> Tensor:
    clipper = fastclip.GradClipper(held, max_norm, norm_type)
    expected = whole_of(held).norms(norm_type)
    total_norm = clipper.clip_()
    norms = clipper.parameter_norms
    assert norms.shape == (len(held),)
    assert not isinstance(norms, DTensor)
    for value, right in zip(norms.tolist(), expected, strict=True):
        assert oracle.is_norm(value, right, norms.dtype), (norms, expected, norm_type)
    check_same_bits(norms)
    return total_norm


CLIPS = (by_function, one_at_a_time, in_two_calls, by_clipper)


def check_same_bits(value: Tensor) -> None:
    """Check that all ranks have the same bits."""
    ranks: list[bytes] = [b""] * dist.get_world_size()
    dist.all_gather_object(ranks, value.numpy().tobytes())
    assert len(set(ranks)) == 1, ranks


def check_clip(name: str, held: Parameters, clip: Clip, norm_type: float) -> None:
    """Check a clip of what the parameters hold against float64 on the whole gradients."""
    expected = whole_of(held).norm(norm_type)
    before = [None if p.grad is None else local_of(p.grad).clone() for p in held]
    versions = [None if p.grad is None else p.grad._version for p in held]
    total_norm = clip(held, MAX_NORM, norm_type)
    what = (name, clip.__name__, norm_type)
    value = check_result(held, total_norm)
    assert oracle.is_norm(value.item(), expected, torch.float32), (*what, value, expected)
    check_same_bits(value)
    coef = oracle.clip_coef(MAX_NORM, value)
    for p, old, version in zip(held, before, versions, strict=True):
        if p.grad is None:
            assert old is None
            continue
        assert old is not None
        assert version is not None
        assert oracle.equal(local_of(p.grad), oracle.scaled(old, coef)), what
        assert p.grad._version > version, what


def check_result(held: Parameters, total_norm: Tensor) -> Tensor:
    """Check the kind of a norm, and return its value as a plain tensor."""
    if not all(isinstance(grad, DTensor) for grad in grads_of(held)):
        assert not isinstance(total_norm, DTensor)
        return total_norm
    assert isinstance(total_norm, DTensor)
    assert isinstance(held[0], DTensor)
    assert total_norm.device_mesh == held[0].device_mesh
    assert all(isinstance(placement, Replicate) for placement in total_norm.placements)
    return total_norm.full_tensor()


def check_case(name: str, case: Case) -> None:
    for clip in CLIPS:
        for norm_type in (*NORM_TYPES, *TWO_LEVEL_NORM_TYPES):
            if norm_type >= 0 or whole_of(case.parameters()).has_elements():
                check_clip(name, case.parameters(), clip, norm_type)
    check_unclipped(case)
    check_nonfinite(case)
    check_gradient_missing(name, case)
    check_values(case)
    check_repeated(case)
    print("case", name)


def check_unclipped(case: Case) -> None:
    held = case.parameters()
    before = [(local_of(g).clone(), g._version) for g in grads_of(held)]
    fastclip.clip_grad_norm_(held, 1e9)
    for grad, (old, version) in zip(grads_of(held), before, strict=True):
        assert torch.equal(local_of(grad), old)
        assert grad._version > version


def check_nonfinite(case: Case) -> None:
    """A NaN on any rank raises on all of them; all name the parameter, and none writes."""
    clips = (
        lambda held: fastclip.clip_grad_norm_(held, 1.0, error_if_nonfinite=True),
        lambda held: fastclip.get_total_norm(grads_of(held), error_if_nonfinite=True),
        lambda held: fastclip.GradClipper(held, 1.0, error_if_nonfinite=True).clip_(),
    )
    for faulty in range(dist.get_world_size()):
        for clip in clips:
            held = case.parameters()
            mine = [i for i, g in enumerate(grads_of(held)) if local_of(g).numel() > 0]
            if dist.get_rank() == faulty and mine:
                local_of(grads_of(held)[mine[0]]).view(-1)[0] = math.nan
            norms = whole_of(held).norms(2.0)
            bad = [i for i, norm in enumerate(norms) if math.isnan(norm)]
            before = [local_of(g).clone() for g in grads_of(held)]
            try:
                clip(held)
            except RuntimeError as error:
                labels = ", ".join(f"{i} {tuple(held[i].shape)}" for i in bad)
                assert bad, error
                assert str(error).endswith(f"non-finite gradients: {labels}"), (error, bad)
            else:
                assert not bad, f"no error for nan on rank {faulty}"
            if bad:
                for grad, old in zip(grads_of(held), before, strict=True):
                    assert oracle.equal(local_of(grad), oracle.values_of(old))


def check_gradient_missing(name: str, case: Case) -> None:
    """A rank on which one gradient, or every one, is None takes part all the same."""
    for missing in range(dist.get_world_size()):
        for clip in (by_function, one_at_a_time, by_clipper):
            for norm_type in (2.0, math.inf, 0.0, -1.0):
                held = case.parameters()
                if dist.get_rank() == missing:
                    held[-1].grad = None
                if norm_type < 0 and not whole_of(held).has_elements():
                    continue  # the least of nothing is inf; without DTensors torch says 0
                check_clip(f"{name}, one gradient missing", held, clip, norm_type)
            held = case.parameters()
            if dist.get_rank() == missing:
                for parameter in held:
                    parameter.grad = None
            check_clip(f"{name}, no gradient", held, clip, 2.0)


def check_repeated(case: Case) -> None:
    """A parameter given twice counts once and is scaled once."""
    held = case.parameters()
    for clip in (by_function, one_at_a_time):
        expected = whole_of(case.parameters()).norm(2.0)
        before = local_of(grads_of(held)[0]).clone()
        value = check_result(held, clip([*held, held[0]], MAX_NORM, 2.0))
        assert oracle.is_norm(value.item(), expected, torch.float32)
        coef = oracle.clip_coef(MAX_NORM, value)
        assert oracle.equal(local_of(grads_of(held)[0]), oracle.scaled(before, coef))
    clipper = fastclip.GradClipper([*case.parameters(), held[0]], MAX_NORM)
    assert oracle.is_norm(check_result(held, clipper.clip_()).item(), expected, torch.float32)
    assert clipper.parameter_norms[-1] == clipper.parameter_norms[0]


def check_values(case: Case) -> None:
    held = case.parameters()
    before = [local_of(g).clone() for g in grads_of(held)]
    fastclip.clip_grad_value_(held, 1.5)
    for grad, old in zip(grads_of(held), before, strict=True):
        assert oracle.equal(local_of(grad), oracle.clamped(old, 1.5))


def grads_of(held: Parameters) -> list[Tensor]:
    return [p.grad for p in held if p.grad is not None]
