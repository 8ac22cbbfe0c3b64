"""Plant each fault of cpu_faults.py in the CPU sources, build, and see that a test notices.

    python tests/mutants/cpu_run.py [--only WORD] [--jobs N]

Needs fastclip installed with its native extension.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from cpu_faults import FAULTS, CpuFault
from planting import HARNESS_FAILED, ROOT, Planter, Verdict, plant_text, run
from pytest_runs import PytestRuns, installed_package, judge

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

# The binding does no work on elements: not optimised, it compiles sooner. And the compiler need not
# look for memory to free, in the 500 MB of the precompiled header among others.
SOONER = ("-O0", "-w", "--param=ggc-min-expand=10000", "--param=ggc-min-heapsize=4000000")


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
        flags = (
            kernel_flags(self.compiler, path)
            if path.parent.name == "cpu"
            else [*binding_flags(self.compiler, self.torch), *SOONER]
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
        shutil.copytree(self.package, site / "fastclip")
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


class CpuPlanter(Planter[CpuFault]):
    """Builds the extension with a fault and runs tests against it."""

    def __init__(self, tests: PytestRuns) -> None:
        self.tests = tests

    def why_not(self, fault: CpuFault) -> str | None:
        """Say why a fault cannot show on this machine; None if it can."""
        from fastclip import _C  # here: check_native() says it better where there is none

        if fault.needs_two_sets and len(_C.instruction_sets()) == 1:
            return "this CPU runs one instruction set alone"
        return None

    def prepare(
        self, faults: Sequence[CpuFault], scratch: Path, pool: Executor
    ) -> Sequence[Callable[[], None]]:
        """Build all without a fault; return the check that all tests pass there."""
        base = scratch / "none"
        shutil.copytree(ROOT / "csrc", base / "csrc")
        self.builder = builder = Builder(base)
        headers = pool.submit(builder.precompile_torch)
        kernels = [source for source in builder.sources if source.parent.name == "cpu"]
        list(pool.map(lambda source: builder.compile(base, source), kernels))
        headers.result()
        for source in builder.sources:
            if source not in kernels:
                builder.compile(base, source)
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
        return [partial(self.tests.check_without_faults, builder.site_with(base, ()), tests)]

    def plant(self, fault: CpuFault, tree: Path) -> Verdict:
        """Build a copy of the sources with one fault and run the tests that must notice it."""
        shutil.copytree(ROOT / "csrc", tree / "csrc")
        plant_text(fault, tree)
        rebuilt = self.builder.sources_with(fault.file)
        for each in rebuilt:
            self.builder.compile(tree, each)
        return judge(*self.tests.run(self.builder.site_with(tree, rebuilt), fault.tests))


def main() -> int:
    """Run the command line; return the exit status."""
    check_native()
    with PytestRuns() as tests:
        return run(CpuPlanter(tests), FAULTS)


if __name__ == "__main__":
    sys.exit(main())
