"""Runs of the build as pip and build make them, for test_build.py and test_wheel.py."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

from source_tree import ROOT

# Runs one PEP 517 hook and prints the name of the file that it made.
HOOK = "from setuptools import build_meta; import sys; print(build_meta.{hook}(sys.argv[1]))"
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
FOLDERS = ("build_support", "csrc", "fastclip")
NOT_INHERITED = (
    "CFLAGS",
    "CPPFLAGS",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "CXXFLAGS",
    "FASTCLIP_BUILD",
    "FASTCLIP_LABEL",
    "LDFLAGS",
    "MAX_JOBS",
    "PYTHONPATH",
    "TORCH_CUDA_ARCH_LIST",
)


def copy_tree(copy: Path) -> Path:
    """Copy the source tree, with nothing built in it, into the directory ``copy``."""
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    return copy


def link_setuptools(packages: Path) -> None:
    """Make setuptools importable from the directory ``packages``."""
    installed = Path(str(importlib.import_module("setuptools").__file__)).parent.parent
    # Its metadata come along, by which it finds its own plug-ins.
    for path in (*installed.glob("setuptools*"), installed / "_distutils_hack"):
        (packages / path.name).symlink_to(path)


def isolated_environment(place: Path) -> Path:
    """Make an environment as uv and build do, with setuptools and no torch; return its Python."""
    venv.create(place, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    link_setuptools(place / "lib" / version / "site-packages")
    return place / "bin" / "python"


def run_python(
    code: str,
    *arguments: str,
    cwd: Path,
    python: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process, with ``environ`` and none of NOT_INHERITED."""
    inherited = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
    return subprocess.run(
        [str(python or sys.executable), "-c", code, *arguments],
        cwd=cwd,
        env={**inherited, **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def run_hook(
    hook: str,
    tree: Path,
    out: Path,
    python: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a build hook, build_wheel or build_sdist, which leaves its file in ``out``."""
    return run_python(HOOK.format(hook=hook), str(out), cwd=tree, python=python, environ=environ)


def made(done: subprocess.CompletedProcess[str], out: Path) -> Path:
    """Return the file that a hook made."""
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def wheel_info(wheel: Path) -> dict[str, object]:
    """Return the build record in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("fastclip/_build_info.json"))


def unpack(wheel: Path, place: Path) -> Path:
    """Unpack a wheel and return the directory that can be imported from."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place
