"""Plant each fault of cuda_faults.py in the CUDA sources and see that a case notices.

    python tests/mutants/cuda_run.py [--only WORD] [--jobs N]

The cases are those of tests/cuda_kernels, run on the CPU by tests/emulator: g++ and the CUDA
toolkit's headers are all that is needed; where they are missing nothing is planted.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cuda_faults import FAULTS, CudaFault
from planting import HARNESS_FAILED, ROOT, Planter, Verdict, plant_text, run

sys.path.append(str(ROOT / "tests" / "support"))

from build_program import (
    Build,
    build_program,
    compile_command,
    link_command,
    run_into,
    source_flags,
)
from toolkit import why_no_emulator

CASES = ROOT / "tests" / "cuda_kernels"
SEEDS: dict[Build, int] = {"plain": 4, "thread": 2}
TIMEOUT = 60
"""Seconds until a case counts as hanging."""

# -Og takes least for a compilation and the run of a case together.
FLAGS = ("-Og", "-g0", "-w")
# The first declares what some faults call.
PRECOMPILED = '#include "emulator.h"\n#include <cooperative_groups.h>\n'
OPTIONS = {"TSAN_OPTIONS": "halt_on_error=1 atexit_sleep_ms=0"}


@dataclass(frozen=True)
class Unharmed:
    """The program without a fault.

    Attributes:
        program: its path.
        build: what it is built for.
        flags: those that its sources are compiled with.
        objects: what is linked, by the stem of the source.
    """

    program: Path
    build: Build
    flags: Sequence[str]
    objects: dict[str, Path]


def kernel_sources(csrc: Path) -> list[Path]:
    """List the sources that are compiled for the emulator."""
    return [*sorted((csrc / "cuda").glob("*.cu")), csrc / "cuda" / "launchers.cpp"]


def includes(source: Path, file: Path) -> bool:
    """Return whether a source is a file or includes it, perhaps through other files."""
    if source == file:
        return True
    names = re.findall(r'^#include "([^"]+)"', source.read_text(encoding="utf-8"), re.MULTILINE)
    return any(includes((source.parent / name).resolve(), file) for name in names)


def build_unharmed(build: Build, out: Path) -> Unharmed:
    """Build the program without a fault."""
    out.mkdir()
    csrc = ROOT / "csrc"
    header = out / "precompiled.h"
    header.write_text(PRECOMPILED, encoding="utf-8")
    precompile = source_flags(build, [], [*FLAGS, "-x", "c++-header"])
    run_into(compile_command(header, precompile), header.with_suffix(".h.gch"))
    flags = [*FLAGS, "-include", str(header)]
    sources = [*sorted(CASES.glob("*.cpp")), *kernel_sources(csrc)]
    program = build_program(sources, out, build, include=[csrc], flags=flags, jobs=1)
    objects = {path.name.rpartition("-")[0]: path for path in out.glob("*.o")}
    return Unharmed(program, build, flags, objects)


def build_with(fault: CudaFault, unharmed: Unharmed, tree: Path) -> Path:
    """Build the program from a copy of the sources with one fault: what it touches, no more."""
    csrc = tree / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    path = plant_text(fault, tree)
    flags = source_flags(unharmed.build, [csrc], unharmed.flags)
    harmed: dict[str, Path] = {}
    for source in kernel_sources(csrc):
        if includes(source, path):
            harmed[source.stem] = tree / f"{source.stem}.o"
            run_into(compile_command(source, flags), harmed[source.stem])
    # The harmed ones first: of an inline function in several objects the linker takes the first.
    objects = {**harmed, **{k: v for k, v in unharmed.objects.items() if k not in harmed}}
    program = tree / "program"
    run_into(link_command(list(objects.values()), unharmed.build), program)
    return program


def run_case(program: Path, build: Build, case: str) -> tuple[int, str]:
    """Run a case until a check fails; return the exit status and the output."""
    try:
        done = subprocess.run(
            [str(program), "--first", str(SEEDS[build]), case],
            env={**os.environ, **OPTIONS},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -signal.SIGALRM, f"no end after {TIMEOUT} s"
    if done.returncode == 2:
        raise SystemExit(f"{HARNESS_FAILED}: {done.stdout}")
    return done.returncode, done.stdout


def first_words(status: int, output: str) -> str:
    """Say in one line what a case that failed has seen."""
    race = re.search(r"ThreadSanitizer: (.+?) \(pid", output)
    if race:
        return race[1]
    if status < 0:
        return output if status == -signal.SIGALRM else signal.Signals(-status).name
    # Without the case's name, which stands before.
    return output.partition("\n")[0].partition(", ")[2]


def check_without_faults(unharmed: Unharmed, cases: Sequence[str]) -> None:
    """Exit if a case that is to notice faults fails where there is none."""
    for case in cases:
        status, output = run_case(unharmed.program, unharmed.build, case)
        if status != 0:
            raise SystemExit(f"{HARNESS_FAILED}: {case} fails without a fault:\n{output}")


class CudaPlanter(Planter[CudaFault]):
    """Builds the program of the cases with a fault, and runs them."""

    def prepare(
        self, faults: Sequence[CudaFault], scratch: Path, pool: Executor
    ) -> Sequence[Callable[[], None]]:
        """Build the program without a fault; return the checks that the cases pass there."""
        builds: list[Build] = list(dict.fromkeys(fault.build for fault in faults))
        bases = pool.map(lambda build: build_unharmed(build, scratch / build), builds)
        self.unharmed = dict(zip(builds, bases, strict=True))
        cases = {
            build: dict.fromkeys(case for f in faults if f.build == build for case in f.cases)
            for build in builds
        }
        return [
            partial(check_without_faults, self.unharmed[build], list(cases[build]))
            for build in builds
        ]

    def plant(self, fault: CudaFault, tree: Path) -> Verdict:
        """Build a copy of the sources with one fault and run the cases that must notice it."""
        program = build_with(fault, self.unharmed[fault.build], tree)
        for case in fault.cases:
            status, output = run_case(program, fault.build, case)
            if status != 0:
                return Verdict(True, f"{case}: {first_words(status, output)}")
        return Verdict(False, f"no case failed of {', '.join(fault.cases)}")


def main() -> int:
    """Run the command line; return the exit status."""
    reason = why_no_emulator()
    if reason is not None:
        print(f"not planted: {reason}")
        return 0
    return run(CudaPlanter(), FAULTS)


if __name__ == "__main__":
    sys.exit(main())
