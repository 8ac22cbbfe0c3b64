"""Lightning: a callback that clips with fastclip, and logs the norm and how often it clipped."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
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
        norm_name: under which the norm before clipping is logged at each step; None does not.
        ratio_name: under which the share of clipped steps so far is logged; None does not.

    Attributes:
        total_norm: the norm before clipping at the last step, 0-dim, on the gradients' device; None
            before the first, and where the algorithm is "value".

    Nothing waits for a GPU: what is logged are tensors, and Lightning reads them when it writes.
    """

    def __init__(
        self, norm_name: str | None = "grad_norm", ratio_name: str | None = "clip_ratio"
    ) -> None:
        self.norm_name = norm_name
        self.ratio_name = ratio_name
        self.total_norm: Tensor | None = None
        self._precision: Precision | None = None
        self._steps = 0
        self._clipped: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the clips in the place of the precision plugin's."""
        if self._precision is not None:
            return
        precision = self._precision = trainer.precision_plugin
        for name in _METHODS:
            setattr(precision, name, getattr(self, f"_{name}"))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the plugin its own clips back."""
        if self._precision is not None:
            for name in _METHODS:
                delattr(self._precision, name)  # its class has them
        self._precision = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: object, **__: object
    ) -> None:
        """Log what the step's clip found."""
        if self.total_norm is None or self._clipped is None:
            return
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
        precision = self._held()
        # Lightning unscales what does not unscale itself, before it clips.
        unscales_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
        scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
        if unscales_itself and scaler is not None:
            scaler.unscale_(optimizer)
        Precision.clip_gradients(precision, optimizer, clip_val, gradient_clip_algorithm)

    def _clip_grad_by_norm(self, optimizer: Optimizer, clip_val: float) -> None:
        parameters = list(self._held().main_params(optimizer))
        total_norm = self.total_norm = fastclip.clip_grad_norm_(parameters, clip_val)
        is_clipped = (total_norm > clip_val).to(torch.float32)
        self._clipped = is_clipped if self._clipped is None else self._clipped + is_clipped
        self._steps += 1

    def _clip_grad_by_value(self, optimizer: Optimizer, clip_val: float) -> None:
        fastclip.clip_grad_value_(list(self._held().main_params(optimizer)), clip_val)

    def _held(self) -> Precision:
        if self._precision is None:
            raise RuntimeError("GradClipCallback: clips between setup and teardown alone")
        return self._precision
