"""Gradient lists that are easy to get wrong, for the self-check, and their norm in float64."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SIZES = (0, 1, 31, 33, 1023, 1025, 16383, 16384, 16385, 32769)
"""Element counts around a vector, around 4 KiB, around a chunk and just over two chunks."""

LAYOUTS = ("contiguous", "misaligned", "permuted")
"""Dense memory layouts, except that the fourth, "gaps", skips every second element."""

# float16 reaches from 6e-8 to 65504, so its huge and tiny values are its own.
MAGNITUDES = {
    "normal": {},
    "huge": {torch.float16: 1e4},
    "tiny": {torch.float16: 1e-4},
    "denormal": {torch.float16: 1e-6, torch.bfloat16: 1e-39, torch.float64: 1e-25},
}
DEFAULT_MAGNITUDE = {"normal": 1.0, "huge": 1e20, "tiny": 1e-25, "denormal": 1e-40}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

CONSTANT = 0.1
"""A value that no float holds exactly, so that sums in a short format drift one way."""


@dataclass(frozen=True)
class Awkward:
    """A list of gradients that can be made anew, because a clip changes it.

    Attributes:
        name: what is awkward about it.
        gaps: whether a gradient skips elements of its storage, which "native" may refuse.
        values: each gradient's elements, flat.
        layouts: each gradient's memory layout.
    """

    name: str
    gaps: bool
    values: list[Tensor]
    layouts: list[str]

    def gradients(self, device: str = "cpu") -> list[Tensor]:
        """Lay every gradient out in fresh memory of a device."""
        pairs = zip(self.values, self.layouts, strict=True)
        return [_lay_out(values.to(device), layout) for values, layout in pairs]

    @cached_property
    def flat(self) -> list[Tensor]:
        """Each gradient's elements in float64, in the order of ``gradients()``."""
        return [values.double() for values in self.values]

    def describe(self, position: int) -> str:
        """Return a description of one gradient of the list."""
        values = self.values[position]
        what = f"{dtype_name(values.dtype)}, {values.numel()} elements, {self.layouts[position]}"
        return f"gradient {position} ({what})"


def awkward_lists() -> Iterator[Awkward]:
    """Yield the lists: a few hundred tensors in all, the same on every machine."""
    generator = torch.Generator().manual_seed(0)

    def random(kind: str, dtype: torch.dtype, size: int) -> Tensor:
        scale = MAGNITUDES[kind].get(dtype, DEFAULT_MAGNITUDE[kind])
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        return (values * scale).to(dtype)

    # Each dtype starts with another layout, so that every size meets every layout.
    for kind in MAGNITUDES:
        for i, dtype in enumerate(DTYPES):
            values = [random(kind, dtype, size) for size in SIZES]
            yield _dense(f"{kind} {dtype_name(dtype)}", values, first_layout=i)
    for i, dtype in enumerate(DTYPES):
        values = [torch.full((size,), CONSTANT, dtype=dtype) for size in SIZES]
        yield _dense(f"constant {dtype_name(dtype)}", values, first_layout=i)
    yield from _mixed(random)
    yield from _nonfinite(random)
    gaps = [random("normal", dtype, size) for dtype in DTYPES for size in (33, 1025)]
    yield Awkward("gaps", True, gaps, ["gaps"] * len(gaps))


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")


def float64_norm(flat: list[Tensor], norm_type: float) -> float:
    """Compute the p-norm of float64 vectors as one, without overflow or underflow.

    ``largest * (sum (|x| / largest)^p)^(1/p)``

    Args:
        flat: float64 vectors of any lengths.
        norm_type: a p above 0, or inf.

    Returns:
        The norm; 0.0 for no elements, NaN if one of them is NaN.
    """
    magnitudes = torch.cat([torch.empty(0, dtype=torch.float64), *flat]).abs()
    largest = magnitudes.max().item() if magnitudes.numel() else 0.0
    if largest == 0.0 or math.isinf(norm_type) or not math.isfinite(largest):
        return largest
    powers = (magnitudes / largest) ** norm_type
    return largest * powers.sum().item() ** (1.0 / norm_type)


def _mixed(random: Callable[[str, torch.dtype, int], Tensor]) -> Iterator[Awkward]:
    yield _dense("mixed dtypes", [random("normal", d, s) for s in SIZES for d in DTYPES])
    narrow = (torch.bfloat16, torch.float16, torch.float32)
    yield _dense("mixed without float64", [random("normal", d, s) for s in SIZES for d in narrow])
    yield _dense("one element", [random("normal", torch.float32, 1)])
    yield _dense("no elements", [random("normal", d, 0) for d in DTYPES])
    yield _dense("zeros", [torch.zeros(size) for size in SIZES])
    # The largest element is the last one, so that a loop that ends one too early loses it.
    ramp = torch.arange(1, 16386, dtype=torch.float32)
    yield _dense("largest at the end", [ramp])


def _nonfinite(random: Callable[[str, torch.dtype, int], Tensor]) -> Iterator[Awkward]:
    for value in (math.nan, math.inf):
        for size, position in ((33, 32), (16385, 16384), (32769, 0)):
            poisoned = random("normal", torch.float32, size)
            poisoned[position] = value
            others = [random("normal", dtype, 33) for dtype in DTYPES[:3]]
            yield _dense(f"{value} at {position} of {size}", [*others, poisoned])


def _dense(name: str, values: list[Tensor], first_layout: int = 0) -> Awkward:
    layouts = [LAYOUTS[(first_layout + i) % len(LAYOUTS)] for i in range(len(values))]
    return Awkward(name, False, values, layouts)


def _lay_out(values: Tensor, layout: str) -> Tensor:
    """Copy flat ``values`` into fresh memory; the elements keep their order by position."""
    size = values.numel()
    if layout == "misaligned":
        # There are NaNs on both sides, so that a kernel that reads past an end returns NaN.
        storage = values.new_full((size + 2,), math.nan)
        return storage[1 : size + 1].copy_(values)
    if layout == "gaps":
        return values.new_full((2 * size,), math.nan)[::2].copy_(values)
    if layout == "permuted":
        rows = next((r for r in (2, 3, 5, 7, 11) if size % r == 0 and size > r), 1)
        return values.new_empty((rows, size // rows)).t().copy_(values.view(-1, rows))
    return values.clone()
