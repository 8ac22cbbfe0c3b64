"""Lightning: a callback that clips with fastclip, and logs the norm and how often it clipped."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer

import fastclip

__all__ = ["GradClipCallback"]

_METHODS = ("clip_gradients", "clip_grad_by_norm", "clip_grad_by_value")


class GradClipCallback(Callback):
    """Let a Trainer clip with fastclip, as its own ``gradient_clip_val`` says.

    ``Trainer(gradient_clip_val=1.0, callbacks=[GradClipCallback()])`` clips as before, by norm or,
    with ``gradient_clip_algorithm="value"``, by value. Without ``patch_torch`` nothing else of the
    process changes. With a GradScaler, optimizers that unscale by themselves (``fused=True``) may
    be clipped too, which Lightning refuses: their gradients are unscaled before.

    Args:
        norm_name: under which the norm before clipping is logged at each clip; None does not.
        ratio_name: under which the share of clipped steps so far is logged; None does not.

    Attributes:
        total_norm: the norm before clipping at the last step, 0-dim, on the gradients' device; None
            before the first, and where the algorithm is "value".

    Nothing waits for a GPU: what is logged are tensors, and Lightning reads them when it writes.

    ``Trainer.fit`` raises TypeError for a Trainer of the package ``pytorch_lightning``, and
    RuntimeError where another callback of this class clips already, or where the precision plugin
    has clips of its own, as those of FSDP and DeepSpeed have.
    """

    def __init__(
        self, norm_name: str | None = "grad_norm", ratio_name: str | None = "clip_ratio"
    ) -> None:
        self.norm_name = norm_name
        self.ratio_name = ratio_name
        self.total_norm: Tensor | None = None
        self._precision: Precision | None = None
        self._forget()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the clips in the place of the precision plugin's."""
        if not isinstance(trainer, Trainer):
            raise TypeError(
                "GradClipCallback: trainer must be one of lightning.pytorch "
                f"(got {type(trainer).__module__}.{type(trainer).__name__})"
            )
        precision = trainer.precision_plugin
        if self._precision is precision:
            return
        _check(precision)
        self._give_back()
        self._forget()
        self._precision = precision
        for name in _METHODS:
            setattr(precision, name, getattr(self, f"_{name}"))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the plugin its own clips back."""
        self._give_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the plugin its own clips back: Lightning does not call ``teardown``."""
        self._give_back()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: object, **__: object
    ) -> None:
        """Log what the step's clip found."""
        if not self._has_news or self.total_norm is None or self._clipped is None:
            return
        self._has_news = False
        if self.norm_name is not None:
            pl_module.log(self.norm_name, self.total_norm)
        if self.ratio_name is not None:
            pl_module.log(self.ratio_name, self._clipped / self._steps)

    def _clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        if clip_val <= 0:
            return
        # In manual optimization it is Lightning's wrapper; the scaler knows the optimizer inside.
        if isinstance(optimizer, LightningOptimizer):
            optimizer = cast("Optimizer", optimizer.optimizer)
        precision = self._held()
        scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
        if scaler is not None and _is_still_scaled(scaler, optimizer):
            scaler.unscale_(optimizer)
        Precision.clip_gradients(precision, optimizer, clip_val, gradient_clip_algorithm)

    def _clip_grad_by_norm(self, optimizer: Optimizer, clip_val: float) -> None:
        parameters = list(self._held().main_params(optimizer))
        total_norm = self.total_norm = fastclip.clip_grad_norm_(parameters, clip_val)
        is_clipped = (total_norm > clip_val).to(torch.float32)
        self._clipped = is_clipped if self._clipped is None else self._clipped + is_clipped
        self._steps += 1
        self._has_news = True

    def _clip_grad_by_value(self, optimizer: Optimizer, clip_val: float) -> None:
        fastclip.clip_grad_value_(list(self._held().main_params(optimizer)), clip_val)

    def _held(self) -> Precision:
        if self._precision is None:
            raise RuntimeError("GradClipCallback: it clips only between setup and teardown")
        return self._precision

    def _give_back(self) -> None:
        if self._precision is not None:
            for name in _METHODS:
                vars(self._precision).pop(name, None)  # its class has them
        self._precision = None

    def _forget(self) -> None:
        self.total_norm = None
        self._steps = 0
        self._clipped: Tensor | None = None
        self._has_news = False


def _check(precision: Precision) -> None:
    """Raise RuntimeError for a plugin whose clips are not those of Lightning's base classes."""
    if any(name in vars(precision) for name in _METHODS):
        raise RuntimeError(
            "GradClipCallback: one callback must clip for a Trainer (another does already)"
        )
    bases = (Precision, MixedPrecision)
    kind = type(precision)
    if not all(any(getattr(kind, m) is getattr(b, m) for b in bases) for m in _METHODS):
        raise RuntimeError(
            "GradClipCallback: the precision plugin must clip as Lightning's own do "
            f"(got {kind.__name__}, which has clips of its own)"
        )


def _is_still_scaled(scaler: GradScaler, optimizer: Optimizer) -> bool:
    """Return whether an optimizer has gradients that nobody has unscaled in this step."""
    state = scaler._per_optimizer_states[id(optimizer)]
    has_gradients = any(p.grad is not None for g in optimizer.param_groups for p in g["params"])
    # Without a first scaled loss there is no scale yet, and nothing to unscale.
    return has_gradients and scaler._scale is not None and state["stage"] is OptState.READY
