"""Run tests in forks of this process, which has imported what takes long, but not fastclip.

A request is a line of standard input: a JSON object with the fields of ``Request``. The answer is a
line of standard output: the exit status, negative for a signal.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import numpy  # noqa: F401
import pytest
import torch.utils.cpp_extension  # noqa: F401

with suppress(ImportError):
    import triton.experimental.gluon  # noqa: F401

TASKS = Path("/proc/self/task")


class Request(TypedDict):
    """A run of tests.

    Attributes:
        site: A directory with the package to be tested.
        arguments: pytest's.
        output: The file for what is said.
        timeout: Seconds until the run is killed by SIGALRM.
    """

    site: str
    arguments: list[str]
    output: str
    timeout: int


def check_can_fork() -> None:
    """Exit if a fork would lack something: threads, or the package that it is to import."""
    if TASKS.is_dir() and len(list(TASKS.iterdir())) > 1:
        raise SystemExit("an import has started threads, which a fork does not have")
    if "fastclip" in sys.modules:
        raise SystemExit("fastclip is imported before the fork")


def redirect(path: str, *descriptors: int) -> None:
    """Let descriptors, such as standard output's 1, stand for a file."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    os.close(opened)


def run_tests(request: Request) -> int:
    """Run a request's tests, in a process that does nothing else; return pytest's status."""
    os.setsid()
    signal.alarm(request["timeout"])
    redirect(os.devnull, 0)
    redirect(request["output"], 1, 2)
    # As for an interpreter that starts in the site: it must not find another fastclip before.
    os.chdir(request["site"])
    os.environ["PYTHONPATH"] = request["site"]
    sys.path[0] = request["site"]
    import fastclip

    if Path(fastclip.__file__).parent != Path(request["site"], "fastclip"):
        raise SystemExit(f"the tests would run against {fastclip.__file__}")
    status = int(pytest.main(request["arguments"]))
    # At the end of the process Triton says at length what it cannot free.
    sys.stdout.flush()
    redirect(os.devnull, 1, 2)
    return status


def wait(child: int) -> int:
    """Wait for a child, kill what it left behind and return its exit status."""
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    # The child is not reaped yet: no other process can have its number.
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> int:
    """Answer requests until there are no more; return the exit status."""
    check_can_fork()
    # pytest and the end of a process collect garbage, and need not go through what is here now.
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return run_tests(json.loads(line))
        print(wait(child), flush=True)
    gc.unfreeze()
    return 0


if __name__ == "__main__":
    sys.exit(main())
