"""Runs of tests against a copy of the installed package, and what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from texts import ROOT

TIMEOUT = 150
"""Seconds until a run of tests counts as hanging."""

TEST_ENVIRONMENT = {
    "FASTCLIP_REQUIRE_NATIVE": "1",
    # None of these tests needs a plugin, and each run would load them all.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "TRITON_INTERPRET": "1",
    # pytest's summary fits what went wrong in a line, or leaves it out.
    "COLUMNS": "400",
}

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""Signals of a process that breaks by itself; others come from outside and judge nothing."""

HARNESS_FAILED = "the mutants could not be judged"


def installed_package() -> Path:
    """Return the directory of the installed package."""
    spec = importlib.util.find_spec("fastclip")
    if spec is None or spec.origin is None:
        raise SystemExit(f"{HARNESS_FAILED}: fastclip is not installed")
    return Path(spec.origin).parent


def run_tests(site: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests against the package in ``site``; return the exit status and the output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    command += [str(ROOT / "tests" / test) for test in tests]
    # From the copy's directory: the interpreter must not find the tree's own fastclip before it.
    running = subprocess.Popen(
        command,
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site), **TEST_ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = running.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        return -signal.SIGALRM, f"no end after {TIMEOUT} s"
    return running.returncode, output


def judge(status: int, output: str) -> tuple[bool, str]:
    """Return whether a run of tests noticed something, and which test it was."""
    if -status in CRASHES:
        where = re.search(r'(test_\w+\.py)", line \d+ in (test_\w+)', output)
        test = f" in {where[1]}::{where[2]}" if where else ""
        return True, f"crash ({signal.Signals(-status).name}){test}"
    failed = re.findall(r"^FAILED \S*?(\w+\.py::[^\s\[]+)", output, re.MULTILINE)
    if status == 1 and failed:
        return True, ", ".join(dict.fromkeys(failed))
    if status == 0:
        return False, "no test failed"
    raise SystemExit(f"{HARNESS_FAILED}: pytest ended with status {status}:\n{output}")
