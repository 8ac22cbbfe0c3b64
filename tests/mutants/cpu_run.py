"""Plant each fault of cpu_faults.py in the CPU sources, build, and see that a test notices.

    python tests/mutants/cpu_run.py [--only WORD] [--jobs N]

Needs fastclip installed with its native extension. Exit status 1 if a fault goes unnoticed, if its
text does not stand in the source exactly once, or if the tests fail without any fault.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import command
from cpu_faults import FAULTS, Fault
from pytest_runs import HARNESS_FAILED, installed_package, judge, run_tests
from texts import ROOT, check_texts, plant_text

sys.path.append(str(ROOT))

import fastclip
from build_support.extension import (
    binding_flags,
    compile_command,
    kernel_flags,
    link,
)
from build_support.plan import plan_build
from build_support.torch_on_disk import find_torch


@dataclass(frozen=True)
class Outcome:
    """What became of one fault: whether it was caught, by what, and in how many seconds."""

    fault: Fault
    is_caught: bool
    said: str
    seconds: float


class Builder:
    """Compiles what a fault touches, against objects of everything else that are made once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.torch_headers = directory / "torch_headers.h"
        plan = plan_build({**os.environ, "FASTCLIP_BUILD": "cpu"})
        if plan.compiler is None:
            raise SystemExit(f"{HARNESS_FAILED}: there is no compiler")
        self.compiler = plan.compiler
        self.torch = find_torch()
        self.sources = [source.relative_to(ROOT) for source in plan.sources(has_cuda=False)]
        self.package = installed_package()

    def precompile_torch(self) -> None:
        """Read torch's headers once: they take most of the time in which the binding compiles."""
        lines = {
            line
            for source in (self.directory / "csrc").rglob("*")
            if source.suffix in (".h", ".cpp")
            for line in source.read_text(encoding="utf-8").splitlines()
            if re.match("#include <(torch|ATen|c10)/", line)
        }
        self.torch_headers.write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")
        flags = ["-x", "c++-header"]
        self._run_compiler(self.torch_headers, flags, self.torch_headers.with_suffix(".h.gch"))

    def compile(self, tree: Path, source: Path) -> None:
        """Compile ``tree / source`` to an object beside it, with setup.py's flags."""
        path = tree / source
        dependencies = ["-MMD", "-MF", str(path.with_suffix(".d"))]
        is_binding = path.parent.name != "cpu"
        include = ["-include", str(self.torch_headers)] if is_binding else []
        self._run_compiler(path, [*include, *dependencies], path.with_suffix(".o"))

    def _run_compiler(self, path: Path, extra: Sequence[str], output: Path) -> None:
        # The binding does no work on elements: not optimised, it compiles sooner.
        flags = (
            kernel_flags(self.compiler, path)
            if path.parent.name == "cpu"
            else [*binding_flags(self.compiler, self.torch), "-O0"]
        )
        command = compile_command(self.compiler, path, [*flags, *extra])
        command += ["-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{HARNESS_FAILED}: {path} does not build:\n{done.stderr}")

    def sources_with(self, file: str) -> list[Path]:
        """List the sources that include a file; of the kernels only those that are in use."""
        active = f"kernels_{fastclip.instruction_set()}.cpp"
        return [
            source
            for source in self.sources
            if str(self.directory / file) in included_files(self.directory / source)
            and (source.name == active or not source.name.startswith("kernels_"))
        ]

    def site_with(self, tree: Path, rebuilt: Sequence[Path]) -> Path:
        """Link and return a directory with a copy of the package that holds the result."""
        objects = [
            (tree if source in rebuilt else self.directory) / source.with_suffix(".o")
            for source in self.sources
        ]
        site = tree / "site"
        shutil.copytree(self.package, site / "fastclip", ignore=shutil.ignore_patterns("*.pyc"))
        link(self.compiler, self.torch, objects, next((site / "fastclip").glob("_C*.so")))
        return site


def check_native() -> None:
    """Exit if the installed package has no native extension that runs here."""
    if fastclip.backend_report()["native"]:
        reasons = "; ".join(fastclip.backend_report()["native"])
        raise SystemExit(f"{HARNESS_FAILED}: native cannot run here: {reasons}")


def included_files(source: Path) -> list[str]:
    """Read, of a source that was compiled, which files it includes, itself among them."""
    text = source.with_suffix(".d").read_text(encoding="utf-8").replace("\\\n", " ")
    return [os.path.normpath(name) for name in shlex.split(text.partition(": ")[2])]


def can_show(fault: Fault) -> bool:
    """Return whether this CPU can run what the fault's tests compare."""
    from fastclip import _C  # here: check_native() says it better where there is none

    return not fault.needs_two_sets or len(_C.instruction_sets()) > 1


def plant(builder: Builder, fault: Fault, tree: Path) -> Outcome:
    """Build a copy of the sources with one fault and run the tests that must notice it."""
    began = time.monotonic()
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    plant_text(fault, tree)
    rebuilt = builder.sources_with(fault.file)
    for each in rebuilt:
        builder.compile(tree, each)
    is_caught, said = judge(*run_tests(builder.site_with(tree, rebuilt), fault.tests))
    outcome = Outcome(fault, is_caught, said, time.monotonic() - began)
    print(row("caught" if is_caught else "MISSED", outcome), flush=True)
    return outcome


def row(verdict: str, outcome: Outcome) -> str:
    """Format one line of the table."""
    fault = outcome.fault
    file = fault.file.removeprefix("csrc/")
    return f"{verdict}  {fault.name:54}  {file:21}  {outcome.seconds:4.0f} s  {outcome.said}"


def check_without_faults(builder: Builder, tests: Sequence[str]) -> None:
    """Exit if the tests that are to notice faults fail where there is none."""
    status, output = run_tests(builder.site_with(builder.directory, ()), tests)
    if status != 0:
        raise SystemExit(f"{HARNESS_FAILED}: the tests fail without a fault:\n{output}")


def run_all(faults: Sequence[Fault], jobs: int, scratch: Path) -> list[Outcome]:
    """Build once without a fault, then plant every fault, ``jobs`` at a time."""
    base = scratch / "none"
    shutil.copytree(ROOT / "csrc", base / "csrc")
    builder = Builder(base)
    with ThreadPoolExecutor(jobs) as pool:
        headers = pool.submit(builder.precompile_torch)
        kernels = [source for source in builder.sources if source.parent.name == "cpu"]
        list(pool.map(lambda source: builder.compile(base, source), kernels))
        headers.result()
        for source in builder.sources:
            if source not in kernels:
                builder.compile(base, source)
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
        unharmed = pool.submit(check_without_faults, builder, tests)
        planted = [
            pool.submit(plant, builder, fault, scratch / str(i)) for i, fault in enumerate(faults)
        ]
        try:
            unharmed.result()
            return [future.result() for future in planted]
        except SystemExit:
            pool.shutdown(cancel_futures=True)
            raise


def main() -> int:
    """Run the command line; return the exit status."""
    options = command.parse("Plant faults and see the tests go red.")
    wanted = [fault for fault in FAULTS if options.only in fault.name]
    check_texts(wanted)
    check_native()
    faults = [fault for fault in wanted if can_show(fault)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = run_all(faults, options.jobs, Path(scratch))
    for fault in wanted:
        if fault not in faults:
            print(f"not planted: {fault.name} (this CPU runs one instruction set alone)")
    caught = sum(outcome.is_caught for outcome in outcomes)
    return command.conclude(caught, len(faults), time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
