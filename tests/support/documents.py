"""What the documents say, read as data: blocks of code, links, headings, paths, variables."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from source_tree import ROOT

EXAMPLES = ROOT / "examples"
GENERATED = ("compiled-code.md", "compiled-triton.md", "counted-work.md", "roofline.md")

SNIPPET = re.compile(
    r"^ *# \[snippet: ([\w-]+)\]\n(.*?)^ *# \[snippet ends\]$", re.MULTILINE | re.DOTALL
)
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)

# What a path in the text begins with, and what a file's name in backticks ends with.
FOLDERS = "bench|build_support|csrc|docs|examples|fastclip|tests"
ENDINGS = "cpp|cu|cuh|h|in|json|jsonl|md|py|pyi|sh|toml|txt|yaml|yml"
IN_TEXT = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/[\w./*-]*\w)(?![\w*])")
IN_BACKTICKS = re.compile(rf"`((?:[\w.*-]+/)+(?:[\w.*-]+)?|[\w.*-]+\.(?:{ENDINGS}))`")
MADE = ("build/", "dist/", "gpu-report/", ".venv/", "report.json", "report.png")
"""What the commands make, which is not in the tree."""


def documents() -> dict[Path, str]:
    """Return the text of each document for people by its path."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def snippets(texts: Iterable[str]) -> dict[str, str]:
    """Return the marked parts of the examples by name, without their indentation."""
    found: dict[str, str] = {}
    for text in texts:
        for name, body in SNIPPET.findall(text):
            if name in found:
                raise ValueError(f"two snippets are called {name}")
            found[name] = textwrap.dedent(body).strip("\n")
    return found


def example_texts() -> list[str]:
    """Return the text of each example."""
    return [path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.py"))]


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, without the indentation of the list they are in."""
    found = [(name, textwrap.dedent(body)) for _, name, body in BLOCK.findall(text)]
    return [body.strip("\n") for name, body in found if name == language]


def strangers(text: str, known: Iterable[str]) -> list[str]:
    """List the blocks of Python that are no snippet, line for line."""
    allowed = set(known)
    return [block for block in blocks(text, "python") if block not in allowed]


def prose(text: str) -> str:
    """Return the text without fenced blocks."""
    return BLOCK.sub("", text)


def anchors(text: str) -> set[str]:
    """Return the fragments that a page's headings can be reached by, as GitHub makes them."""
    names: set[str] = set()
    for heading in HEADING.findall(prose(text)):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "]", heading)).lower()
        names.add(words.replace(" ", "-"))
    return names


def broken_links(pages: Mapping[Path, str]) -> list[str]:
    """List the relative links that lead nowhere, as "page: link"."""
    broken = []
    for page, text in pages.items():
        for link in LINK.findall(prose(text)):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, fragment = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            is_there = path in pages or (path.exists() and path.is_relative_to(ROOT))
            if is_there and fragment:
                read = pages.get(path) or path.read_text(encoding="utf-8")
                is_there = fragment in anchors(read)
            if not is_there:
                broken.append(f"{page.name}: {link}")
    return broken


def missing_paths(pages: Mapping[Path, str], tree: Iterable[str]) -> list[str]:
    """List the paths in the text and in backticks that the tree has not, as "page: path".

    A name in backticks may leave out the folders above it.
    """
    known = [f"/{path}" for path in tree]
    wrong = []
    for page, text in pages.items():
        text_only = re.sub(r"\]\([^)]*\)", "]", text)
        named = set(IN_TEXT.findall(text_only))
        short = {name for name in IN_BACKTICKS.findall(text_only) if not name.startswith(MADE)}
        for name in sorted({name.rstrip("/") for name in named | short}):
            if "*" in name:
                is_there = any(ROOT.glob(name))
            else:
                end = f"/{name}"
                is_there = any(path.endswith(end) or f"{end}/" in path for path in known)
            if not is_there:
                wrong.append(f"{page.name}: {name}")
    return wrong


def long_lines(pages: Mapping[Path, str], limit: int) -> list[str]:
    """List the lines beyond the limit outside tables and code, as "page: line"."""
    return [
        f"{page.name}: {line}"
        for page, text in pages.items()
        for line in prose(text).splitlines()
        if len(line) > limit and not line.startswith("|")
    ]


# The environment.

READERS = {"user_flags"}
"""Functions whose words are variables that they read."""

OF_THE_SYSTEM = {"LD_LIBRARY_PATH", "PATH"}
"""Read as every program reads them."""


def python_variables(text: str) -> set[str]:
    """Return the environment variables that a module reads by a name that stands in it."""
    tree = ast.parse(text)
    constants: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constants.setdefault(node.targets[0].id, set()).update(_words([node.value]))
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            values = node.iter.elts if isinstance(node.iter, ast.Tuple | ast.List) else []
            constants.setdefault(node.target.id, set()).update(_words(values))
    found: set[str] = set()
    for key in _keys(tree):
        found |= constants.get(key.id, set()) if isinstance(key, ast.Name) else _words([key])
    return {name for name in found if re.fullmatch(r"[A-Z][A-Z0-9_]+", name)}


def _words(nodes: Iterable[ast.AST]) -> set[str]:
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return {value for value in values if isinstance(value, str)}


def _keys(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield what the environment is asked for."""

    def is_environment(node: ast.expr) -> bool:
        return ast.unparse(node) in ("environ", "os.environ")

    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and is_environment(node.value):
            if isinstance(node.ctx, ast.Load):
                yield node.slice
        elif isinstance(node, ast.Compare) and is_environment(node.comparators[0]):
            yield node.left
        elif isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            is_get = owner is not None and is_environment(owner) and function.endswith(".get")
            if (is_get or function == "os.getenv") and node.args:
                yield node.args[0]
            elif function in READERS:
                yield from node.args


def shell_variables(text: str) -> set[str]:
    """Return the variables of the environment that a Makefile or a script of ours reads."""
    defined = set(re.findall(r"^(?:\t?export |define )?(\w+)(?: *:?=|$)", text, re.MULTILINE))
    read = set(re.findall(r"\$[({]([A-Z][A-Z0-9_]+)\b", text))
    offered = set(re.findall(r"^([A-Z][A-Z0-9_]+) \?=", text, re.MULTILINE))
    return (read - defined - {"BASH_SOURCE", "CURDIR", "MAKE"}) | offered


def c_variables(text: str) -> set[str]:
    """Return the variables that a C or C++ source reads."""
    return set(re.findall(r'\bgetenv\("(\w+)"\)', text))


def variables_read() -> set[str]:
    """Return the environment variables that the sources, tests and commands read."""
    found: set[str] = set()
    for folder in ("bench", "build_support", "csrc", "examples", "fastclip", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py":
                found |= python_variables(path.read_text(encoding="utf-8"))
            elif path.suffix in (".c", ".cpp", ".cu", ".cuh", ".h"):
                found |= c_variables(path.read_text(encoding="utf-8"))
            elif path.suffix == ".sh":
                found |= shell_variables(path.read_text(encoding="utf-8"))
    found |= shell_variables((ROOT / "Makefile").read_text(encoding="utf-8"))
    found |= shell_variables((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    return found - OF_THE_SYSTEM


def variables_told(text: str) -> set[str]:
    """Return the variables that environment.md has a row for."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", cell)}
