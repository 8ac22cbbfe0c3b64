"""What the CUDA kernels read and write, counted by the emulator for the benchmark's lists.

``python tests/support/counted_work.py`` writes docs/counted-work.md again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import pytest
import torch
from emulated_native import Emulated, in_use
from samples import parameters
from source_tree import ROOT
from torch import Tensor

import fastclip
from bench.core.shapes import CASES, Case

DOCUMENT = ROOT / "docs" / "counted-work.md"

ELEMENTS = 1 << 19
"""The size towards which a list is scaled down: the emulator takes about a second for it."""

SMALL = (1 << 12) + 1
"""The float32 elements from which a tensor is large (csrc/gpu_work.h); scaled tensors stay so."""

GRID = 132 * 4
"""The blocks that an H100 holds at a time, for the traffic at full size."""


def element_counts(case: Case) -> list[int]:
    """Return the element count of each tensor of a case."""
    return [prod(shape) for shape in case.shapes]


def scaled_counts(case: Case) -> tuple[int, ...]:
    """Return element counts scaled down with the list's structure kept."""
    factor = max(1.0, case.n_elements / ELEMENTS)
    counts = element_counts(case)
    return tuple(max(SMALL if n >= SMALL else 1, int(n / factor)) for n in counts)


@dataclass(frozen=True)
class Work:
    """The work of one call: launches; multiples of the gradients' bytes; bytes of other memory."""

    launches: int
    read: float
    written: float
    other_read: int
    other_written: int


def counted(emulated: Emulated, grads: Sequence[Tensor], call: Callable[[], object]) -> Work:
    """Run a call and return what it did; every byte counts each time that a thread touches it."""
    emulated.clear()
    call()
    total = sum(grad.nbytes for grad in grads)
    traffic = [emulated.traffic(grad) for grad in grads]
    other = emulated.workspace_traffic()
    return Work(
        len(emulated.launches),
        sum(t.read for t in traffic) / total,
        sum(t.written for t in traffic) / total,
        other.read,
        other.written,
    )


@functools.cache
def work_of(
    emulated: Emulated, counts: tuple[int, ...], multiprocessors: int = 4
) -> dict[str, Work]:
    """Count a clip that changes nothing, one that clips, and a clamp that changes everything."""
    emulated.reset()
    # The launchers ask a device for its size once, so another size needs another device, and none
    # that other tests take.
    device = 20 + multiprocessors
    emulated.machine(devices=device + 1, multiprocessors=multiprocessors)
    emulated.count_workspace()
    grads = [torch.full((n,), 2.0) for n in counts]
    for grad in grads:
        emulated.place(grad, device)
    held = parameters(grads)
    calls: dict[str, Callable[[], object]] = {
        "not clipped": lambda: fastclip.clip_grad_norm_(held, 1e9, backend="native"),
        "clipped": lambda: fastclip.clip_grad_norm_(held, 0.5, backend="native"),
        "clamped": lambda: fastclip.clip_grad_value_(held, 1e-9, backend="native"),
    }
    return {name: counted(emulated, grads, call) for name, call in calls.items()}


@dataclass(frozen=True)
class Other:
    """Bytes of partials, sums and results that one clip reads and writes."""

    read: int
    written: int


def other_traffic(emulated: Emulated, counts: Sequence[int], resident: int) -> Other:
    """Return what follows from how a list is cut, without a table in device memory.

    Every block reads all partials once; the partials of each large tensor are read once more for
    its sum. A group has a partial, a tensor a sum and the list a total; total_norm and clip_coef
    are float32.
    """
    plan = emulated.plan(counts)
    grid = max(1, min(resident, plan.groups))
    chunks = sum(-(-n // plan.chunk_size) for n in counts if n >= SMALL)
    return Other(8 * (grid * plan.groups + chunks), 8 * (plan.groups + len(counts) + 1) + 8)


def document(emulated: Emulated) -> str:
    """Write docs/counted-work.md."""
    lines = [INTRODUCTION]
    for case in CASES.values():
        work = work_of(emulated, scaled_counts(case))
        counts = element_counts(case)
        other, table = other_traffic(emulated, counts, GRID), emulated.plan(counts).table_bytes
        cells = [f"`{case.name}`", f"{case.n_tensors:,}"]
        for name in ("not clipped", "clipped", "clamped"):
            w = work[name]
            cells.append(f"{w.launches} / {w.read:.3g} / {w.written:.3g}")
        share = (other.read + other.written) / (4 * sum(counts))
        cells += [f"{share:.2%}", f"{table:,}" if table else "in arguments"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


INTRODUCTION = f"""\
# What the CUDA kernels read and write

Counted by the emulator in the kernels' own code, for the benchmark's lists in float32, scaled down
towards {ELEMENTS:,} elements with the number of tensors kept, and each above or below 16 KiB as it
was: launches / gradients read / gradients written, in multiples of the gradients' bytes N. A clip
is in its default form, split. Other traffic is what one clip reads and writes of partials, sums and
results at the full size on {GRID} blocks (an H100's), in multiples of N; few bytes that all blocks
read, which L2 should hold. The last column is the table: in the kernel's arguments, or bytes in
device memory, which every block reads in part and which are not among the other traffic.

`python tests/support/counted_work.py` writes this file;
tests/cuda/test_counted_work.py compares it.

| list | tensors | not clipped | clipped | clamped | other traffic | table |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Write the document again."""
    with pytest.MonkeyPatch.context() as patch, in_use(patch) as emulated:
        text = document(emulated)
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
