"""Who is timed on a device and who is not: fastclip's forms, stock, apex, TransformerEngine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

import fastclip
from bench.core.gradients import EPS, Gradients
from bench.cpu.measure import list_call
from bench.gpu.clip_form import FORMS, why_no_choice
from bench.gpu.devices import Clip
from bench.model.roofline import STOCK_PASSES, passes

STOCK, APEX, TRANSFORMER_ENGINE = "stock", "apex", "TransformerEngine"
BACKENDS = ("native", "triton")
CLIPPER = "GradClipper"

IMPORT_ERRORS = (ImportError, AttributeError, OSError, RuntimeError, AssertionError)
"""What packages raise at import that are not there, or were built for another torch or CUDA."""

READS_BACK = "it reads a value back to the host"

ClipList = Callable[[Sequence[Tensor], float], Tensor]


@dataclass(frozen=True)
class Entrant:
    """Someone who clips.

    Attributes:
        prepare: returns the call that clips these gradients at this threshold.
        is_ours: whether fastclip's promise of accuracy holds for it.
        form: what fastclip's CUDA clips are to take.
        always_writes: whether gradients are written when nothing is clipped.
        not_captured: why it is not tried in a CUDA graph.
    """

    name: str
    prepare: Callable[[Gradients, float], Clip]
    is_ours: bool = False
    form: str = "auto"
    always_writes: bool = True
    not_captured: str | None = None

    def passes(self, clipped: bool) -> tuple[int, int]:
        """Return how often every gradient byte is read and written."""
        return STOCK_PASSES if self.always_writes else passes(clipped)


@dataclass(frozen=True)
class Field:
    """Who takes part, and why the others do not."""

    entrants: list[Entrant]
    absent: dict[str, str]


def find(device_type: str) -> Field:
    """Return all who can clip on this device; the rest by name, with the reason."""
    field = Field([Entrant(STOCK, _on_list(_stock))], {})
    report = fastclip.backend_report(device_type)
    for backend in BACKENDS:
        reasons = report.get(backend, [f"fastclip {fastclip.__version__} has no such backend"])
        if (backend, device_type) == ("triton", "cpu"):
            reasons = [*reasons, "only Triton's interpreter runs its kernels on the CPU"]
        if reasons:
            field.absent[f"fastclip {backend}"] = "; ".join(reasons)
        else:
            _add_backend(field, backend)
    for name, load in ((APEX, _apex), (TRANSFORMER_ENGINE, _transformer_engine)):
        try:
            field.entrants.append(load())
        except IMPORT_ERRORS as error:
            field.absent[name] = f"{type(error).__name__}: {error}"
    return field


def form_name(backend: str, form: str) -> str:
    """Return the name of a backend's list call in one form."""
    return f"{backend} {form}"


def _add_backend(field: Field, backend: str) -> None:
    ours = partial(Entrant, is_ours=True, always_writes=False)
    for form in FORMS:
        name, reason = form_name(backend, form), why_no_choice()
        if form != "auto" and reason is not None:
            field.absent[name] = reason
        else:
            field.entrants.append(ours(name, partial(_list_call, backend), form=form))
    field.entrants.append(ours(f"{backend} {CLIPPER}", partial(_clipper_call, backend)))


def _list_call(backend: str, gradients: Gradients, max_norm: float) -> Clip:
    return list_call(gradients, max_norm, backend)


def _clipper_call(backend: str, gradients: Gradients, max_norm: float) -> Clip:
    return fastclip.GradClipper(gradients.parameters, max_norm, backend=backend).clip_


def _on_list(clip: ClipList) -> Callable[[Gradients, float], Clip]:
    return lambda gradients, max_norm: partial(clip, gradients.parameters, max_norm)


def _stock(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)


def _apex() -> Entrant:
    clip = import_module("apex.contrib.clip_grad").clip_grad_norm_
    # Without its kernels apex calls torch, and does not say so.
    import_module("amp_C")
    return Entrant(APEX, _on_list(clip), not_captured=READS_BACK)


def _transformer_engine() -> Entrant:
    """Put its norm and its scale together, as Megatron does: it has no clip of its own."""
    module = import_module("transformer_engine.pytorch.optimizers")
    apply, norm, scale = (
        module.multi_tensor_applier,
        module.multi_tensor_l2norm,
        module.multi_tensor_scale,
    )
    # Newer releases take the coefficient from the GPU; others need it on the host.
    scale_by_tensor = getattr(module, "multi_tensor_scale_tensor", None)

    def clip(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        grads = [p.grad for p in parameters if p.grad is not None]
        flag = torch.zeros(1, dtype=torch.int32, device=grads[0].device)
        total_norm, _ = apply(norm, flag, [grads], False)
        clip_coef = (max_norm / (total_norm + EPS)).clamp_(max=1.0)
        if scale_by_tensor is not None:
            apply(scale_by_tensor, flag, [grads, grads], clip_coef)
        elif (factor := float(clip_coef)) < 1.0:
            apply(scale, flag, [grads, grads], factor)
        return total_norm

    on_device = scale_by_tensor is not None
    return Entrant(
        TRANSFORMER_ENGINE,
        _on_list(clip),
        always_writes=on_device,
        not_captured=None if on_device else READS_BACK,
    )
