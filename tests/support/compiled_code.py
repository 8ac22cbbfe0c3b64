"""What nvcc makes of the CUDA kernels: registers, spills, widths of loads, read off the SASS.

``python tests/support/compiled_code.py`` writes docs/compiled-code.md again; needs nvcc and the
cuobjdump that comes with Triton.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from source_tree import ROOT, cuda

ARCHITECTURES = ("80", "90", "100", "120")
DOCUMENT = ROOT / "docs" / "compiled-code.md"
THREADS = 256
VECTOR_BYTES = 16

# What a multiprocessor holds (CUDA C++ Programming Guide, "Compute Capabilities").
REGISTERS = 65536
MAX_THREADS = {"80": 2048, "90": 2048, "100": 2048, "120": 1536}

ENTRY = re.compile(r"Compiling entry function '(\w+)'")
USED = re.compile(r"Used (\d+) registers")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
SHARED = re.compile(r"(\d+) bytes smem")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
REGISTER = re.compile(r"\bR(\d+)\b")


@dataclass(frozen=True)
class Instruction:
    """A line of SASS."""

    address: int
    name: str
    operands: str


@dataclass(frozen=True)
class Loop:
    """An innermost loop that reads 16 bytes at a time."""

    loads: int
    in_flight: int  # the most 16-byte loads that are issued before one of them is used
    stores: int
    narrow: tuple[str, ...]  # other global loads and stores in it


@dataclass
class Kernel:
    """A kernel as compiled for one architecture."""

    name: str
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    loops: list[Loop] = field(default_factory=list)
    generic: list[str] = field(default_factory=list)  # loads and stores that are not .global
    local: int = 0
    partials: int = 0  # 8-byte loads in flight in the first loop that has any

    @property
    def base(self) -> str:
        """Return the name without the table's type."""
        return re.sub(r",? ?(ShortTable|LongTable|DeviceTable)", "", self.name).replace("<>", "")

    def blocks(self, architecture: str) -> int:
        """Return how many blocks a multiprocessor holds: registers come in eights a thread."""
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * THREADS)
        return min(by_registers, MAX_THREADS[architecture] // THREADS)

    def bytes_in_flight(self, architecture: str) -> int:
        """Return how much a multiprocessor's threads have asked for at a time, at least."""
        loads = min((loop.in_flight for loop in self.loops), default=0)
        return self.blocks(architecture) * THREADS * loads * VECTOR_BYTES


def short_name(mangled: str) -> str:
    """Return "clip_kernel<SumSq, ShortTable>" for its mangled name."""
    done = subprocess.run(["c++filt", mangled], check=True, capture_output=True, text=True)
    text = done.stdout.replace("(anonymous namespace)::", "").replace("fastclip::device::", "")
    text = re.sub(r"ArgumentTable<\d{1,3}> ?", "ShortTable", text)
    text = re.sub(r"ArgumentTable<\d{4,}> ?", "LongTable", text)
    match = re.search(r"\w+_kernel<[^<>]*>", text)
    if match is None:
        raise ValueError(f"compiled_code: no kernel of ours: {text}")
    return match[0]


def instructions(sass: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Yield each function's mangled name and its instructions."""
    for part in re.split(r"^\s*Function : ", sass, flags=re.MULTILINE)[1:]:
        mangled = part.split(None, 1)[0]
        yield (
            mangled,
            [Instruction(int(m[1], 16), m[2], m[3]) for m in INSTRUCTION.finditer(part)],
        )


def is_vector_load(instruction: Instruction) -> bool:
    """Return whether it reads 16 bytes of global memory."""
    return instruction.name.startswith("LDG.E.128")


def is_partial_load(instruction: Instruction) -> bool:
    """Return whether it reads 8 bytes of global memory."""
    return instruction.name.startswith("LDG.E.64")


def loops_of(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """Find the loops, by where they begin."""
    spans = []
    for i in code:
        target = re.search(r"0x([0-9a-f]+)", i.operands) if i.name.startswith("BRA") else None
        if target is not None and int(target[1], 16) <= i.address:
            spans.append((int(target[1], 16), i.address))
    return [[i for i in code if begin <= i.address <= end] for begin, end in sorted(set(spans))]


def hot_loops(code: Sequence[Instruction]) -> list[Loop]:
    """Find the innermost loops with 16-byte loads."""
    hot = [body for body in loops_of(code) if any(map(is_vector_load, body))]
    inner = [
        body
        for body in hot
        if not any(
            other is not body
            and body[0].address <= other[0].address
            and other[-1].address <= body[-1].address
            for other in hot
        )
    ]
    return [_loop(body) for body in inner]


def partials_in_flight(code: Sequence[Instruction]) -> int:
    """Return how many 8-byte loads the first loop with any issues before it uses one."""
    first = (body for body in loops_of(code) if any(map(is_partial_load, body)))
    return most_in_flight(next(first, []), is_partial_load, registers=2)


def most_in_flight(
    body: Sequence[Instruction], is_load: Callable[[Instruction], bool], registers: int
) -> int:
    """Return the most loads of this many registers that are issued before one of them is used."""
    in_flight, pending = 0, dict[int, int]()
    for i in body:
        used = {int(number) for number in REGISTER.findall(i.operands)}
        if is_load(i):
            first = int(REGISTER.findall(i.operands)[0])
            pending |= {first + k: i.address for k in range(registers)}
            in_flight = max(in_flight, len(set(pending.values())))
        elif used & pending.keys():
            pending.clear()
    return in_flight


def _loop(body: Sequence[Instruction]) -> Loop:
    in_flight = most_in_flight(body, is_vector_load, registers=4)
    wide = [i.name for i in body if re.match(r"(LDG|STG)\.E\.128", i.name)]
    narrow = tuple(
        i.name for i in body if re.match(r"(LDG|STG|LD|ST)\b", i.name) and i.name not in wide
    )
    stores = sum(name.startswith("STG") for name in wide)
    return Loop(len(wide) - stores, in_flight, stores, narrow)


def parse(log: str, sass: str) -> list[Kernel]:
    """Read the kernels of one object: ptxas's report and the disassembly."""
    kernels = dict[str, Kernel]()
    parts = ENTRY.split(log)[1:]
    for mangled, part in zip(parts[::2], parts[1::2], strict=True):
        kernel = kernels.setdefault(mangled, Kernel(short_name(mangled)))
        stack, shared = STACK.search(part), SHARED.search(part)
        used = USED.search(part)
        if stack is None or used is None:
            raise ValueError(f"compiled_code: no register report for {kernel.name}")
        kernel.registers, kernel.stack = int(used[1]), int(stack[1])
        kernel.spills = int(stack[2]) + int(stack[3])
        kernel.shared = int(shared[1]) if shared else 0
    for mangled, code in instructions(sass):
        kernel = kernels[mangled]
        kernel.loops, kernel.partials = hot_loops(code), partials_in_flight(code)
        kernel.generic = [i.name for i in code if re.match(r"(LD|ST)(\.|$)", i.name)]
        kernel.local = sum(i.name.startswith(("LDL", "STL")) for i in code)
    return list(kernels.values())


def disassembler() -> Path | None:
    """Return the cuobjdump that comes with Triton, or None."""
    try:
        import triton
    except ImportError:
        return None
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return path if path.exists() else None


@dataclass(frozen=True)
class Compiled:
    """One source compiled for one architecture, with the flags of the build."""

    source: Path
    architecture: str
    kernels: list[Kernel]
    ptx: str


def compile_all(out: Path, architectures: Sequence[str] = ARCHITECTURES) -> list[Compiled]:
    """Compile every kernel file for every architecture, two at a time."""
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    jobs = [(source, architecture) for architecture in architectures for source in sources]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: _compile(job[0], job[1], out), jobs))


def toolkit_in_use() -> cuda.Toolkit:
    """Return the toolkit that the build would use."""
    toolkit = cuda.find_toolkit()
    if toolkit is None:
        raise RuntimeError("compiled_code: needs nvcc")
    return toolkit


def _compile(source: Path, architecture: str, out: Path) -> Compiled:
    kept = out / f"{source.stem}-{architecture}"
    kept.mkdir(parents=True)
    toolkit = toolkit_in_use()
    command = cuda.nvcc_command(toolkit, source, [f"sm_{architecture}"])
    command += ["-Xptxas", "-v", "--keep", "--keep-dir", str(kept), "-o", str(kept / "object.o")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (ptx,) = kept.glob("*.ptx")
    (cubin,) = kept.glob("*.cubin")
    sass = subprocess.run(
        [str(disassembler()), "-sass", str(cubin)], check=True, capture_output=True, text=True
    ).stdout
    return Compiled(
        source, architecture, parse(done.stdout + done.stderr, sass), ptx.read_text("utf-8")
    )


def table(compiled: Sequence[Compiled], architecture: str) -> str:
    """Write one architecture's kernels as Markdown, the three tables' variants in one row."""
    rows = defaultdict[str, list[Kernel]](list)
    for unit in compiled:
        if unit.architecture == architecture:
            for kernel in unit.kernels:
                rows[kernel.base].append(kernel)
    lines = [
        "| kernel | registers | spills | stack | shared | hot loops | 16-byte loads in flight "
        "| 16-byte stores a loop | blocks | KiB in flight |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for base, kernels in rows.items():
        loops = [loop for kernel in kernels for loop in kernel.loops]
        cells = [
            f"`{base}`",
            "/".join(str(kernel.registers) for kernel in kernels),
            str(max(kernel.spills for kernel in kernels)),
            str(max(kernel.stack for kernel in kernels)),
            str(max(kernel.shared for kernel in kernels)),
            str(max(len(kernel.loops) for kernel in kernels)),
            span([loop.in_flight for loop in loops]),
            span([loop.stores for loop in loops]),
            str(min(kernel.blocks(architecture) for kernel in kernels)),
            str(min(kernel.bytes_in_flight(architecture) for kernel in kernels) // 1024)
            if loops
            else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def span(values: Sequence[int]) -> str:
    """Return "4", or "0-4" for values that differ."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def document(compiled: Sequence[Compiled], release: str) -> str:
    """Write docs/compiled-code.md."""
    parts = [INTRODUCTION.format(release=release)]
    for architecture in ARCHITECTURES:
        parts.append(f"## sm_{architecture}\n\n{table(compiled, architecture)}\n")
    return "\n".join(parts)


INTRODUCTION = """\
# What nvcc makes of the kernels

Compiled by nvcc {release} with the flags of the build, without a GPU; evidence.md says what one has
run. Registers are those of the variants for a short table, a long one (both in kernel arguments)
and one in device memory, in the order of the symbols. Spills, stack and shared memory are bytes. A
hot loop is an innermost loop that reads 16 bytes at a time; loads in flight are those that a thread
issues before it uses one of them, the least and the most over the hot loops. Blocks are what
registers and threads let one multiprocessor hold, 256 threads each; KiB in flight is blocks x 256 x
loads x 16.

`python tests/support/compiled_code.py` writes this file;
tests/cuda/test_compiled_code.py compares it.
"""


def main() -> None:
    """Write the document again."""
    with tempfile.TemporaryDirectory() as out:
        text = document(compile_all(Path(out)), toolkit_in_use().release)
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
