"""What the documents say is so: limits of the README, links, paths, code, variables, counts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import cpu_faults
import cuda_faults
import documents
import oracle
import pytest
import torch
import triton_faults
from documents import EXAMPLES, GENERATED, blocks, prose
from samples import parameters
from source_tree import ROOT

import fastclip

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = documents.documents()
BY_HAND = {path: text for path, text in PAGES.items() if path.name not in GENERATED}
SNIPPETS = documents.snippets(documents.example_texts())

MAX_LINES, MAX_COLUMNS, MAX_WORDS = 150, 100, 1300
FIRST = 45
"""The lines of the README that a reader decides by."""

COUNTS = {
    "CPU": len(cpu_faults.FAULTS),
    "CUDA": len(cuda_faults.FAULTS),
    "Triton": len(triton_faults.FAULTS),
}
COUNTED = re.compile(r"\b\d+ (?:planted )?(?:faults|mutants)\b|\b\d+ in the (?:CPU|CUDA|Triton)")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def tree() -> list[str]:
    """List the files of the project: what git knows, or all that lies in an unpacked sdist."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]
    return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]


# The README.


def too_long(text: str) -> list[str]:
    """Say which of the README's limits a text exceeds."""
    lines = text.splitlines()
    wide = [line for line in lines if len(line) > MAX_COLUMNS]
    over = [f"{len(lines)} lines"] if len(lines) > MAX_LINES else []
    over += [f"{len(text.split())} words"] if len(text.split()) > MAX_WORDS else []
    return over + wide


def missing_from_the_start(text: str) -> list[str]:
    """List what the first lines of the README lack: to decide, and to start."""
    start = "\n".join(text.splitlines()[:FIRST])
    table = re.findall(r"^\| (?!gradients|---).*\d \|$", start, re.MULTILINE)
    wanted = {
        "a title": start.startswith("# fastclip\n"),
        "what was measured": "Measured in" in start,
        "what was not run": "Not run:" in start,
        "the import": len(blocks(start, "diff")) == 1,
        "four measured rows": len(table) == 4,
        "the date, the driver, the form": all(
            word in start for word in ("H200: 2026-11-28, driver", "fused form", "default `auto`")
        ),
        "how to install": any("pip install ." in block for block in blocks(start, "bash")),
        "an example": len(blocks(start, "python")) == 1,
        "its output": len(blocks(start, "text")) == 1,
    }
    return [name for name, is_there in wanted.items() if not is_there]


def test_the_readme_keeps_its_limits() -> None:
    assert too_long(README) == []
    assert too_long("word " * (MAX_WORDS + 1)) != []
    assert too_long("a\n" * (MAX_LINES + 1)) == [f"{MAX_LINES + 1} lines"]


def test_the_first_lines_are_enough_to_decide_and_to_start() -> None:
    assert missing_from_the_start(README) == []
    assert missing_from_the_start("\n" * 4 + README.replace("Not run:", "")) == [
        "a title",
        "what was not run",
        "its output",
    ]


def test_the_import_line_is_a_drop_in() -> None:
    (block,) = blocks(README, "diff")
    old, new = (line[1:] for line in block.splitlines())
    names: dict[str, dict[str, object]] = {old: {}, new: {}}
    for line, space in names.items():
        exec(line, space)
    assert names[old]["clip_grad_norm_"] is torch.nn.utils.clip_grad_norm_
    assert names[new]["clip_grad_norm_"] is fastclip.clip_grad_norm_


@pytest.mark.parametrize("page", ("README.md", "docs/guide.md"))
def test_every_block_of_python_is_a_snippet_of_an_example(page: str) -> None:
    text = read(ROOT / page)
    assert len(blocks(text, "python")) > 1
    assert documents.strangers(text, SNIPPETS.values()) == []
    planted = text.replace("model.parameters()", "model.parameter()", 1)
    assert planted != text
    assert len(documents.strangers(planted, SNIPPETS.values())) == 1


def test_every_snippet_is_shown() -> None:
    shown = {
        block for page in (README, read(DOCS / "guide.md")) for block in blocks(page, "python")
    }
    assert [name for name, body in SNIPPETS.items() if body not in shown] == []


def test_the_first_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    program = EXAMPLES / "error_names_parameter.py"
    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (told,) = blocks(README, "text")
    assert blocks(README, "python")[0] == SNIPPETS["first"]
    assert done.stdout.splitlines() == told.splitlines()


