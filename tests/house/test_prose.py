"""Comments and docstrings: the paths that they name exist, and predicates say what they return."""

import re

import pytest
from named_paths import ELSEWHERE, comments, named, sources, tree, wrong_paths

# The words stand apart here, so that this file passes its own test.
PREDICATE = re.compile(r"\b(?:Tell|Say)s?" + r"\s+whether\b")


def test_every_named_path_exists() -> None:
    texts = sources()
    assert wrong_paths(texts, tree()) == []
    assert len(list(named(texts))) > 100


def test_every_exception_is_named_somewhere() -> None:
    assert set(ELSEWHERE) - {path for _, path in named(sources())} == set()


@pytest.mark.parametrize(
    ("file", "text", "wrong"),
    [
        ("fastclip/planted.py", '"""Documented in docs/nowhere.md."""', "docs/nowhere.md"),
        ("fastclip/planted.py", "x = 1  # see nowhere.py", "nowhere.py"),
        ("fastclip/planted.py", "x = 1\n'''As csrc/no/where/.'''", "csrc/no/where/"),
        ("fastclip/planted.py", "# csrc/cpu/no_*.cpp", "csrc/cpu/no_*.cpp"),
        ("csrc/cuda/planted.cuh", "// as __init__.py says", "__init__.py"),
        ("csrc/cuda/planted.cuh", "int a;  // csrc/cuda/work.h", "csrc/cuda/work.h"),
        ("csrc/cuda/planted.cuh", "// (../nowhere.h)", "../nowhere.h"),
        ("Makefile", "all:  # bench/nowhere.sh, and more", "bench/nowhere.sh"),
    ],
)
def test_a_path_that_does_not_exist_is_seen(file: str, text: str, wrong: str) -> None:
    assert wrong_paths({file: text}, tree()) == [f"{file}: {wrong}"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("csrc/cuda/planted.cuh", "// csrc/gpu_work.h; ../gpu_work.h, clip.cu and docs/."),
        ("csrc/cuda/planted.cuh", 'const char* a = "// no/comment.h";'),
        ("fastclip/planted.py", "# csrc/cpu/kernels_*.cpp (bench/results/), test_bench.py"),
        ("fastclip/planted.py", 'x = "no/docstring.py"  # and/or is no path'),
    ],
)
def test_a_path_that_exists_is_not_reported(file: str, text: str) -> None:
    assert [path for path in wrong_paths({file: text}, tree()) if "and/or" not in path] == []


def test_a_predicate_returns_whether() -> None:
    found = [
        f"{file}: {match.group()}"
        for file, text in sources().items()
        if not file.startswith("bench/")
        for comment in comments(file, text)
        for match in PREDICATE.finditer(comment)
    ]
    assert found == []
