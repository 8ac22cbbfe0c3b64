"""What a training loop does between two clips, so that a call is timed as a training step meets it.

A call that only repeats finds its code, its objects and the gradients in the nearest caches, and
the processor has learnt its branches. In a training step it finds none of that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_WIDTH = 256
_LAYERS = 4
_BATCH = 32


class OtherWork:
    """A training step of another model, and then the eviction of the caches."""

    def __init__(self, evict: Callable[[], None]) -> None:
        """Build the model; ``evict`` leaves none of the data in the last cache."""
        self._evict = evict
        layers = [
            layer
            for _ in range(_LAYERS)
            for layer in (
                torch.nn.Linear(_WIDTH, _WIDTH),
                torch.nn.LayerNorm(_WIDTH),
                torch.nn.GELU(),
            )
        ]
        self.model = torch.nn.Sequential(*layers)
        self._optimizer = torch.optim.AdamW(self.model.parameters())
        self._batch = torch.randn(_BATCH, _WIDTH, generator=torch.Generator().manual_seed(23))

    def __call__(self) -> None:
        """Run forward, backward and the optimizer: other objects, code and branches; then evict.

        The model is small, so that the rounds are many. Evicting is what makes it enough for a last
        cache of any size. A real backward has just written the gradients, some of which are still
        in a cache: so it is harder on every contender than a training step is.
        """
        self.model(self._batch).square().mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._evict()
