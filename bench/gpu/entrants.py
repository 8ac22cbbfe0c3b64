"""What is timed on a device, fastclip's forms and those of others, and why the rest is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

import fastclip
from bench.core.gradients import EPS, Gradients, list_call
from bench.core.timing import Clip
from bench.model.roofline import STOCK_PASSES, passes
from fastclip.backends.clip_mode import MODES

STOCK, APEX, TRANSFORMER_ENGINE = "stock", "apex", "TransformerEngine"
BACKENDS = ("native", "triton")
CLIPPER = "GradClipper"

IMPORT_ERRORS = (ImportError, AttributeError, OSError, RuntimeError, AssertionError)
"""What packages raise at import that are not there, or were built for another torch or CUDA."""

READS_BACK = "it reads a value back to the host"


@dataclass(frozen=True)
class Entrant:
    """A way to clip.

    Attributes:
        prepare: returns the call that clips these gradients at this threshold.
        is_ours: whether fastclip's promise of accuracy holds for it.
        form: what fastclip's GPU clips are to take.
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
class Entrants:
    """The entrants that can run, and why the others cannot, by name."""

    present: list[Entrant]
    absent: dict[str, str]


def find(device_type: str) -> Entrants:
    """Return all that can clip on this device; the rest by name, with the reason."""
    found = Entrants([Entrant(STOCK, _on_list(_stock))], {})
    report = fastclip.backend_report(device_type)
    for backend in BACKENDS:
        reasons = report.get(backend, [f"fastclip {fastclip.__version__} has no such backend"])
        if (backend, device_type) == ("triton", "cpu"):
            reasons = [*reasons, "only Triton's interpreter runs its kernels on the CPU"]
        if reasons:
            found.absent[f"fastclip {backend}"] = "; ".join(reasons)
        else:
            found.present.extend(_forms(backend))
    for name, load in ((APEX, _apex), (TRANSFORMER_ENGINE, _transformer_engine)):
        try:
            found.present.append(load())
        except IMPORT_ERRORS as error:
            found.absent[name] = f"{type(error).__name__}: {error}"
    return found


def form_name(backend: str, form: str) -> str:
    """Return the name of a backend's list call in one form."""
    return f"{backend} {form}"


def _forms(backend: str) -> list[Entrant]:
    def prepare_list(gradients: Gradients, max_norm: float) -> Clip:
        return list_call(gradients, max_norm, backend)

    def prepare_clipper(gradients: Gradients, max_norm: float) -> Clip:
        return fastclip.GradClipper(gradients.parameters, max_norm, backend=backend).clip_

    ours = partial(Entrant, is_ours=True, always_writes=False)
    lists = [ours(form_name(backend, form), prepare_list, form=form) for form in MODES]
    return [*lists, ours(f"{backend} {CLIPPER}", prepare_clipper)]


def _on_list(
    clip: Callable[[Sequence[Tensor], float], Tensor],
) -> Callable[[Gradients, float], Clip]:
    return lambda gradients, max_norm: partial(clip, gradients.parameters, max_norm)


def _stock(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)


def _apex() -> Entrant:
    clip = import_module("apex.contrib.clip_grad").clip_grad_norm_
    # Without its kernels apex calls torch, and does not say so.
    import_module("amp_C")
    return Entrant(APEX, _on_list(clip), not_captured=READS_BACK)


def _transformer_engine() -> Entrant:
    """Put its norm and its scale together, as Megatron does: the package has no clip."""
    module = import_module("transformer_engine.pytorch.optimizers")
    apply = module.multi_tensor_applier
    norm, scale = module.multi_tensor_l2norm, module.multi_tensor_scale
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
