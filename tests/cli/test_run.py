"""``fastclip run``: a script runs as under python, and clips with fastclip's functions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NORMS = """
import sys
import torch
from torch.nn.utils import clip_grad_norm_

def whose():
    return clip_grad_norm_.__module__

def dtype():
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    parameter.grad = torch.ones(3, dtype=torch.bfloat16)
    return clip_grad_norm_([parameter], 1.0).dtype
"""
SCRIPT = f"""{NORMS}
if __name__ == "__main__":
    import neighbour  # beside the script
    print(sys.argv, dtype(), __name__)
    sys.exit(7)
"""
SPAWNS = f"""{NORMS}
import multiprocessing as mp

def child(queue):
    queue.put(whose())

def parent(queue):
    process = mp.get_context("spawn").Process(target=child, args=(queue,))
    process.start()
    process.join()

if __name__ == "__main__":
    context = mp.get_context("spawn")
    queue = context.Queue()
    for function in (child, parent):
        process = context.Process(target=function, args=(queue,))
        process.start()
        print(queue.get(timeout=60))
        process.join()
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastclip", "run", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text(SCRIPT)
    (tmp_path / "scripts" / "neighbour.py").write_text("")
    return tmp_path


def test_a_script_gets_its_arguments_and_gives_its_status(folder: Path) -> None:
    done = run("scripts/train.py", "--lr", "1", "-m", "--also=x", cwd=folder)
    assert done.returncode == 7, done.stderr
    arguments = ["scripts/train.py", "--lr", "1", "-m", "--also=x"]
    assert done.stdout == f"{arguments} torch.float32 __main__\n"
    assert re.fullmatch(r"fastclip run: \d+ names of torch replaced\n", done.stderr)


def test_a_module(folder: Path) -> None:
    done = run("-m", "train", "--lr", cwd=folder / "scripts")
    assert done.returncode == 7, done.stderr
    arguments = [str(folder / "scripts" / "train.py"), "--lr"]
    assert done.stdout == f"{arguments} torch.float32 __main__\n"


def test_a_module_that_imported_by_name(folder: Path) -> None:
    # Python itself imports the module before the command does, as it does with plugins.
    (folder / "scripts" / "trainer.py").write_text(NORMS)
    (folder / "scripts" / "sitecustomize.py").write_text("import trainer")
    (folder / "late.py").write_text("import trainer\nprint(trainer.whose())")
    environ = {**os.environ, "PYTHONPATH": str(folder / "scripts")}
    for also, module in (((), "fastclip.patch"), (("--also", "trainer"), "fastclip.clip_grad")):
        done = subprocess.run(
            [sys.executable, "-m", "fastclip", "run", *also, "late.py"],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == f"{module}\n", done.stderr


def test_also_finds_a_module_beside_the_script(folder: Path) -> None:
    (folder / "scripts" / "trainer.py").write_text(NORMS)
    (folder / "scripts" / "late.py").write_text("import trainer\nprint(trainer.whose())")
    done = run("--also", "trainer", "scripts/late.py", cwd=folder)
    assert done.stdout == "fastclip.clip_grad\n", done.stderr


def test_processes_that_are_spawned_clip_with_fastclip(folder: Path) -> None:
    (folder / "spawn.py").write_text(SPAWNS)
    done = run("spawn.py", cwd=folder)
    assert done.stdout == "fastclip.clip_grad\n" * 2, done.stderr
    plain = subprocess.run(
        [sys.executable, "spawn.py"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert plain.stdout == "torch.nn.utils.clip_grad\n" * 2


def test_torchrun_starts_it(folder: Path) -> None:
    (folder / "rank.py").write_text(f"{NORMS}\nprint(sys.argv[1:], dtype())\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "fastclip", "run", "rank.py", "--lr"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("['--lr'] torch.float32") == 2, done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("no.py",), "fastclip run: there is no script no.py\n"),
        (("--also", "json", "scripts/train.py"), "module json holds none of torch's clipping"),
        (("--also", "no_such", "scripts/train.py"), "No module named 'no_such'"),
    ],
)
def test_what_cannot_run_says_why(folder: Path, arguments: tuple[str, ...], text: str) -> None:
    done = run(*arguments, cwd=folder)
    assert done.returncode == 2
    assert text in done.stderr and done.stdout == ""


def test_an_error_of_the_script_is_its_own(folder: Path) -> None:
    (folder / "fails.py").write_text("raise ZeroDivisionError('here')")
    done = run("fails.py", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: here\n")
    assert 'fails.py", line 1' in done.stderr
