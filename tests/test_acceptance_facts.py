"""What the report of bench/gpu.py says of the sources, the GPU and its driver."""

import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import ROOT

sys.path.append(str(ROOT / "bench"))

import machine


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_the_commit_is_this_projects_own(tmp_path: Path) -> None:
    try:
        git(tmp_path, "init")
    except FileNotFoundError:
        pytest.skip("needs git")
    git(tmp_path, "commit", "--allow-empty", "-m", "of another project")
    assert machine._commit(tmp_path)
    # Unpacked below another project's root, or beside none.
    inner = tmp_path / "unpacked"
    inner.mkdir()
    assert machine._commit(inner) is None
    assert machine._commit(tmp_path / "nowhere") is None
