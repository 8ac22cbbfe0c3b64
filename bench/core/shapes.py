"""The gradient shapes of real models, as data, and of lists that are hard on the host.

Element counts are those that the models' authors publish; tests/bench/test_bench.py holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One list of gradients to clip: those of a model that people train, or one to learn from."""

    name: str
    shapes: tuple[Shape, ...]
    note: str
    is_model: bool = False

    @property
    def n_tensors(self) -> int:
        """Return how many gradients the list holds."""
        return len(self.shapes)

    @property
    def n_elements(self) -> int:
        """Return how many elements all gradients hold together."""
        return sum(prod(shape) for shape in self.shapes)


def gpt2(width: int = 768, layers: int = 12) -> tuple[Shape, ...]:
    """List GPT-2's parameters; the output layer shares the token embedding, which counts once."""
    shapes: list[Shape] = [(50257, width), (1024, width)]
    for _ in range(layers):
        shapes += [(width,), (width,)]
        shapes += [(width, 3 * width), (3 * width,), (width, width), (width,)]
        shapes += [(width,), (width,)]
        shapes += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return (*shapes, (width,), (width,))


def llama3_8b(shrink: int = 1) -> tuple[Shape, ...]:
    """List Llama-3-8B's parameters, with every dimension divided by ``shrink``.

    The 32 layers and their 291 tensors stay, so that the host's share of the work is the real one,
    and every tensor keeps its aspect ratio.
    """
    width, key_value, hidden, vocabulary = (n // shrink for n in (4096, 1024, 14336, 128256))
    shapes: list[Shape] = [(vocabulary, width)]
    for _ in range(32):
        shapes += [(width, width), (key_value, width), (key_value, width), (width, width)]
        shapes += [(hidden, width), (hidden, width), (width, hidden)]
        shapes += [(width,), (width,)]
    return (*shapes, (width,), (vocabulary, width))


def resnet50() -> tuple[Shape, ...]:
    """List ResNet-50's parameters: convolutions, the two vectors of each batch norm, the head."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for out, into, kernel in (
                (width, channels, 1),
                (width, width, 3),
                (4 * width, width, 1),
            ):
                shapes += [(out, into, kernel, kernel), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return (*shapes, (1000, channels), (1000,))


def lora_7b(rank: int = 16) -> tuple[Shape, ...]:
    """List the adapters of a LoRA of this rank on all seven linear layers of Llama-2-7B."""
    width, hidden = 4096, 11008
    linears = [(width, width)] * 4 + [(width, hidden)] * 2 + [(hidden, width)]
    return tuple(
        shape for _ in range(32) for into, out in linears for shape in ((rank, into), (out, rank))
    )


LLAMA_SHRINK = 4

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("gpt2-124m", gpt2(), "GPT-2 124M, tied embedding once", is_model=True),
        Case(
            "llama-3-8b-scaled",
            llama3_8b(LLAMA_SHRINK),
            f"Llama-3-8B with every dimension divided by {LLAMA_SHRINK} to fit memory:"
            f" all 32 layers and 291 tensors, 1/{LLAMA_SHRINK**2} of the elements",
            is_model=True,
        ),
        Case("resnet-50", resnet50(), "ResNet-50 v1, ImageNet head", is_model=True),
        Case(
            "lora-7b",
            lora_7b(),
            "LoRA of rank 16 on all linear layers of Llama-2-7B",
            is_model=True,
        ),
        Case("lora-2000x8192", ((8192,),) * 2000, "LoRA adapters of equal size"),
        Case("2000x4096", ((4096,),) * 2000, "many small tensors"),
        Case("10000x256", ((256,),) * 10_000, "very many very small tensors"),
        Case("1000x64", ((64,),) * 1000, "a list whose cost is the host's alone"),
        Case("1x1e8", ((100_000_000,),), "one large tensor"),
    )
}
