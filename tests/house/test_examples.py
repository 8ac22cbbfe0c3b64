"""Each example runs with the installed fastclip, and says what torch's own clips would."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from documents import EXAMPLES
from source_tree import SUPPORT

NEEDS_A_GPU = "examples/cuda_graphs.py needs a GPU, and torch sees none here."
# Each example by its lines, with "#" where a number stands.
OUTPUTS = {
    "amp.py": [f"step {n}: norm #, then a scale of #" for n in range(3)],
    "checkpoint.py": ["the norm was #", "and after the clip #"],
    "compiled.py": ["the norm was #, in one graph", "the norm of a compiled step was #"],
    "cuda_graphs.py": ["the norm was #", "and of gradients four times as large #"],
    "ddp.py": ["the norm of both micro-batches was #"],
    "error_names_parameter.py": [
        "tensor(#)",
        "tensor(#) tensor([#, #])",
        "RuntimeError: ...; non-finite gradients: weight (4, 3)",
    ],
    "finetune.py": [
        "the norm of the step was #",
        "the norm of the step was #",
        "of adapter.0.weight, adapter.1.weight",
    ],
    "fsdp2.py": ["the norm of all shards was #"],
    "gradclipper.py": [
        "the norm of the last step was #",
        "the largest of its parameters' norms was #, of 2.weight",
    ],
    "meshes.py": ["the norm over both meshes was #", "and after the clip #"],
    "on_step.py": ["the norm of the step was #", "the gradients' norm is now #"],
    "patch_torch.py": ["the norm of the trainer's step was #"],
    "train_loop.py": ["nine of ten norms are at most #", "the norm of the last step was #"],
}
DISTRIBUTED = {"ddp.py", "fsdp2.py", "meshes.py"}
NUMBER = re.compile(r"(?<![\w.])(?:\d+\.\d*|\d{3,}|nan)(?![\w.])")
# Both print four decimal places, and each may round its norm the other way.
TOLERANCE = 2e-4


def run(*command: object, cwd: Path) -> list[str]:
    """Run a program in a process apart; return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def numbers(lines: list[str]) -> list[float]:
    return [float(number) for line in lines for number in NUMBER.findall(line)]


def shape(lines: list[str]) -> list[str]:
    return [NUMBER.sub("#", line) for line in lines]


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == set(OUTPUTS)


@pytest.fixture(scope="module")
def stock_lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return what each example prints with torch's own clips: all run in one process."""
    names = [
        name
        for name in OUTPUTS
        if (name != "cuda_graphs.py" or torch.cuda.is_available())
        and (name not in DISTRIBUTED or torch.distributed.is_available())
    ]
    paths = [EXAMPLES / name for name in names]
    lines = run(SUPPORT / "stock_fastclip.py", *paths, cwd=tmp_path_factory.mktemp("stock"))
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("== "):
            found[Path(line.removeprefix("== ")).name] = []
        else:
            list(found.values())[-1].append(line)
    assert list(found) == names
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OUTPUTS))
def test_example_says_what_stock_says(
    name: str, stock_lines: dict[str, list[str]], tmp_path: Path
) -> None:
    if name in DISTRIBUTED and not torch.distributed.is_available():
        pytest.skip("this torch is built without torch.distributed")
    lines = run(EXAMPLES / name, cwd=tmp_path)
    if name == "cuda_graphs.py" and not torch.cuda.is_available():
        assert lines == [NEEDS_A_GPU]
        return
    assert shape(lines) == OUTPUTS[name]
    expected = stock_lines[name]
    assert shape(expected) == OUTPUTS[name]
    assert len(numbers(lines)) > 0
    for number, other in zip(numbers(lines), numbers(expected), strict=True):
        is_same = math.isnan(number) and math.isnan(other)
        assert is_same or math.isclose(number, other, rel_tol=TOLERANCE), (lines, expected)


def test_the_example_that_needs_a_gpu_compiles() -> None:
    compile((EXAMPLES / "cuda_graphs.py").read_text(encoding="utf-8"), "cuda_graphs.py", "exec")


def test_numbers_are_seen_and_names_are_left() -> None:
    lines = ["step 1: norm nan, then a scale of 512", "tensor(4.) of 2.weight (4, 3), 13.9677"]
    assert shape(lines) == ["step 1: norm #, then a scale of #", "tensor(#) of 2.weight (4, 3), #"]
    assert numbers(lines)[1:] == [512, 4, 13.9677]
