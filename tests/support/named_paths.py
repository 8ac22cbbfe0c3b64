"""The paths that comments and docstrings name, and those among them that do not exist."""

import ast
import io
import os
import re
import tokenize
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from source_tree import ROOT

FOLDERS = ("csrc", "fastclip", "build_support", "tests", "bench")
FILES = ("setup.py", "Makefile", "pyproject.toml")
CXX = (".c", ".cpp", ".cu", ".cuh", ".h")
PYTHON = (".py", ".pyi")
ENDINGS = ("py", "pyi", "h", "cuh", "cu", "cpp", "md", "txt", "sh")

# A string of C++, which may contain two slashes, or a comment.
CXX_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|(//.*)')
HASH_COMMENT = re.compile(r"(?:^|\s)(#.*)")
# A path with a slash, or a file name with one of the endings.
PATH = re.compile(
    r"(?<![\w./*-])(?:(?:[\w.*-]+/)+(?:[\w.*-]*\w)?|[\w*-][\w.*-]*\.(?:" + "|".join(ENDINGS) + r"))"
    r"(?![\w/*])"
)

ELSEWHERE = {
    "1/p": "an exponent",
    "GB/s": "a unit",
    "TB/s": "a unit",
    "dist/": "make wheel makes it",
    "dist/torch_fastclip-....whl": "make wheel makes it",
    "build/emulated": "the tests over the emulator make it",
    "./ceilings": "a program that is built from the source beside it",
    "./launchers_bench": "a program that is built from the source beside it",
    "lists.txt": "bench/launcher_lists.py writes it",
    "report.md": "bench/gpu/run.py writes it",
    "FOLDER/partial.jsonl": "bench/gpu/run.py writes it",
    "file.py": "stands for any test file",
    "a.cpp": "a test writes it",
    "b.cpp": "a test writes it",
    "torch/extension.h": "one of torch's headers",
    "ATen/native/cuda/ForeachReduceOp.cu": "one of torch's sources",
    "ATen/native/cuda/MultiTensorApply.cuh": "one of torch's sources",
    "ATen/native/cuda/Shape.cu": "one of torch's sources",
    "MultiTensorApply.cuh": "one of torch's sources",
}
"""What looks like a path and is none of this tree's, with the reason."""


def sources() -> dict[str, str]:
    """Return the text of each file whose comments are checked, by its path from the root."""
    paths = [ROOT / name for name in FILES]
    for folder in FOLDERS:
        paths += [p for p in (ROOT / folder).rglob("*") if p.suffix in (*CXX, *PYTHON, ".sh")]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in paths}


def tree() -> set[str]:
    """Return the paths, from the root, of the files and folders that are not made by a build."""
    found: set[str] = set()
    for top in ROOT.iterdir():
        if top.name in ("build", "dist") or (top.name.startswith(".") and top.name != ".ci"):
            continue
        found.add(top.name)
        found |= {path.relative_to(ROOT).as_posix() for path in top.rglob("*")}
    return {path for path in found if "__pycache__" not in path}


def comments(file: str, text: str) -> Iterator[str]:
    """Yield the comments and docstrings of a file, line breaks included."""
    suffix = PurePosixPath(file).suffix
    if suffix in PYTHON:
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        yield from (token.string for token in tokens if token.type == tokenize.COMMENT)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                yield str(node.value.value)
    elif suffix in CXX:
        yield from filter(None, CXX_COMMENT.findall(text))
    else:
        yield from (match for line in text.splitlines() for match in HASH_COMMENT.findall(line))


def exists(path: str, file: str, known: Collection[str]) -> bool:
    """Return whether a path that a file names is one of the tree's.

    It may start at the root or at the file's folder; a file name alone may stand for any file if
    there is only one of that name. ``*`` stands for any characters within a name.
    """
    pattern = path.rstrip("/")
    beside = os.path.normpath(PurePosixPath(file).parent / pattern)
    for wanted in (pattern, beside):
        if wanted in known or any(_matches(one, wanted) for one in known if "*" in wanted):
            return True
    if "/" in path:
        return False
    return sum(PurePosixPath(one).name == path for one in known) == 1


def named(texts: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield every file with each path that its comments name."""
    for file, text in texts.items():
        for comment in comments(file, text):
            yield from ((file, path) for path in PATH.findall(comment))


def wrong_paths(texts: dict[str, str], known: Collection[str]) -> list[str]:
    """List the paths that do not exist, as "file: path"."""
    return [
        f"{file}: {path}"
        for file, path in named(texts)
        if path not in ELSEWHERE and not exists(path, file, known)
    ]


def _matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and Path(path).match(pattern)
