"""Clipping at an optimizer's step, for training loops whose code has no place for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from .backends import check_backend
from .backends.request import number_of
from .clip_grad import clip_grad_norm_


class StepClip:
    """What ``clip_on_step`` returns; a context manager that stops clipping at its end.

    Attributes:
        max_norm: the largest norm that the gradients keep; may be changed between steps.
        total_norm: the norm before clipping at the last step, 0-dim; None before the first. Under
            AMP it is that of the gradients without the loss scale.
    """

    def __init__(
        self,
        max_norm: float | Tensor,
        norm_type: float,
        error_if_nonfinite: bool,
        backend: str | None,
    ) -> None:
        self.max_norm = max_norm
        self.total_norm: Tensor | None = None
        self._norm_type = norm_type
        self._error_if_nonfinite = error_if_nonfinite
        self._backend = backend
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def remove(self) -> None:
        """Stop clipping; again, it does nothing."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __enter__(self) -> StepClip:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _clip(
        self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        # The optimizer itself is the first of the arguments.
        if any(argument is not None for argument in args[1:]) or kwargs.get("closure") is not None:
            raise RuntimeError(
                "clip_on_step: step must be called without a closure, which computes gradients "
                "inside of the step, after they would have been clipped (got one)"
            )
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        max_norm = self.max_norm
        # GradScaler.step leaves an optimizer that unscales by itself the loss scale here.
        grad_scale = getattr(optimizer, "grad_scale", None)
        if "grad_scaler" in kwargs:
            raise RuntimeError(
                "clip_on_step: step must not unscale by a grad_scaler of its own (got one)"
            )
        if grad_scale is not None:
            max_norm = max_norm * grad_scale
        total_norm = clip_grad_norm_(
            parameters,
            max_norm,
            self._norm_type,
            self._error_if_nonfinite,
            backend=self._backend,
        )
        self.total_norm = total_norm if grad_scale is None else total_norm / grad_scale


def clip_on_step(
    optimizer: Optimizer,
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *,
    backend: str | None = None,
) -> StepClip:
    """Clip the gradients of an optimizer's parameters at the start of each of its steps.

    ``grad *= min(1, max_norm / (total_norm + 1e-6))``, as ``clip_grad_norm_`` over the parameters
    of all its groups. With a GradScaler the gradients are clipped at their own size: what it
    unscales before the step is clipped afterwards, and for an optimizer that unscales by itself
    (``fused=True``) the threshold is scaled instead.

    Args:
        optimizer: any of torch's optimizers; groups may be added later.
        max_norm: the largest norm that the gradients keep; a float or a 0-dim tensor, whose value
            is read at each step.
        norm_type: the p of the p-norm: any float, or "inf".
        error_if_nonfinite: raise in ``step()`` when the norm is inf or nan, before anything is
            written. Under a GradScaler leave it False: it skips such steps.
        backend: "native", "triton" or "reference" to insist on one; None takes the fastest that
            can run.

    Returns:
        A handle: ``.remove()`` stops clipping, ``.total_norm`` is the last step's norm.

    Raises:
        TypeError: ``optimizer`` is none.
        ValueError: it holds no parameters; ``max_norm`` is a tensor that is not 0-dim; or
            ``backend`` is unknown.

    ``step()`` raises a RuntimeError when it is called with a closure, and what ``clip_grad_norm_``
    raises. The hook is not part of the optimizer's state: a copy of the optimizer, or one that is
    unpickled, does not clip.

    Example:
        >>> clip = clip_on_step(optimizer, max_norm=1.0)
        >>> loss.backward()
        >>> optimizer.step()
        >>> clip.total_norm
    """
    optimizer = _unwrapped(optimizer)
    check_backend("clip_on_step", backend, None)
    if not any(group["params"] for group in optimizer.param_groups):
        count = len(optimizer.param_groups)
        raise ValueError(
            f"clip_on_step: optimizer must hold parameters (got {count} groups without any)"
        )
    if isinstance(max_norm, Tensor) and max_norm.dim() != 0:
        raise ValueError(
            f"clip_on_step: max_norm must be 0-dim (got shape {tuple(max_norm.shape)})"
        )
    if not isinstance(max_norm, Tensor):
        max_norm = number_of(max_norm)
    clip = StepClip(max_norm, number_of(norm_type), bool(error_if_nonfinite), backend)
    clip._hook = optimizer.register_step_pre_hook(clip._clip)
    return clip


def _unwrapped(optimizer: object) -> Optimizer:
    """Return torch's optimizer, also of a wrapper that holds it (accelerate's does)."""
    inner = getattr(optimizer, "optimizer", None)
    if not isinstance(inner, Optimizer):
        inner = optimizer
    if not isinstance(inner, Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(f"clip_on_step: optimizer must be a torch.optim.Optimizer (got {kind})")
    return inner