def test_the_readmes_ratios_on_a_gpu_are_those_that_were_measured() -> None:
    file = ROOT / "bench" / "results" / "2026-11-28-h200" / "rows.jsonl"
    rows = [json.loads(line) for line in read(file).splitlines()]

    def milliseconds(case: str, dtype: str, clipped: bool, name: str) -> float:
        key = [case, dtype, clipped]
        (row,) = [r for r in rows if [r["case"], r["dtype"], r["clipped"]] == key]
        return row["entries"][name]["device"]["median"]

    told = {
        "| GPT-2 124M, float32, H200 |": ("gpt2-124m", "float32"),
        "| Llama-3-8B with every dimension divided by 4, bfloat16, H200 |": (
            "llama-3-8b-scaled",
            "bfloat16",
        ),
    }
    for begin, (case, dtype) in told.items():
        stock, fused = (
            [milliseconds(case, dtype, clipped, name) for clipped in (False, True)]
            for name in ("stock", "native fused")
        )
        cells = [f"{a / b:.1f}" for a, b in zip(stock, fused, strict=True)]
        assert f"{begin} {cells[0]} | {cells[1]} |" in README
    split, fused = (
        f"{1e3 * milliseconds('gpt2-124m', 'float32', False, f'native {form}'):.1f} us"
        for form in ("split", "fused")
    )
    assert f"two launches: {split} against {fused.removesuffix(' us')} on GPT-2" in README


def numbers(text: str) -> set[str]:
    """Return the numbers in a text, without the commas between thousands."""
    found = re.findall(r"(?<![\w.^-])\d[\d,]*(?:\.\d+)?(?![\w^])", text)
    return {number.replace(",", "") for number in found}


def section(text: str, heading: str) -> str:
    """Return what stands under a heading of the second level."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_readmes_other_numbers_are_those_of_the_benchmarks() -> None:
    page = read(DOCS / "benchmarks.md")
    on_cpu = re.findall(r"^\| (.*), CPU(, other work.*)? \| (.*) \| (.*) \|$", README, re.MULTILINE)
    assert len(on_cpu) == 2
    for name, other_work, idle, due in on_cpu:
        row = f"{name.replace('of 64', 'of 64 elements')}{other_work} | {idle} | {due} |"
        assert f"\n| {row}\n" in page
    where = section(page, "Where it does not win") + section(page, "On a GPU")
    told = section(README, "Benchmarks")
    assert len(numbers(told)) > 8
    assert numbers(told) - numbers(where) == set()
    assert numbers(told.replace("3.6 ms", "3.9 ms")) - numbers(where) == {"3.9"}


# docs/.


def test_the_formula_is_what_a_clip_computes() -> None:
    (block,) = blocks(read(DOCS / "differences.md"), "python")
    source = f"def clip(parameters, max_norm, norm_type=2.0):\n{textwrap.indent(block, '    ')}\n"
    module = ModuleType("formula")
    module.__dict__.update(torch=torch, unique=unique)
    exec(source, module.__dict__)
    formula = module.clip
    grads = [torch.linspace(-3, 2, 700), torch.linspace(0, 1, 31).bfloat16(), torch.zeros(0)]
    for max_norm, norm_type in ((1.0, 2.0), (1e9, 2.0), (0.5, 1.0), (2.0, torch.inf)):
        ours, theirs = (parameters([g.clone() for g in grads]) for _ in range(2))
        ours, theirs = [*ours, ours[0]], [*theirs, theirs[0]]
        norm = fastclip.clip_grad_norm_(ours, max_norm, norm_type)
        expected = formula(theirs, max_norm, norm_type)
        assert norm.dtype == expected.dtype
        torch.testing.assert_close(norm, expected, rtol=oracle.TOLERANCE[torch.float32], atol=0)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def unique(grads: list[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(grad): grad for grad in grads}.values())


def test_every_link_leads_somewhere() -> None:
    assert documents.broken_links(PAGES) == []
    page = DOCS / "planted.md"
    planted = {
        page: "[a](no-such.md) [b](guide.md#no-such) [c](#here) [d](guide.md#threads)\n# Here"
    }
    assert documents.broken_links({**PAGES, **planted}) == [
        "planted.md: no-such.md",
        "planted.md: guide.md#no-such",
    ]


def test_every_path_exists() -> None:
    files = tree()
    assert documents.missing_paths(PAGES, files) == []
    text = "tests/house/test_nothing.py `oracle.py` `no_such.cuh` `csrc/cuda/` `csrc/gone/`"
    assert documents.missing_paths({DOCS / "planted.md": text}, files) == [
        "planted.md: csrc/gone",
        "planted.md: no_such.cuh",
        "planted.md: tests/house/test_nothing.py",
    ]


def test_every_page_is_in_the_index() -> None:
    index = read(DOCS / "README.md")
    linked = {link.partition("#")[0] for link in documents.LINK.findall(index)}
    assert {path.name for path in DOCS.glob("*.md")} - linked == {"README.md"}


def test_lines_of_prose_end_at_100_columns() -> None:
    assert documents.long_lines(BY_HAND, MAX_COLUMNS) == []
    planted = {DOCS / "planted.md": f"{'a' * 101}\n| {'b' * 101} |\n```text\n{'c' * 101}\n```\n"}
    assert documents.long_lines(planted, MAX_COLUMNS) == [f"planted.md: {'a' * 101}"]


def test_every_variable_has_its_row() -> None:
    told = documents.variables_told(read(DOCS / "environment.md"))
    makefile = read(ROOT / "Makefile")
    assert documents.variables_read() - told == set()
    # make's command line may set what the Makefile does.
    known = documents.variables_read() | set(re.findall(r"^(VENV) :=", makefile, re.MULTILINE))
    assert told - known == set()


def test_a_variable_that_is_read_is_seen() -> None:
    python = """
