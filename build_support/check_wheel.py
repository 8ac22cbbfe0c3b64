"""Check a wheel as users get it: in a fresh environment with the torch of this one.

``python -m build_support.check_wheel dist/torch_fastclip-....whl`` makes a virtual environment,
installs torch and the wheel into it, and runs ``fastclip doctor`` there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from build_support.plan import INFO_NAME

if TYPE_CHECKING:
    from fastclip.cli.doctor import Diagnosis

NOT_INHERITED = ("FASTCLIP_", "PYTHON", "VIRTUAL_ENV")
"""Prefixes of variables that would lead out of the fresh environment or change it."""

NO_KERNELS = "has no CUDA kernels"
"""A part of the extension's answer if the kernels were left out."""

# Doctor asks this only where torch itself is built with CUDA.
ASK_KERNELS = (
    "import json, fastclip; from fastclip import _C; print(json.dumps(_C.cuda_reasons(0)))"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the wheel that the command line names; return 1 if something is wrong with it."""
    parser = argparse.ArgumentParser(prog="build_support.check_wheel", description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", help="pip requirement; default: the torch installed here")
    options = parser.parse_args(arguments)
    requirement = options.torch or f"torch=={metadata.version('torch')}"
    wheel = options.wheel.resolve()
    with tempfile.TemporaryDirectory() as place:
        try:
            problems = check(wheel, requirement, Path(place))
        except subprocess.CalledProcessError as error:
            problems = [f"{error}\n{error.stdout or ''}{error.stderr or ''}"]
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{wheel.name}: {'NOT ok' if problems else 'ok'}")
    return 1 if problems else 0


def check(wheel: Path, requirement: str, place: Path) -> list[str]:
    """Install ``requirement`` and the wheel into a fresh environment; return what is wrong there.

    Raises:
        subprocess.CalledProcessError: something could not be installed, or a program failed.
    """
    record = read_record(wheel)
    environment = place / "environment"
    print(f"installing {requirement} and {wheel.name} into a fresh environment", flush=True)
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    _run(place, python, "-m", "pip", "install", "--quiet", requirement)
    # No index is needed: the wheel is a file, and torch brought all that it depends on.
    _run(place, python, "-m", "pip", "install", "--quiet", "--no-index", str(wheel))
    doctor = [str(environment / "bin" / "fastclip"), "doctor"]
    # Doctor's JSON is judged below; this is the text that a user would see.
    print(_run(place, *doctor, may_fail=True), flush=True)
    diagnosis: Diagnosis = json.loads(_run(place, *doctor, "--json", may_fail=True))
    problems = judge(record, diagnosis)
    if not problems and record["cuda"] is not None:
        problems = judge_kernels(json.loads(_run(place, python, "-c", ASK_KERNELS)))
    return problems


def read_record(wheel: Path) -> dict[str, object]:
    """Return what a wheel records of its build."""
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read(f"fastclip/{INFO_NAME}"))


def judge(record: dict[str, object], diagnosis: Diagnosis) -> list[str]:
    """Compare what doctor found with the record in the wheel; return what is wrong."""
    problems = [] if diagnosis["ok"] else ["fastclip doctor does not pass"]
    found = {key: value for key, value in diagnosis["build"].items() if key != "version"}
    if found != record:
        problems.append(f"doctor examined another build: {found} (in the wheel: {record})")
    if record["native"]:
        reasons = diagnosis["backends"].get("native", ["it was not examined"])
        problems += [f"native cannot run: {reason}" for reason in reasons]
        if not reasons and not diagnosis["self_check"]["calls"].get("native"):
            problems.append("the self-check did not call native")
    return problems


def judge_kernels(reasons: Sequence[str]) -> list[str]:
    """Return what is wrong with the extension's report on CUDA kernels that it should have."""
    return [f"the extension says: {reason}" for reason in reasons if NO_KERNELS in reason]


def _run(place: Path, *command: str, may_fail: bool = False) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(NOT_INHERITED)}
    done = subprocess.run(command, cwd=place, env=kept, capture_output=True, text=True, check=False)
    # If doctor finds something wrong it prints that; without output it has crashed.
    if done.returncode != 0 and not (may_fail and done.stdout):
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
