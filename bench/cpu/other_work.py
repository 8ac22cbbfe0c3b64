"""What a training loop does between two clips, so that a call is timed as a training step meets it.

A call that only repeats finds its code, its objects and the gradients in the nearest caches, and
the processor has learnt its branches. In a training step it finds none of that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_WIDTH, _LAYERS, _BATCH = 256, 4, 32


class OtherWork:
    """A training step of another model, and then the eviction of the caches by ``evict``.

    The model is small, so that the rounds are many. Evicting is what makes it enough for a last
    cache of any size. A real backward has just written the gradients, some of which are still in a
    cache: so it is harder on every contender than a training step is.
    """

    def __init__(self, evict: Callable[[], object]) -> None:
        self._evict = evict
        self.model = torch.nn.Sequential()
        for _ in range(_LAYERS):
            self.model.append(torch.nn.Linear(_WIDTH, _WIDTH))
            self.model.append(torch.nn.LayerNorm(_WIDTH)).append(torch.nn.GELU())
        self._optimizer = torch.optim.AdamW(self.model.parameters())
        self._batch = torch.randn(_BATCH, _WIDTH, generator=torch.Generator().manual_seed(23))

    def __call__(self) -> None:
        """Run forward, backward and the optimizer: other objects, code and branches; then evict."""
        self.model(self._batch).square().mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._evict()
