"""The clips of torchtitan, verl and accelerate, from their packages, over the patch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from samples import parameters
from torch import Tensor

import fastclip

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own


def module_of(name: str, package: str) -> object:
    return pytest.importorskip(name, reason=f"needs {package}", exc_type=ImportError)


def torchtitan(held: list[Tensor], max_norm: float) -> Tensor:
    utils = module_of("torchtitan.distributed.utils", "torchtitan")
    return utils.clip_grad_norm_(held, max_norm)  # pyright: ignore


def verl(held: list[Tensor], max_norm: float) -> Tensor:
    utils = module_of("verl.utils.fsdp_utils", "verl")
    patch = pytest.MonkeyPatch()
    patch.setattr(utils, "get_device_id", lambda: "cpu")
    try:
        return utils.fsdp2_clip_grad_norm_(held, max_norm)  # pyright: ignore
    finally:
        patch.undo()


def accelerate(held: list[Tensor], max_norm: float) -> Tensor:
    module_of("accelerate", "accelerate")
    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    return accelerator.clip_grad_norm_(held, max_norm)


Clip = Callable[[list[Tensor], float], Tensor]
CLIPS: tuple[Clip, ...] = (torchtitan, verl, accelerate)


def gradients() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator).to(torch.bfloat16) for n in (1, 33, 5000)]


@pytest.fixture
def patched() -> Iterator[None]:
    with fastclip.patch_torch():
        yield


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("max_norm", (0.5, 1e6))
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.__name__)
def test_a_trainers_own_clip(clip: Clip, max_norm: float) -> None:
    held = parameters(gradients())
    norm = clip(held, max_norm)
    # The float32 norm of 16-bit gradients says that fastclip's functions ran.
    assert norm.dtype == torch.float32
    wanted = torch.cat([grad.double() for grad in gradients()]).norm().item()
    assert norm.item() == pytest.approx(wanted, rel=2.0**-22)
    coefficient = min(1.0, max_norm / (wanted + 1e-6))
    for parameter, grad in zip(held, gradients(), strict=True):
        torch.testing.assert_close(parameter.grad, (grad.float() * coefficient).bfloat16())


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.__name__)
def test_without_the_patch_torch_clips(clip: Clip) -> None:
    assert clip(parameters(gradients()), 0.5).dtype == torch.bfloat16


@pytest.mark.usefixtures("patched")
def test_accelerates_clip_by_value() -> None:
    module_of("accelerate", "accelerate")
    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    held = parameters([torch.tensor([3.0, -0.5, -7.0, math.nan])])
    accelerator.clip_grad_value_(held, 1.0)
    wanted = torch.tensor([1.0, -0.5, -1.0, math.nan])
    torch.testing.assert_close(held[0].grad, wanted, equal_nan=True)