NAME = "BY_CONSTANT"
os.environ["BY_KEY"]; environ.get("BY_GET"); os.getenv("BY_GETENV"); "BY_IN" in os.environ
os.environ.get(NAME); user_flags(environ, "BY_READER"); {**os.environ, "NOT_READ": "1"}
for name in ("BY_LOOP",): environ.get(name)
"""
    assert documents.python_variables(python) == {
        "BY_CONSTANT",
        "BY_KEY",
        "BY_GET",
        "BY_GETENV",
        "BY_IN",
        "BY_READER",
        "BY_LOOP",
    }
    make = "A_FLAG ?= 1\nOURS := 2\nall:\n\t$(OURS) $(A_FLAG) $(FLAGS_OF) $${SHELL_S:-1}\n"
    assert documents.shell_variables(make) == {"A_FLAG", "FLAGS_OF", "SHELL_S"}
    assert documents.c_variables('std::getenv("FROM_C")') == {"FROM_C"}
    assert documents.variables_told("| `ONE`, `TWO` | `no_name` | `NOT_A_NAME` |\n") == {
        "ONE",
        "TWO",
    }


def counts_told(text: str) -> dict[str, int]:
    """Return the planted faults of each kind of source that evidence.md tells of."""
    rows = re.findall(r"^\| (CPU|CUDA|Triton)[^|]*\| (\d+) \| `tests/mutants/", text, re.MULTILINE)
    return {name: int(count) for name, count in rows}


def test_the_planted_faults_are_counted_once() -> None:
    evidence = read(DOCS / "evidence.md")
    assert counts_told(evidence) == COUNTS
    others = {path: text for path, text in BY_HAND.items() if path.name != "evidence.md"}
    others[ROOT / "CHANGELOG.md"] = read(ROOT / "CHANGELOG.md")
    assert [path.name for path, text in others.items() if COUNTED.search(text)] == []
    assert COUNTED.search("with 69 planted faults found") and COUNTED.search(
        "36 in the CPU sources"
    )
    planted = evidence.replace(f"| {COUNTS['CPU']} |", f"| {COUNTS['CPU'] + 1} |")
    assert counts_told(planted) != COUNTS


def test_what_a_reader_is_told_to_run_is_there() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", read(ROOT / "Makefile"), re.MULTILINE))
    named = {
        name
        for text in BY_HAND.values()
        for block in [*blocks(text, "bash"), *re.findall(r"`([^`]*)`", prose(text))]
        for name in re.findall(r"^(?:\w+=\S+ )*make ([a-z][\w-]*)", block, re.MULTILINE)
    }
    assert len(named) > 8
    assert named - targets == set()


def test_pre_commit_runs_the_versions_of_make_lint() -> None:
    pinned = set(re.findall(r'"((?:ruff|clang-format)==[^"]+)"', read(ROOT / "pyproject.toml")))
    hooks = set(re.findall(r'"([\w-]+==[^"]+)"', read(ROOT / ".pre-commit-config.yaml")))
    assert len(pinned) == 2
    assert hooks == pinned
