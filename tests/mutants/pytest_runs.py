"""Runs of tests against a copy of the installed package, and what they say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING

from planting import HARNESS_FAILED, ROOT, Verdict

if TYPE_CHECKING:
    from fork_server import Request

TIMEOUT = 150
"""Seconds until a run of tests counts as hanging."""

TEST_ENVIRONMENT = {
    "FASTCLIP_REQUIRE_NATIVE": "1",
    # None of these tests needs a plugin, and each run would load them all.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "TRITON_INTERPRET": "1",
    # pytest's summary fits what went wrong in a line, or leaves it out.
    "COLUMNS": "400",
    # NumPy's import would start threads, and a process with threads is not to be forked.
    "OPENBLAS_NUM_THREADS": "1",
}

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""Signals of a process that breaks by itself; others come from outside and judge nothing."""


def installed_package() -> Path:
    """Return the directory of the installed package."""
    spec = importlib.util.find_spec("fastclip")
    if spec is None or spec.origin is None:
        raise SystemExit(f"{HARNESS_FAILED}: fastclip is not installed")
    return Path(spec.origin).parent


class PytestRuns:
    """Runs tests in forks of processes that are kept: importing torch takes longer than a test.

    A context manager, at whose end the processes end.
    """

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []
        self._idle: LifoQueue[subprocess.Popen[str]] = LifoQueue()

    def __enter__(self) -> PytestRuns:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._started:
            server.communicate()

    def run(self, site: Path, tests: Sequence[str], timeout: int = TIMEOUT) -> tuple[int, str]:
        """Run tests against the package in ``site``; return the exit status and the output."""
        output = site / "output.txt"
        options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", f"--basetemp={site / 'tmp'}"]
        options += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
        request: Request = {
            "site": str(site),
            "arguments": [*options, *(str(ROOT / "tests" / test) for test in tests)],
            "output": str(output),
            "timeout": timeout,
        }
        try:
            server = self._idle.get_nowait()
        except Empty:
            server = self._start()
        status = _ask(server, json.dumps(request))
        self._idle.put(server)
        said = output.read_text(encoding="utf-8", errors="replace")
        if status == -signal.SIGALRM:
            said += f"no end after {timeout} s"
        return status, said

    def check_without_faults(self, site: Path, tests: Sequence[str]) -> None:
        """Exit if the tests that are to notice faults fail where there is none."""
        status, output = self.run(site, tests)
        if status != 0:
            raise SystemExit(f"{HARNESS_FAILED}: the tests fail without a fault:\n{output}")

    def _start(self) -> subprocess.Popen[str]:
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            env={**os.environ, **TEST_ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(server)
        return server


def _ask(server: subprocess.Popen[str], request: str) -> int:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{request}\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise SystemExit(f"{HARNESS_FAILED}: the process that runs the tests has ended")
    return int(answer)


def judge(status: int, output: str) -> Verdict:
    """Decide whether a run of tests noticed something, and which test it was."""
    if -status in CRASHES:
        where = re.search(r'(test_\w+\.py)", line \d+ in (test_\w+)', output)
        test = f" in {where[1]}::{where[2]}" if where else ""
        return Verdict(True, f"crash ({signal.Signals(-status).name}){test}")
    failed = re.findall(r"^FAILED \S*?(\w+\.py::[^\s\[]+)", output, re.MULTILINE)
    if status == 1 and failed:
        return Verdict(True, ", ".join(dict.fromkeys(failed)))
    if status == 0:
        return Verdict(False, "no test failed")
    raise SystemExit(f"{HARNESS_FAILED}: pytest ended with status {status}:\n{output}")
