"""`python bench PROGRAM`: every program is found, and measures the fastclip that is installed."""

import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from interpreted_triton import why_not_interpreted
from source_tree import ROOT

import fastclip

BENCH = ROOT / "bench"


def door() -> ModuleType:
    spec = spec_from_file_location("door", BENCH / "__main__.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROGRAMS: dict[str, str] = door().PROGRAMS


def run(*command: str | Path, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "TRITON_INTERPRET": "0", **environ},
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_tells_its_options(program: str, tmp_path: Path) -> None:
    if program == "triton_host" and why_not_interpreted() is not None:
        pytest.skip(str(why_not_interpreted()))
    done = run(BENCH, program, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: bench {program} [-h]")


@pytest.mark.parametrize("arguments", [[], ["no_such_program"], ["core"]])
def test_an_unknown_program_is_answered_with_the_list(arguments: list[str], tmp_path: Path) -> None:
    done = run(BENCH, *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"programs: {', '.join(PROGRAMS)}\n")
    assert run(BENCH, "--help", folder=tmp_path).returncode == 0


# A program of a tree whose fastclip and bench are not those of this one.
PROBE = """
import sys
import fastclip
import bench

def main(arguments):
    print(fastclip.__file__, bench.__file__, *arguments, sep="\\n")
    return 7
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return the root of another source tree, whose program cpu tells what it imported."""
    for package in ("fastclip", "bench", "bench/cpu"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    shutil.copy(BENCH / "__main__.py", tmp_path / "bench")
    (tmp_path / "bench" / "cpu" / "run.py").write_text(PROBE)
    return tmp_path


@pytest.mark.parametrize("command", [["bench"], ["-m", "bench"]])
def test_the_installed_fastclip_is_measured(tree: Path, command: list[str]) -> None:
    # Started where a plain import would find the tree's, and with the tree in the path.
    done = run(*command, "cpu", "--quick", folder=tree, PYTHONPATH=str(tree))
    assert done.returncode == 7, done.stderr
    measured, package, *arguments = done.stdout.splitlines()
    assert Path(measured) == Path(str(fastclip.__file__))
    assert Path(package) == tree / "bench" / "__init__.py"
    assert arguments == ["--quick"]


def test_without_an_installed_fastclip_nothing_is_measured(tree: Path) -> None:
    # -S leaves the installed packages out.
    done = run("-S", "bench", "cpu", folder=tree, PYTHONPATH="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "python bench cpu: fastclip is not installed\n"
