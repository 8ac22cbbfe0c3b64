"""What Triton makes of the kernels: registers, spills, widths of loads, read off the machine code.

``python tests/support/compiled_triton.py`` writes docs/compiled-triton.md again; needs triton,
no GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import amdgcn
import compiled_code
import triton_builds
from compiled_code import MAX_THREADS, REGISTERS, THREADS, VECTOR_BYTES, Loop, disassembler
from source_tree import ROOT
from triton_builds import TARGETS, Target, Variant, folder_of, variants

DOCUMENT = ROOT / "docs" / "compiled-triton.md"
CACHE = ROOT / "build" / "triton"
USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")

# What a SIMD of a compute unit holds for each of its lanes (AMD's CDNA2 and CDNA3 instruction set
# manuals). A program has a wave for each of the four.
VECTOR_REGISTERS = 512
MAX_WAVES = 8


@dataclass
class Kernel:
    """A kernel as compiled for one target."""

    target: Target
    variant: Variant
    text: str  # PTX, or AMD's assembly
    shared: int
    registers: int = 0
    stack: int = 0
    spills: int = 0  # loads and stores of local memory; on AMD, vector registers spilled
    scalar_spills: int = 0  # AMD's: kept in lanes of vector registers, not in memory
    loops: list[Loop] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the variant's name with the target's."""
        return f"{self.variant.name} on {self.target.label}"

    def programs(self) -> int:
        """Return how many programs a multiprocessor or compute unit holds."""
        allocated = -(-self.registers // 8) * 8
        if not self.target.is_nvidia:
            return min(VECTOR_REGISTERS // allocated, MAX_WAVES)
        return min(REGISTERS // (allocated * THREADS), MAX_THREADS[self.target.name] // THREADS)

    def bytes_in_flight(self) -> int:
        """Return how much the programs of a launch have asked for at a time, at least."""
        from fastclip.backends.triton.call import PROGRAMS_EACH

        loads = min((loop.in_flight for loop in self.loops), default=0)
        return min(PROGRAMS_EACH, self.programs()) * THREADS * loads * VECTOR_BYTES


def read_kernel(target: Target, variant: Variant, out: Path) -> Kernel:
    """Read what compile_kernel() has left."""
    folder = folder_of(target, variant, out)
    shared = json.loads((folder / "shared").read_text(encoding="utf-8"))
    text = (folder / "text").read_text(encoding="utf-8")
    kernel = Kernel(target, variant, text, shared)
    if target.is_nvidia:
        read_nvidia(kernel, _dump("-res-usage", folder), _dump("-sass", folder))
    else:
        read_amd(kernel)
    return kernel


def _dump(option: str, folder: Path) -> str:
    command = [str(disassembler()), option, str(folder / "cubin")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read_nvidia(kernel: Kernel, usage: str, sass: str) -> None:
    """Fill in what the tools say of a cubin."""
    match = USAGE.search(usage)
    if match is None:
        raise ValueError(f"compiled_triton: no register report for {kernel.name}")
    kernel.registers, kernel.stack = int(match[1]), int(match[2])
    ((_, code),) = compiled_code.instructions(sass)
    kernel.spills = sum(i.name.startswith(("LDL", "STL")) for i in code)
    kernel.loops = compiled_code.hot_loops(code)


def read_amd(kernel: Kernel) -> None:
    """Fill in what the assembly says."""
    found = amdgcn.resources(kernel.text)
    kernel.registers, kernel.stack = found["vgpr_count"], found["private_segment_fixed_size"]
    kernel.spills, kernel.scalar_spills = found["vgpr_spill_count"], found["sgpr_spill_count"]
    kernel.loops = amdgcn.hot_loops(kernel.text)


def compile_all(out: Path) -> list[Kernel]:
    """Compile every kernel in another process, and read the results."""
    variables = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(CACHE)}
    done = subprocess.run(
        [sys.executable, triton_builds.__file__, str(out)],
        check=False,
        env=variables,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"compiled_triton: {done.stderr}")
    return [read_kernel(target, variant, out) for target in TARGETS for variant in variants(target)]


def table(kernels: Sequence[Kernel], target: Target) -> str:
    """Write one target's kernels as Markdown."""
    lines = [
        "| kernel | registers | spills | stack | shared | hot loops | 16-byte loads in flight "
        "| 16-byte stores a loop | programs | KiB in flight |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kernel in kernels:
        if kernel.target == target:
            scalars = f" + {kernel.scalar_spills}" if kernel.scalar_spills else ""
            in_flight = kernel.bytes_in_flight() // 1024 if kernel.loops else "-"
            cells = [
                f"`{kernel.variant.name}`",
                kernel.registers,
                f"{kernel.spills}{scalars}",
                kernel.stack,
                kernel.shared,
                len(kernel.loops),
                compiled_code.span([loop.in_flight for loop in kernel.loops]),
                compiled_code.span([loop.stores for loop in kernel.loops]),
                kernel.programs(),
                f"{in_flight}{' (exempt)' if kernel.variant.is_exempt and kernel.loops else ''}",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def document(kernels: Sequence[Kernel], version: str) -> str:
    """Write docs/compiled-triton.md."""
    parts = [INTRODUCTION.format(version=version)]
    parts += [f"## {target.label}\n\n{table(kernels, target)}\n" for target in TARGETS]
    return "\n".join(parts)


INTRODUCTION = """\
# What Triton makes of its kernels

Compiled by Triton {version} with the options of a launch, without a GPU; evidence.md says
what one has run. For AMD's it is compiled, not run. Of sm_90 every kernel is here with every kind
of sum, of gfx942 the sums other than SUM_SQ for one dtype, and of the others the main kernels.
"all" is one kernel for all four dtypes, "narrow" one for all but float64: of a list with float64
the squares are summed by SUM_SQ_WIDE. "finds inf" is for a call with found_inf, "scales" for a
clamp with inv_scale, which writes every element.

Registers are a thread's. Spills are loads and stores of local memory in the machine code; on AMD
they are vector registers spilled, and after a plus sign scalar ones, which go to lanes of vector
registers and not to memory. Stack and shared memory are bytes. A hot loop is an innermost loop that
reads 16 bytes at a time; loads in flight are those that a thread issues before it uses one of them
(on AMD those that no wait has been for), the least and the most over the hot loops; where a
compiler unrolled a loop they may be more than eight. Programs are what registers and threads let
one multiprocessor or compute unit hold, 256 threads each: on AMD a wave on each of its four SIMDs.
A launch has two for each; KiB in flight is 2 x 256 x the least loads x 16.

The target is 128 registers, so that two programs fit, and eight loads in flight: 64 KiB. Below it:

- POWER_SUM loads one block at a time on purpose, powers are bound by arithmetic: it is exempt.
- Sums in float64 of 16-bit elements, in SUM_SQ only the second look at chunks that left float32's
  range: a loop or two use the first loads before the last are issued.
- Clamps, whose loads the compilers spread over the loop: at least two in flight.

`python tests/support/compiled_triton.py` writes this file;
tests/triton/test_compiled_triton.py compares it.
"""


def main() -> None:
    """Write the document again."""
    import triton

    with tempfile.TemporaryDirectory() as out:
        text = document(compile_all(Path(out)), triton.__version__)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
