"""Run programs with torch's own clips in the place of fastclip's: what is their output then?

``python tests/support/stock_fastclip.py PROGRAM...`` prints a line with each program's path, which
begins with "== ", before the program's own lines. It never imports fastclip.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import utils


class GradClipper:
    """What ``fastclip.GradClipper`` does, in torch's words."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        max_norm: float,
        error_if_nonfinite: bool = False,
    ) -> None:
        self._named = dict(parameters)
        self.names = list(self._named)
        self._max_norm = max_norm
        self._error_if_nonfinite = error_if_nonfinite
        self.parameter_norms = torch.zeros(0)

    def clip_(self) -> Tensor:
        grads = [p.grad for p in self._named.values() if p.grad is not None]
        if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
            self._look(grads)
        return utils.clip_grad_norm_(
            self._named.values(), self._max_norm, error_if_nonfinite=self._error_if_nonfinite
        )

    def state_dict(self) -> dict[str, float]:
        return {"max_norm": self._max_norm}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._max_norm = state["max_norm"]

    def _look(self, grads: list[Tensor]) -> None:
        self.parameter_norms = torch.stack([g.norm() for g in grads])
        bad = [
            f"{name} {tuple(p.shape)}"
            for name, p in self._named.items()
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        if bad and self._error_if_nonfinite:
            raise RuntimeError(f"...; non-finite gradients: {', '.join(bad)}")


class StepClip:
    """What ``fastclip.clip_on_step`` returns, in torch's words."""

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        self._max_norm = max_norm
        self._hook = optimizer.register_step_pre_hook(self._clip)

    def _clip(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.total_norm = utils.clip_grad_norm_(held, self._max_norm)

    def remove(self) -> None:
        self._hook.remove()


def main() -> None:
    stock = ModuleType("fastclip")
    stock.__dict__.update(
        GradClipper=GradClipper,
        clip_grad_norm_=utils.clip_grad_norm_,
        # torch multiplies DTensors of several meshes only one by one.
        clip_grads_with_norm_=partial(utils.clip_grads_with_norm_, foreach=False),
        clip_on_step=StepClip,
        get_total_norm=utils.get_total_norm,
        patch_torch=lambda: None,
    )
    sys.modules["fastclip"] = stock
    for program in sys.argv[1:]:
        print(f"== {program}")
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
