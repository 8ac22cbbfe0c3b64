"""Who may know what: imports and includes go one way, and the stub says what the binding has."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house_cxx import KERNEL_HEADERS, cxx_sources, kernel_headers, weak_symbols, wrong_includes
from house_python import (
    cycle,
    environment_reads,
    private_names,
    python_sources,
    unplaced,
    wrong_backends,
    wrong_imports,
)
from signatures import binding_signatures, stub_signatures
from source_tree import ROOT, compiler, plan

import fastclip

MAX_LINES = 400


def test_every_room_is_placed() -> None:
    assert unplaced(python_sources()) == []
    assert unplaced({"fastclip": "", "fastclip.attic.box": ""}) == ["fastclip.attic"]


def test_imports_go_one_way() -> None:
    sources = python_sources()
    assert wrong_imports(sources) == []
    assert cycle(sources) == []


@pytest.mark.parametrize(
    ("module", "line", "wrong"),
    [
        ("fastclip.clipper", "from . import _C", "fastclip._C"),
        ("fastclip.backends.base", "from .._C import gather", "fastclip._C"),
        ("fastclip.clip_grad", "def f():\n    import fastclip._C", "fastclip._C"),
        ("fastclip.clip_grad", "importlib.import_module('fastclip._C')", "fastclip._C"),
        ("fastclip.backends.base", "from ..clip_grad import clip_grad_norm_", "fastclip.clip_grad"),
        ("fastclip.backends.base", "from .. import clip_grad", "fastclip.clip_grad"),
        ("fastclip._build", "from .backends import base", "fastclip.backends.base"),
        ("fastclip.clip_grad", "from . import clip_grad_norm_", "fastclip"),
        ("fastclip", "from .cli.doctor import main", "fastclip.cli.doctor"),
        ("fastclip.cli", "from fastclip.backends import base", "fastclip.backends.base"),
        ("fastclip.cli.doctor", "from .._build import build_info", "fastclip._build"),
        ("fastclip.clip_grad", "import triton.language as tl", "triton.language"),
        ("fastclip.clip_grad", "from torch.library import custom_op", "torch.library"),
        ("fastclip.clip_grad", "from torch import library", "torch.library"),
    ],
)
def test_an_import_the_wrong_way_is_seen(module: str, line: str, wrong: str) -> None:
    assert wrong_imports({**python_sources(), module: line}) == [f"{module} -> {wrong}"]


def test_no_backend_imports_another() -> None:
    sources = python_sources()
    assert wrong_backends(sources) == []
    for module, line, target in (
        ("fastclip.backends.native", "from . import reference", "fastclip.backends.reference"),
        (
            "fastclip.backends.triton.packing",
            "from ..reference.norms import total_norm",
            "fastclip.backends.reference.norms",
        ),
        ("fastclip.backends.reference.backend", "from .. import NATIVE", "fastclip.backends"),
    ):
        assert wrong_backends({**sources, module: line}) == [f"{module} -> {target}"]


def test_an_import_cycle_is_seen() -> None:
    planted = {
        "fastclip.amp": "from . import optim",
        "fastclip.optim": "from .amp import f",
        "fastclip.monitor": "from . import amp",
    }
    assert cycle(planted) == ["fastclip.amp", "fastclip.monitor", "fastclip.optim"]


def test_programs_use_public_names_alone() -> None:
    text = (ROOT / "fastclip" / "__init__.py").read_text(encoding="utf-8")
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    public = {alias.asname for node in nodes for alias in node.names if alias.asname}
    assert private_names(python_sources(), public) == []
    planted = {"fastclip.cli": "import fastclip\nfastclip.backends\nfastclip.clip_grad_norm_"}
    assert private_names(planted, public) == ["fastclip.cli: backends"]


def test_public_names_are_reexported_explicitly() -> None:
    nodes = ast.parse((ROOT / "fastclip" / "__init__.py").read_text(encoding="utf-8")).body
    imported = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert len(imported) == len(nodes) - 1, "the docstring and imports, nothing else"
    for alias in (alias for node in imported for alias in node.names):
        assert alias.asname == alias.name
        assert hasattr(fastclip, alias.name)


def test_environment_is_read_in_backends_alone() -> None:
    assert environment_reads(python_sources()) == []
    assert environment_reads({"fastclip.clipper": "x = os.environ['A']"}) == ["fastclip.clipper"]


def test_includes_go_one_way() -> None:
    assert wrong_includes(cxx_sources()) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("cpu/dispatch.cpp", "#include <ATen/ATen.h>"),
        ("cpu/dispatch.cpp", "# include <torch/extension.h>"),
        ("cpu/vectors.h", "#include <Python.h>"),
        ("cpu/vectors.h", '#include "../binding/planted.h"'),
        ("cpu_kernels.h", "#include <c10/util/Half.h>"),
        ("cpu_kernels.h", '#include "cpu/vectors.h"'),
        ("cuda_launchers.h", '#include "cuda/vector.cuh"'),
        ("tensor_list.h", '#include "cpu_kernels.h"'),
        ("coefficient.h", '#include "cpu_kernels.h"'),
        ("cuda/clip.cu", "#include <ATen/ATen.h>"),
        ("bindings.cpp", '#include "cpu/vectors.h"'),
    ],
)
def test_an_include_the_wrong_way_is_seen(file: str, line: str) -> None:
    planted = {**cxx_sources(), "binding/planted.h": "", "cpu/vectors.h": "", file: line}
    assert [wrong.partition(" ")[0] for wrong in wrong_includes(planted)] == [file]


def test_kernels_include_no_header_with_inline_functions() -> None:
    assert kernel_headers(cxx_sources()) <= KERNEL_HEADERS
    planted = {
        "cpu/kernels_avx2.cpp": '#include "inner.h"',
        "cpu/inner.h": "#include <algorithm>",
        "cpu/dispatch.cpp": "#include <vector>",
    }
    assert kernel_headers(planted) == {"algorithm"}


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, of binutils")
def test_kernel_objects_define_no_weak_symbols(tmp_path: Path) -> None:
    built = compiler.find_compiler(os.environ)
    if built is None:
        pytest.skip("needs a C++ compiler")
    chosen = plan.Plan("cpu", built, None)
    kernels = [path for path in chosen.sources(has_cuda=False) if path.name.startswith("kernels_")]
    assert [path.name for path in kernels] == sorted(
        f"kernels_{name}.cpp" for name in chosen.instruction_sets
    )
    assert {path.name: weak_symbols(built, path, tmp_path) for path in kernels} == {
        path.name: [] for path in kernels
    }
    planted = tmp_path / "kernels_planted.cpp"
    planted.write_text("inline int f(int x) { return x + 1; }\nint (*g)(int) = f;\n")
    assert weak_symbols(built, planted, tmp_path) == ["_Z1fi"]


@pytest.mark.skipif(not fastclip.build_info()["native"], reason="needs fastclip._C")
def test_stub_says_what_the_binding_has() -> None:
    binding = importlib.import_module("fastclip._C")
    text = (ROOT / "fastclip" / "_C.pyi").read_text(encoding="utf-8")
    assert stub_signatures(text) == binding_signatures(binding)


def test_a_stub_that_differs_is_seen() -> None:
    stub = "class A:\n    def f(self, x: list[Tensor], y: Dtype | None) -> list[Tensor]: ..."
    assert stub_signatures(stub) == {
        "A": "class",
        "A.f": "(x: list, y: dtype | None) -> list[Tensor]",
    }


def test_files_fit_a_head() -> None:
    folders = ("fastclip", "csrc", "build_support")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    texts = [path for path in paths if path.suffix in (".py", ".pyi", ".cpp", ".h", ".cu", ".cuh")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in texts}
    assert {str(path): count for path, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.slow
def test_calls_of_kernels_are_typed(tmp_path: Path) -> None:
    """The extension and Triton's launches are no ``ModuleType``, which has every attribute."""
    pytest.importorskip("pyright")
    lines = {
        "extension.binding.gather(3, 0, 0)": "reportArgumentType",
        "extension.binding.gather([], 0, 0).clip(1.0, False)": "reportArgumentType",
        "extension.binding.no_such_function()": "reportAttributeAccessIssue",
        "NATIVE.gather([], PARAMETERS)._list.clamp('1', None, None)": "reportArgumentType",
        "loading.launches_on(device).clamp(1, 2, 3, 4)": "reportArgumentType",
        "loading.launches_on(device).no_such_launch()": "reportAttributeAccessIssue",
    }
    planted = tmp_path / "planted.py"
    planted.write_text(
        "import torch\n"
        "from fastclip.backends import NATIVE, extension\n"
        "from fastclip.backends.request import PARAMETERS\n"
        "from fastclip.backends.triton import loading\n"
        "device = torch.device('cpu')\n" + "".join(f"{line}\n" for line in lines)
    )
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*command, planted], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    by_line = {item["range"]["start"]["line"] - 5: item["rule"] for item in found[::-1]}
    assert by_line == dict(enumerate(lines.values())), done.stdout
