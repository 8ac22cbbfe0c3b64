"""The programs under bench/cuda and what a GPU's run left under bench/results."""

from __future__ import annotations

import json
import re
import subprocess
from math import prod
from pathlib import Path

import pytest
from source_tree import ROOT, cuda
from toolkit import may_skip

from bench.core.shapes import CASES
from bench.core.text import significant
from bench.gpu import launcher_lists
from bench.gpu import results as gpu_results

PROGRAMS = ROOT / "bench" / "cuda"
H200 = gpu_results.H200

NO_NVCC = may_skip("needs nvcc" if cuda.find_toolkit() is None else None)


def commands() -> dict[str, list[str]]:
    """Return the words of each nvcc command that the README gives, by program."""
    text = (PROGRAMS / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = [line.split() for line in text.splitlines() if line.startswith("nvcc ")]
    return {Path(next(w for w in words if w.endswith(".cu"))).name: words for words in found}


def test_the_readme_builds_every_program() -> None:
    assert commands().keys() == {path.name for path in PROGRAMS.glob("*.cu")}


@pytest.mark.slow
@pytest.mark.skipif(NO_NVCC is not None, reason=str(NO_NVCC))
@pytest.mark.parametrize("program", ["ceilings.cu", "launchers_bench.cu"])
def test_a_program_compiles_as_the_readme_says(program: str, tmp_path: Path) -> None:
    toolkit = cuda.find_toolkit()
    assert toolkit is not None
    words = commands()[program]
    # The program alone: the kernels that it is linked with are compiled by other tests.
    others = {"-o", words[words.index("-o") + 1]} | {w for w in words if w.startswith("csrc/cuda/")}
    flags = [word for word in words[1:] if word not in others - {"csrc/cuda"}]
    done = subprocess.run(
        [str(toolkit.nvcc), *flags, "-c", "-o", str(tmp_path / "program.o")],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_sources_in_the_readmes_command_exist() -> None:
    words = " ".join(commands()["launchers_bench.cu"])
    names = re.findall(r"csrc/cuda/\{([\w,]+)\}\.cu", words)[0].split(",")
    sources = [f"csrc/cuda/{name}.cu" for name in names] + re.findall(r"csrc/\S+\.cpp", words)
    # Every kernel file but the one that stands in where there are no kernels.
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc" / "cuda").glob("*.c*")}
    assert set(sources) == {name for name in there if not name.endswith((".cuh", "absent.cpp"))}


def test_the_lists_are_those_of_the_benchmark() -> None:
    lists: dict[str, list[int]] = {}
    for line in launcher_lists.lines():
        name, size, *counts = line.split()
        assert int(size) == len(counts)
        lists[name] = list(map(int, counts))
    for case in CASES.values():
        assert lists[case.name] == [prod(shape) for shape in case.shapes]
    assert lists.keys() - CASES.keys() == {"1x4e6", "1x25e6", "64x64k"}


def test_the_readme_tells_of_every_result_and_of_no_other() -> None:
    text = (H200 / "README.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]*\.(?:txt|jsonl)[^|]*) \|", text, re.MULTILINE)
    told = [name for cell in cells for name in cell.split(", ")]
    assert sorted(told) == sorted(p.name for p in H200.iterdir() if p.name != "README.md")


def test_documents_cite_results_that_exist() -> None:
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    cited = {
        name
        for document in documents
        for name in re.findall(r"bench/results/[\w./-]*\w", document.read_text(encoding="utf-8"))
    }
    assert any(name.startswith("bench/results/2026-11-28-h200") for name in cited)
    assert [name for name in sorted(cited) if not (ROOT / name).exists()] == []


def test_no_result_names_a_place_of_the_machine() -> None:
    for path in H200.iterdir():
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"(?<![\w.:])/[\w.-]+/[\w.-]+", text) == [], path.name


def test_the_rows_are_of_right_results() -> None:
    rows = [json.loads(line) for line in (H200 / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 21
    assert [row["failures"] for row in rows] == [[]] * 21
    for row in rows:
        case = CASES[row["case"]]
        item_bytes = {"float32": 4, "bfloat16": 2}[row["dtype"]]
        assert row["gradient_bytes"] == case.n_elements * item_bytes


def test_the_times_told_are_those_that_were_measured() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = text.partition("| one NVIDIA H200 |")[2].partition("\n\n")[0].splitlines()[2:]
    entrants = [gpu_results.device_microseconds(name) for name in ("stock", "native fused")]
    cases = ("gpt2-124m", "llama-3-8b-scaled", "resnet-50", "lora-7b")
    for line, case in zip(table, cases, strict=True):
        wanted = [
            " / ".join(significant(times[case, dtype, clipped]) for clipped in (False, True))
            for dtype in ("float32", "bfloat16")
            for times in entrants
        ]
        assert [cell.strip() for cell in line.strip("|").split("|")][1:] == wanted
