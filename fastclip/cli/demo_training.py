"""One training run of the demo: the same weights and batches, one way to clip."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import fastclip

from .demo_model import VOCABULARY, Gpt

LEARNING_RATE = 1.0
MOMENTUM = 0.9
"""The demo uses SGD: Adam would divide by the gradient's size and hide a missing clip."""

MAX_NORM = 0.05
"""At five times this, a difference in a gradient's last bit grows to a tenth of the loss within 60
steps, so that the distance from the float64 run would say nothing about the clip."""

Clip = Callable[[list[Tensor]], Tensor | None]
"""Clips the gradients of parameters in place and returns total_norm, or None if it does nothing."""

FINAL_STEPS = 10
"""The final loss is the mean of this many: a single batch's differs by a tenth from the next."""


@dataclass
class Run:
    """What one run left behind, one entry per step.

    Attributes:
        name: how the gradients were clipped.
        loss: nats per byte; NaN from the first step at which it is not finite.
        norm: the gradients' norm before the clip, computed in float64.
        norm_error: relative difference of the returned total_norm from ``norm``; NaN without a
            clip and where ``norm`` is not finite.
        seconds: time in the clip.
    """

    name: str
    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    norm_error: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def initial_loss(self) -> float:
        """The loss of the first batch, before any step."""
        return self.loss[0]

    @property
    def final_loss(self) -> float:
        """The mean loss of the last ``FINAL_STEPS`` steps; NaN if one of them is."""
        last = self.loss[-FINAL_STEPS:]
        return sum(last) / len(last)

    @property
    def end(self) -> int | None:
        """The first step whose loss is not finite, counted from 0; None if there is none."""
        return next((i for i, loss in enumerate(self.loss) if not math.isfinite(loss)), None)

    @property
    def steps_clipped(self) -> int:
        """The number of steps whose gradients were scaled down."""
        return sum(norm + 1e-6 > MAX_NORM for norm in self.norm)

    def largest_norm_error(self) -> float:
        """Return the largest relative difference of total_norm from float64's."""
        return max((error for error in self.norm_error if math.isfinite(error)), default=math.nan)

    def largest_loss_difference(self, other: "Run") -> float:
        """Return the largest difference of the loss from another run's at the same step."""
        pairs = zip(self.loss, other.loss, strict=True)
        differences = [abs(mine - theirs) for mine, theirs in pairs]
        return math.nan if any(math.isnan(d) for d in differences) else max(differences)


@dataclass(frozen=True)
class Runs:
    """The four runs."""

    unclipped: Run
    stock: Run
    ours: Run
    yardstick: Run

    def all(self) -> tuple[Run, Run, Run, Run]:
        """Return them in the order in which they ran."""
        return self.unclipped, self.stock, self.ours, self.yardstick


def no_clip(parameters: list[Tensor]) -> None:
    """Leave the gradients as they are."""


def stock_clip(parameters: list[Tensor]) -> Tensor:
    """Clip with torch."""
    return torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)


def fastclip_with(backend: str) -> Clip:
    """Return a clip with fastclip on one backend, which runs or raises."""

    def clip(parameters: list[Tensor]) -> Tensor:
        return fastclip.clip_grad_norm_(parameters, MAX_NORM, backend=backend)

    return clip


def float64_clip(parameters: list[Tensor]) -> Tensor:
    """Clip by the formula in float64, with one rounding at the end: the yardstick."""
    total_norm = float64_norm(parameters)
    clip_coef = (MAX_NORM / (total_norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients_of(parameters):
        gradient.copy_(gradient.double() * clip_coef)
    return total_norm


def float64_norm(parameters: list[Tensor]) -> Tensor:
    """Compute the 2-norm of the gradients in float64."""
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients_of(parameters)]
    return torch.linalg.vector_norm(torch.stack(norms))


def gradients_of(parameters: list[Tensor]) -> list[Tensor]:
    """Return the gradients that are not None."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def choose_backend(device: torch.device) -> str:
    """Return the first backend that clips this model's gradients.

    Raises:
        RuntimeError: none does.
    """
    parameters = list(Gpt().to(device).parameters())
    reasons = []
    for name, unavailable in fastclip.backend_report().items():
        if unavailable:
            reasons += unavailable
            continue
        try:
            fastclip.get_total_norm(parameters, backend=name)
        except RuntimeError as error:
            reasons.append(str(error))
        else:
            return name
    raise RuntimeError(f"demo: no backend clips gradients on {device}: {'; '.join(reasons)}")


def train(
    name: str, clip: Clip, batches: Tensor, seed: int, on_step: Callable[[float], None]
) -> Run:
    """Train one model from its first weights and record every step.

    Args:
        name: how the gradients are clipped.
        clip: called between backward and the optimizer's step.
        batches: int64, shape (steps, batch, time + 1), on the device to train on.
        seed: of the weights.
        on_step: called with the loss after each step.

    Returns:
        The run. It ends early when the loss is no longer finite, because the weights are not finite
        either, and stay so.
    """
    torch.manual_seed(seed)
    model = Gpt().to(batches.device)
    parameters: list[Tensor] = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM)
    run = Run(name)
    for batch in batches:
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1)
        )
        optimizer.zero_grad()
        loss.backward()
        _clip_and_record(clip, parameters, run)
        optimizer.step()
        run.loss.append(loss.item())
        on_step(run.loss[-1])
        if not math.isfinite(run.loss[-1]):
            break
    missing = len(batches) - len(run.loss)
    for series in (run.loss, run.norm, run.norm_error):
        series.extend([math.nan] * missing)
    return run


def _clip_and_record(clip: Clip, parameters: list[Tensor], run: Run) -> None:
    """Clip once and time it; the float64 norm is taken before the clock starts."""
    norm = float64_norm(parameters).item()
    _synchronize(parameters[0].device)
    start = time.perf_counter()
    total_norm = clip(parameters)
    _synchronize(parameters[0].device)
    run.seconds.append(time.perf_counter() - start)
    run.norm.append(norm)
    if total_norm is None or not math.isfinite(norm) or norm == 0.0:
        run.norm_error.append(math.nan)
    else:
        run.norm_error.append(abs(total_norm.item() - norm) / norm)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
