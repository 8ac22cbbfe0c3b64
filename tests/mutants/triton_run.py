"""Plant each fault of triton_faults.py in the Triton kernels and see that a test notices.

    python tests/mutants/triton_run.py [--only WORD] [--jobs N]

Needs fastclip installed, and a triton whose interpreter runs its kernels. Exit status 1 if a fault
goes unnoticed, if its text does not stand in the source exactly once, or if the tests fail without
any fault. What the interpreter cannot show is not planted: a missing barrier, say, or an offset
beyond 32 bits.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import command
from pytest_runs import HARNESS_FAILED, installed_package, judge, run_tests
from texts import ROOT, check_texts, plant_text
from triton_faults import FAULTS, FOLDER, TritonFault


@dataclass(frozen=True)
class Outcome:
    """What became of one fault: whether it was caught, by what, and in how many seconds."""

    fault: TritonFault
    is_caught: bool
    said: str
    seconds: float


def copy_package(site: Path) -> None:
    """Copy the installed package, which has the extension, with the tree's Triton kernels."""
    shutil.copytree(
        installed_package(), site / "fastclip", ignore=shutil.ignore_patterns("*.pyc", "triton")
    )
    shutil.copytree(ROOT / FOLDER, site / FOLDER, ignore=shutil.ignore_patterns("*.pyc"))


def judge_assertion(status: int, output: str) -> tuple[bool, str]:
    """Return whether an assertion failed, and which: code that does not run shows nothing."""
    is_caught, _ = judge(status, output)
    failed = re.search(r"^FAILED .*? - (assert .*|AssertionError.*)", output, re.MULTILINE)
    if is_caught and not failed:
        raise SystemExit(f"{HARNESS_FAILED}: no assertion failed, but something else:\n{output}")
    return is_caught, failed[1] if failed else "no test failed"


def plant(fault: TritonFault, site: Path) -> Outcome:
    """Run the test that must notice a fault on a copy of the package with it."""
    began = time.monotonic()
    copy_package(site)
    plant_text(fault, site)
    is_caught, said = judge_assertion(*run_tests(site, [fault.test]))
    outcome = Outcome(fault, is_caught, said, time.monotonic() - began)
    print(row(outcome), flush=True)
    shutil.rmtree(site)
    return outcome


def row(outcome: Outcome) -> str:
    """Format one line of the table."""
    fault = outcome.fault
    verdict = "caught" if outcome.is_caught else "MISSED"
    test = fault.test.partition("::")[2]
    said = outcome.said if len(outcome.said) <= 60 else outcome.said[:57] + "..."
    where = f"{fault.name:59}  {Path(fault.file).name:11}  {outcome.seconds:3.0f} s"
    return f"{verdict}  {where}  {test}  {said}"


def check_without_faults(tests: Sequence[str], site: Path) -> None:
    """Exit if the tests that are to notice faults fail where there is none."""
    copy_package(site)
    status, output = run_tests(site, tests)
    if status != 0:
        raise SystemExit(f"{HARNESS_FAILED}: the tests fail without a fault:\n{output}")


def run_all(faults: Sequence[TritonFault], jobs: int, scratch: Path) -> list[Outcome]:
    """Plant every fault, ``jobs`` at a time, beside a run without one."""
    tests = list(dict.fromkeys(fault.test for fault in faults))
    with ThreadPoolExecutor(jobs) as pool:
        unharmed = pool.submit(check_without_faults, tests, scratch / "none")
        planted = [pool.submit(plant, fault, scratch / str(i)) for i, fault in enumerate(faults)]
        try:
            unharmed.result()
            return [future.result() for future in planted]
        except SystemExit:
            pool.shutdown(cancel_futures=True)
            raise


def main() -> int:
    """Run the command line; return the exit status."""
    options = command.parse("Plant faults in the Triton kernels.")
    faults = [fault for fault in FAULTS if options.only in fault.name]
    check_texts(faults)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = run_all(faults, options.jobs, Path(scratch))
    caught = sum(outcome.is_caught for outcome in outcomes)
    return command.conclude(caught, len(faults), time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
