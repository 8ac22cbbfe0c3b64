"""Lightning, end to end on the CPU: training with fastclip equals training without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import fastclip

pytest.importorskip("lightning", reason="needs lightning")

import lightning
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision, Precision

from fastclip.integrations.lightning import GradClipCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own
TOLERANCE = 1e-5
"""Relative: stock's float32 norm and ours round differently, and 20 steps carry it on."""


class Model(lightning.LightningModule):
    def __init__(
        self, kind: type[torch.optim.Optimizer] = torch.optim.SGD, **options: object
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        )
        self.kind, self.options = kind, options
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self.weights: list[float] = []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        (inputs,) = batch
        loss = (self.layers(inputs) - inputs.sum(1, keepdim=True) * 10).square().mean()
        self.losses.append(loss.item())
        self.weights.append(sum(p.double().sum().item() for p in self.parameters()))
        return loss

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        grads = [p.grad.float() for p in self.parameters() if p.grad is not None]
        if grads:
            self.gradient_norms.append(torch.cat([g.flatten() for g in grads]).norm().item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.kind(self.parameters(), lr=0.05, **self.options)  # pyright: ignore


def batches() -> Iterator[torch.utils.data.DataLoader]:
    generator = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(80, 8, generator=generator))
    return torch.utils.data.DataLoader(data, batch_size=4)  # pyright: ignore


def fit(model: Model, **options: object) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,  # pyright: ignore
    )
    trainer.fit(model, batches())
    return trainer


@contextmanager
def counted() -> Iterator[list[str]]:
    """Record the calls of fastclip's functions, by the ranges that a profiler sees."""
    calls: list[str] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield calls
    calls += [e.name for e in profile.events() or () if e.name.startswith("fastclip::")]


@pytest.mark.parametrize("by", ("norm", "value"))
@pytest.mark.parametrize("how", ("patch", "callback"))
@pytest.mark.parametrize("precision", ("32-true", "bf16-mixed", "64-true"))
def test_losses_are_those_of_stock(by: str, how: str, precision: str) -> None:
    clip = {
        "gradient_clip_val": 0.5,
        "gradient_clip_algorithm": by,
        "precision": precision,
    }
    stock = Model()
    fit(stock, **clip)
    ours = Model()
    with counted() as calls:
        if how == "patch":
            with fastclip.patch_torch():
                fit(ours, **clip)
        else:
            fit(ours, callbacks=[GradClipCallback()], **clip)
    assert len(calls) == 20, "fastclip did not clip"
    assert len(ours.losses) == 20
    assert ours.losses == pytest.approx(stock.losses, rel=TOLERANCE)
    unclipped = Model()
    fit(unclipped, precision=precision)
    assert ours.losses != pytest.approx(unclipped.losses, rel=0.01), "nothing was clipped"


def test_the_callback_logs_the_norm_and_the_share_of_clipped_steps() -> None:
    logged: list[tuple[float, float]] = []

    class Reads(lightning.Callback):
        def on_train_batch_end(
            self,
            trainer: lightning.Trainer,
            pl_module: lightning.LightningModule,  # noqa: ARG002
            *_: object,
            **__: object,
        ) -> None:
            found = trainer.callback_metrics
            logged.append((found["grad_norm"].item(), found["clip_ratio"].item()))

    free = Model()
    fit(free)
    threshold = sorted(free.gradient_norms)[len(free.gradient_norms) // 2]
    clip = GradClipCallback()
    fit(Model(), gradient_clip_val=threshold, callbacks=[clip, Reads()])
    norms = [norm for norm, _ in logged]
    assert norms[0] == pytest.approx(free.gradient_norms[0], rel=TOLERANCE)
    shares = [sum(n > threshold for n in norms[: i + 1]) / (i + 1) for i in range(len(norms))]
    assert [ratio for _, ratio in logged] == pytest.approx(shares)
    assert 0 < shares[-1] < 1
    assert clip.total_norm is not None and clip.total_norm.item() == norms[-1]


@pytest.mark.parametrize("has_inf", (False, True))
def test_amp_with_a_fused_optimizer(has_inf: bool) -> None:
    def trained(fused: bool, **options: object) -> Model:
        model = Model(torch.optim.AdamW, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15 if has_inf else 2.0**7)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        fit(model, gradient_clip_val=0.5, plugins=[plugin], **options)
        return model

    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        trained(True)
    stock = trained(False)
    ours = trained(True, callbacks=[GradClipCallback()])
    assert ours.losses == pytest.approx(stock.losses, rel=1e-3)  # fused Adam rounds differently
    skipped = [a == b for a, b in zip(ours.weights, ours.weights[1:], strict=False)]
    assert any(skipped) == has_inf and not all(skipped)


def test_the_plugin_gets_its_own_clips_back() -> None:
    trainer = fit(Model(), gradient_clip_val=0.5, callbacks=[GradClipCallback()])
    assert "clip_gradients" not in vars(trainer.precision_plugin)
    assert "clip_grad_by_norm" not in vars(trainer.precision_plugin)


@pytest.mark.parametrize("by", ("norm", "value"))
def test_fabric(by: str) -> None:
    def clipped() -> list[Tensor]:
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        model = Model()
        wrapped, optimizer = fabric.setup(model.layers, torch.optim.SGD(model.parameters(), 0.1))
        fabric.backward(wrapped(torch.ones(4, 8)).square().sum() * 100)
        if by == "norm":
            fabric.clip_gradients(wrapped, optimizer, max_norm=0.5)
        else:
            fabric.clip_gradients(wrapped, optimizer, clip_val=0.01)
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    stock = clipped()
    with counted() as calls, fastclip.patch_torch():
        ours = clipped()
    assert len(calls) == 1, "fastclip did not clip"
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=0)


class Manual(Model):
    def __init__(self, **options: object) -> None:
        super().__init__(torch.optim.SGD, **options)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor]) -> Tensor:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        loss = super().training_step(batch)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 0.5, "norm")  # pyright: ignore
        optimizer.step()
        return loss


def test_manual_optimization_with_a_fused_optimizer() -> None:
    def trained(model: Model, **options: object) -> list[float]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
        fit(model, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], **options)
        return model.losses

    automatic = trained(Model(), gradient_clip_val=0.5)
    ours = trained(Manual(fused=True), callbacks=[GradClipCallback()])
    assert ours == pytest.approx(automatic, rel=1e-3)


def test_a_callback_serves_another_trainer_after_an_exception() -> None:
    class Fails(Model):
        def training_step(self, batch: list[Tensor]) -> Tensor:
            if len(self.losses) == 3:
                raise ZeroDivisionError
            return super().training_step(batch)

    clip = GradClipCallback()
    with pytest.raises(ZeroDivisionError):
        fit(Fails(), gradient_clip_val=0.5, callbacks=[clip])
    with counted() as calls:
        fit(Model(), gradient_clip_val=0.5, callbacks=[clip])
    assert len(calls) == 20


def test_plugins_that_clip_by_themselves_and_second_callbacks_are_refused() -> None:
    class Own(Precision):
        def clip_grad_by_norm(self, *_: object) -> None: ...  # pyright: ignore

    with pytest.raises(RuntimeError, match=r"got Own, which has clips of its own"):
        fit(Model(), plugins=[Own()], callbacks=[GradClipCallback()])
    with pytest.raises(RuntimeError, match="another does already"):
        fit(Model(), callbacks=[GradClipCallback(), GradClipCallback()])
