"""Plant each fault of triton_faults.py in the Triton kernels and see that a test notices.

    python tests/mutants/triton_run.py [--only WORD] [--jobs N]

Needs fastclip installed, and a triton whose interpreter runs its kernels. What the interpreter
cannot show is not planted: a missing barrier, say, or an offset beyond 32 bits.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from compileall import compile_dir
from concurrent.futures import Executor
from functools import partial
from importlib.util import cache_from_source
from pathlib import Path

from planting import HARNESS_FAILED, ROOT, Planter, Verdict, plant_text, run
from pytest_runs import PytestRuns, installed_package, judge
from triton_faults import FAULTS, FOLDER, TritonFault


def make_package(site: Path) -> Path:
    """Copy the installed package, which has the extension, with the tree's Triton kernels."""
    shutil.copytree(installed_package(), site / "fastclip", ignore=shutil.ignore_patterns("triton"))
    shutil.copytree(ROOT / FOLDER, site / FOLDER, ignore=shutil.ignore_patterns("*.pyc"))
    compile_dir(site, quiet=1)
    return site


def judge_assertion(fault: TritonFault, status: int, output: str) -> Verdict:
    """Decide whether an assertion failed, and which: code that does not run has shown nothing."""
    is_caught, said = judge(status, output)
    if not is_caught:
        return Verdict(False, said)
    failed = re.search(r"^FAILED .*? - (assert .*|AssertionError.*)", output, re.MULTILINE)
    if not failed:
        raise SystemExit(f"{HARNESS_FAILED}: no assertion failed, but something else:\n{output}")
    return Verdict(True, f"{fault.test.partition('::')[2]}: {failed[1]}")


class TritonPlanter(Planter[TritonFault]):
    """Runs tests against copies of the package."""

    def __init__(self, tests: PytestRuns) -> None:
        self.tests = tests

    def prepare(
        self, faults: Sequence[TritonFault], scratch: Path, _: Executor
    ) -> Sequence[Callable[[], None]]:
        """Copy the package without a fault; return the check that all tests pass there."""
        self.base = make_package(scratch / "none")
        tests = list(dict.fromkeys(fault.test for fault in faults))
        return [partial(self.tests.check_without_faults, self.base, tests)]

    def plant(self, fault: TritonFault, tree: Path) -> Verdict:
        """Run the test that must notice a fault on a copy of the package with it."""
        site = tree / "site"
        shutil.copytree(self.base / "fastclip", site / "fastclip")
        # What is compiled there is without the fault.
        Path(cache_from_source(plant_text(fault, site))).unlink()
        return judge_assertion(fault, *self.tests.run(site, [fault.test]))


def main() -> int:
    """Run the command line; return the exit status."""
    with PytestRuns() as tests:
        return run(TritonPlanter(tests), FAULTS)


if __name__ == "__main__":
    sys.exit(main())
