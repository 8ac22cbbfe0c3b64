"""Run the GPU tests under compute-sanitizer's tools, and write a line about each.

    python bench sanitize --sanitizer FILE --out FILE

With torch's caching allocator the tools would miss accesses beyond a tensor; a graph's capture
works with it alone. All tools run, whatever the first ones report. The exit status is 1 if one
reported something, if the tests failed under one, or if there is no compute-sanitizer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

COMPLAINT = 86
"""The exit status for a complaint, which pytest has not."""

SKIPPED = "SKIPPED: compute-sanitizer is not installed"
CLEAN = "nothing reported"
REPORTED, FAILED = BAD_WORDS = ("ERRORS REPORTED", "TESTS FAILED")

LEFT_OUT = (
    "Left out: the tests marked big; under racecheck, initcheck and synccheck those that capture"
    " graphs, which memcheck runs with torch's caching allocator, under which accesses beyond a"
    " tensor may go unseen"
)


class Run(NamedTuple):
    """One tool over some of tests/cuda/test_gpu.py."""

    title: str
    tool: str
    options: Sequence[str] = ()
    graphs: bool = False


# Torch asks the driver for what it may lack, and such a call fails by design: memcheck would count
# it. What is looked for is errors of memory, which are reported as before.
_MEMCHECK = ("--report-api-errors", "no")

RUNS = (
    Run("memcheck", "memcheck", _MEMCHECK),
    *(Run(tool, tool) for tool in ("racecheck", "initcheck", "synccheck")),
    Run("memcheck of the tests that capture graphs", "memcheck", _MEMCHECK, graphs=True),
)


def run(run: Run, options: argparse.Namespace) -> str:
    """Run the tests under one tool, and say how it ended."""
    command = [options.sanitizer, "--tool", run.tool, *run.options]
    command += ["--error-exitcode", str(COMPLAINT), sys.executable, "-m", "pytest"]
    command += ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-m", "gpu and not big"]
    command += ["-k", "graph or capture"] if run.graphs else []
    command += [str(ROOT / "tests" / "cuda" / "test_gpu.py")]
    allocator = {} if run.graphs else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    environ = {**os.environ, "TRITON_INTERPRET": "0", **allocator}
    # Not from the source tree: the tests must see the installed package.
    folder = options.out.parent
    try:
        status = subprocess.run(command, env=environ, cwd=folder, check=False).returncode
    except OSError as error:
        return f"{FAILED}, {error}"
    if status == 0:
        return CLEAN
    return REPORTED if status == COMPLAINT else f"{FAILED}, exit status {status}"


def main(arguments: Sequence[str]) -> int:
    """Write the lines, each as it comes; 1 if one of them is no good news."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sanitizer", required=True, help="the tool; empty: none")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    if "/" in options.sanitizer:  # the tests run in another folder
        options.sanitizer = str(Path(options.sanitizer).absolute())
    lines: list[str] = [] if options.sanitizer else [SKIPPED]
    for chosen in RUNS if options.sanitizer else ():
        lines.append(f"{chosen.title}: {run(chosen, options)}")
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return int(any(word in line for line in lines for word in (*BAD_WORDS, SKIPPED)))
