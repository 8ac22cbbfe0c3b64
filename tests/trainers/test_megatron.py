"""Megatron's own clip from its package, with fastclip's functions assigned to its globals."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastclip.integrations import megatron

warnings.filterwarnings("ignore", module="megatron")
clip_grads = pytest.importorskip(
    "megatron.core.optimizer.clip_grads", reason="needs megatron-core", exc_type=ImportError
)
NAMES = ("multi_tensor_applier", "l2_norm_impl", "multi_tensor_scale_impl")


class OnTheCpu(types.ModuleType):
    """torch, except that what Megatron makes on "cuda" is on the CPU."""

    def __getattr__(self, name: str) -> object:
        found = getattr(torch, name)
        if name not in ("zeros", "tensor"):
            return found
        return lambda *args, **kwargs: found(*args, **{**kwargs, "device": "cpu"})


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (clip_grads, __import__("megatron.core.utils", fromlist=["torch"])):
        monkeypatch.setattr(module, "torch", OnTheCpu("torch"))
    for name in NAMES:
        monkeypatch.setattr(clip_grads, name, getattr(clip_grads, name))
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator) for n in (1, 33, 5000)]


def clipped(max_norm: float) -> tuple[float, list[Tensor]]:
    """Take the norm and clip as Megatron's optimizer does, with gradients beside ``.grad``."""
    held = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in gradients()]
    for parameter, grad in zip(held, gradients(), strict=True):
        parameter.decoupled_grad = grad  # pyright: ignore
    grads = [p.decoupled_grad for p in held]  # pyright: ignore
    norm = clip_grads.get_grad_norm_fp32(grads)
    clip_grads.clip_grad_by_total_norm_fp32(held, max_norm, norm, use_decoupled_grad=True)
    return norm, grads


@pytest.mark.parametrize("max_norm", (0.5, 1e6))
@pytest.mark.usefixtures("on_cpu")
def test_megatrons_clip_is_the_same(max_norm: float) -> None:
    norm, grads = clipped(max_norm)
    assert set(megatron.switch()) == set(NAMES)
    assert clip_grads.l2_norm_impl is megatron.l2_norm_impl
    our_norm, ours = clipped(max_norm)
    assert our_norm == pytest.approx(norm, rel=1e-6)
    for a, b in zip(ours, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=0)
    whole = torch.cat([grad.double() for grad in gradients()]).norm().item()
    assert our_norm == pytest.approx(whole, rel=2.0**-22)


def test_the_calling_convention_of_amp_c() -> None:
    grads = [g.to(torch.bfloat16) for g in gradients()]
    flag = torch.zeros(1, dtype=torch.int)
    apply = megatron.multi_tensor_applier
    norm, each = apply(megatron.l2_norm_impl, flag, [grads], True)  # pyright: ignore
    assert norm.shape == (1,) and norm.dtype == torch.float32 and each.shape == (3,)
    torch.testing.assert_close(each, torch.stack([g.float().norm() for g in grads]))
    norm, each = apply(megatron.l2_norm_impl, flag, [grads], False)  # pyright: ignore
    assert each.shape == (0,)
    torch.testing.assert_close(norm[0], torch.cat([g.float() for g in grads]).norm())
    targets = [torch.empty_like(g) for g in grads]
    apply(megatron.multi_tensor_scale_impl, flag, [grads, targets], 3.0)
    for grad, target in zip(grads, targets, strict=True):
        assert torch.equal(target, grad * 3)
    before = [g.clone() for g in grads]
    apply(megatron.multi_tensor_scale_tensor_impl, flag, [grads, grads], torch.tensor([0.5]))
    for grad, old in zip(grads, before, strict=True):
        assert torch.equal(grad, old * 0.5)
    apply(megatron.multi_tensor_scale_impl, flag, [grads, [g.detach() for g in grads]], 2.0)
    assert all(torch.equal(a, b) for a, b in zip(grads, before, strict=True))
    assert flag.item() == 0


def test_a_module_without_the_names_is_refused() -> None:
    with pytest.raises(ValueError, match="module math must have Megatron's global l2_norm_impl"):
        megatron.switch(__import__("math"))
