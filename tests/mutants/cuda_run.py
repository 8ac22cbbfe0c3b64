"""Plant each fault of cuda_faults.py in the CUDA sources and see that a case notices.

    python tests/mutants/cuda_run.py [--only WORD] [--jobs N]

The cases are those of tests/cuda_kernels, run on the CPU by tests/emulator: g++ and the CUDA
toolkit's headers are all that is needed; where they are missing nothing is planted. Exit status 1
if a fault goes unnoticed, if its text does not stand in the source exactly once, or if a case fails
without any fault.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import command
from cuda_faults import FAULTS, KernelFault
from texts import ROOT, check_texts, plant_text

sys.path.append(str(ROOT / "tests" / "support"))

import build_program as emulator
from build_program import Build, build_program
from toolkit import why_no_emulator

CASES = ROOT / "tests" / "cuda_kernels"
SEEDS: dict[Build, int] = {"plain": 4, "thread": 2}
TIMEOUT = 60
"""Seconds until a case counts as hanging."""

# -O1 compiles soonest; the header declares what some faults call.
FLAGS = ("-O1", "-g0", "-w", "-include", str(emulator.HERE / "emulator.h"))
OPTIONS = {"TSAN_OPTIONS": "halt_on_error=1 atexit_sleep_ms=0"}

HARNESS_FAILED = "the mutants could not be judged"


@dataclass(frozen=True)
class Outcome:
    """What became of one fault: the case that caught it, what that said, in how many seconds."""

    fault: KernelFault
    case: str | None
    said: str
    seconds: float


@dataclass(frozen=True)
class Unharmed:
    """The program without a fault, and the object of each of its sources."""

    program: Path
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
    csrc = ROOT / "csrc"
    sources = [*sorted(CASES.glob("*.cpp")), *kernel_sources(csrc)]
    program = build_program(sources, out, build, include=[csrc], flags=FLAGS, jobs=1)
    objects = {source.name: next(out.glob(f"{source.stem}-*.o")) for source in sources}
    return Unharmed(program, objects)


def build_with(fault: KernelFault, unharmed: Unharmed, tree: Path) -> Path:
    """Build the program from a copy of the sources with one fault: what it touches, no more."""
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    path = plant_text(fault, tree)
    harmed = [each for each in kernel_sources(tree / "csrc") if includes(each, path)]
    out = tree / "out"
    out.mkdir()
    # The emulator's among them: found there, they are not compiled again.
    for compiled in unharmed.program.parent.glob("*.o"):
        (out / compiled.name).hardlink_to(compiled)
    kept = set(unharmed.objects) - {each.name for each in harmed}
    return build_program(
        harmed,
        out,
        fault.build,
        include=[tree / "csrc"],
        flags=FLAGS,
        link_flags=[str(unharmed.objects[name]) for name in sorted(kept)],
        jobs=1,
    )


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
    # Without the case's name, which has a column of its own.
    return output.partition("\n")[0].partition(", ")[2]


def plant(fault: KernelFault, unharmed: Unharmed, tree: Path) -> Outcome:
    """Build a copy of the sources with one fault and run the cases that must notice it."""
    began = time.monotonic()
    program = build_with(fault, unharmed, tree)
    case, said = None, "no case failed"
    for each in fault.cases:
        status, output = run_case(program, fault.build, each)
        if status != 0:
            case, said = each, first_words(status, output)
            break
    outcome = Outcome(fault, case, said, time.monotonic() - began)
    print(row(outcome), flush=True)
    shutil.rmtree(tree)
    return outcome


def row(outcome: Outcome) -> str:
    """Format one line of the table."""
    fault = outcome.fault
    verdict = "caught" if outcome.case else "MISSED"
    file = fault.file.removeprefix("csrc/").removeprefix("cuda/")
    case = outcome.case or ", ".join(fault.cases)
    said = outcome.said if len(outcome.said) <= 110 else outcome.said[:107] + "..."
    where = f"{fault.name:60}  {file:13}  {outcome.seconds:3.0f} s  {fault.build:6}  {case:22}"
    return f"{verdict}  {where}  {said}"


def check_without_faults(unharmed: Unharmed, build: Build, cases: Sequence[str]) -> None:
    """Exit if a case that is to notice faults fails where there is none."""
    for case in cases:
        status, output = run_case(unharmed.program, build, case)
        if status != 0:
            raise SystemExit(f"{HARNESS_FAILED}: {case} fails without a fault:\n{output}")


def run_all(faults: Sequence[KernelFault], jobs: int, scratch: Path) -> list[Outcome]:
    """Build once without a fault, then plant every fault, ``jobs`` at a time."""
    builds: list[Build] = list(dict.fromkeys(fault.build for fault in faults))
    with ThreadPoolExecutor(jobs) as pool:
        bases = pool.map(lambda build: build_unharmed(build, scratch / build), builds)
        unharmed = dict(zip(builds, bases, strict=True))
        checks = [
            pool.submit(
                check_without_faults,
                unharmed[build],
                build,
                list(dict.fromkeys(c for f in faults if f.build == build for c in f.cases)),
            )
            for build in builds
        ]
        planted = [
            pool.submit(plant, fault, unharmed[fault.build], scratch / str(i))
            for i, fault in enumerate(faults)
        ]
        try:
            for check in checks:
                check.result()
            return [future.result() for future in planted]
        except SystemExit:
            pool.shutdown(cancel_futures=True)
            raise


def main() -> int:
    """Run the command line; return the exit status."""
    options = command.parse("Plant faults in the kernels and see cases fail.")
    reason = why_no_emulator()
    if reason is not None:
        print(f"not planted: {reason}")
        return 0
    faults = [fault for fault in FAULTS if options.only in fault.name]
    check_texts(faults)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = run_all(faults, options.jobs, Path(scratch).resolve())
    caught = sum(outcome.case is not None for outcome in outcomes)
    return command.conclude(caught, len(faults), time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
