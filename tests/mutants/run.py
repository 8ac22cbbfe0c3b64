"""Plant each fault of faults.py in the CPU sources, build, and see that a test notices.

    python tests/mutants/run.py [--only WORD] [--jobs N]

Needs fastclip installed with its native extension. Exit status 1 if a fault goes unnoticed, if its
text does not stand in the source exactly once, or if the tests fail without any fault.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 150
"""Seconds until a run of tests counts as hanging."""

BUILD = """
import sys
from pathlib import Path
from build_support.extension import build_extension
from build_support.plan import plan_build
from build_support.torch_on_disk import find_torch
build_extension(plan_build(), find_torch(), Path(sys.argv[1]), Path("objects"))
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one fault: whether it was caught, by what, and in how many seconds."""

    name: str
    is_caught: bool
    said: str
    seconds: float


class Workshop:
    """A copy of the sources and of the installed package, in which faults are planted."""

    def __init__(self, directory: Path) -> None:
        self.tree = directory / "tree"
        for name in ("csrc", "build_support"):
            shutil.copytree(ROOT / name, self.tree / name)
        spec = importlib.util.find_spec("fastclip")
        if spec is None or spec.origin is None:
            raise SystemExit("mutants: fastclip is not installed")
        self.package = directory / "site" / "fastclip"
        shutil.copytree(Path(spec.origin).parent, self.package)
        built = list(self.package.glob("_C*.so"))
        if len(built) != 1:
            raise SystemExit("mutants: fastclip is installed without its native extension")
        self.extension = built[0]

    def build(self) -> subprocess.CompletedProcess[str]:
        """Build the extension from the tree as it is. Optimised less: it is built often."""
        environ = {**os.environ, "CXXFLAGS": "-O1", "MAX_JOBS": "1", "FASTCLIP_BUILD": "cpu"}
        return subprocess.run(
            [sys.executable, "-c", BUILD, str(self.extension)],
            cwd=self.tree,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def run_tests(self, tests: Sequence[str]) -> tuple[int, str]:
        """Run tests against the copy of the package; a negative status for a crash or a hang."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
        command += [str(ROOT / "tests" / test) for test in tests]
        # The interpreter must not find the tree's own fastclip before the copy.
        environ = {**os.environ, "PYTHONPATH": str(self.package.parent)}
        try:
            done = subprocess.run(
                command,
                cwd=self.tree,
                env=environ,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return -1, f"no end after {TIMEOUT} s"
        return done.returncode, done.stdout + done.stderr

    def plant(self, fault: Fault) -> Outcome:
        """Plant a fault, build, run its tests, and put the source back."""
        began = time.monotonic()
        path = self.tree / fault.file
        source = path.read_text(encoding="utf-8")
        try:
            path.write_text(source.replace(fault.old, fault.new), encoding="utf-8")
            built = self.build()
            if built.returncode != 0:
                said = f"does not build: {built.stderr.strip()[-400:]}"
                return Outcome(fault.name, False, said, time.monotonic() - began)
            status, output = self.run_tests(fault.tests)
        finally:
            path.write_text(source, encoding="utf-8")
        is_caught, said = judge(status, output)
        return Outcome(fault.name, is_caught, said, time.monotonic() - began)


def judge(status: int, output: str) -> tuple[bool, str]:
    """Say whether a run of tests noticed something, and which test it was."""
    if status < 0:
        return True, output if "no end" in output else f"crash (signal {-status})"
    if status == 1:
        failed = re.findall(r"^(?:FAILED|ERROR) \S*?(\w+\.py::[^\s\[]+)", output, re.MULTILINE)
        return True, ", ".join(dict.fromkeys(failed)) or "a failed test"
    if status == 0:
        return False, "no test failed"
    return False, f"pytest ended with status {status}: {output.strip()[-400:]}"


def check_texts() -> None:
    """Exit if a fault's text does not stand in its source exactly once."""
    for fault in FAULTS:
        found = (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old)
        if found != 1:
            raise SystemExit(
                f'mutants: "{fault.name}": its text stands {found} times in {fault.file}'
            )


def run_all(faults: Sequence[Fault], jobs: int, scratch: Path) -> list[Outcome]:
    """Plant every fault, ``jobs`` at a time, after a run without any."""
    first = Workshop(scratch / "0")
    built = first.build()
    if built.returncode != 0:
        raise SystemExit(f"mutants: the sources do not build:\n{built.stderr}")
    tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    status, output = first.run_tests(tests)
    if status != 0:
        raise SystemExit(f"mutants: the tests fail without a fault:\n{output}")
    workshops: queue.SimpleQueue[Workshop] = queue.SimpleQueue()
    workshops.put(first)
    for number in range(1, jobs):
        workshop = Workshop(scratch / str(number))
        workshop.build()
        workshops.put(workshop)

    def plant(fault: Fault) -> Outcome:
        workshop = workshops.get()
        try:
            outcome = workshop.plant(fault)
        finally:
            workshops.put(workshop)
        mark = "caught" if outcome.is_caught else "MISSED"
        print(f"{mark}  {outcome.name:45}  {outcome.seconds:5.0f} s  {outcome.said}", flush=True)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(plant, faults))


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Plant faults and see the tests go red.")
    parser.add_argument("--only", default="", help="only faults whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time; default 2")
    options = parser.parse_args()
    check_texts()
    faults = [fault for fault in FAULTS if options.only in fault.name]
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = run_all(faults, options.jobs, Path(scratch))
    missed = [outcome.name for outcome in outcomes if not outcome.is_caught]
    print(f"{len(outcomes) - len(missed)} of {len(outcomes)} planted faults were caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
