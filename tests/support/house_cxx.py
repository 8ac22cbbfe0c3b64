"""The rules of who may include what in csrc, and what a kernel's object may define."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from source_tree import ROOT, compiler, extension

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
TORCH_HEADERS = ("torch/", "ATen/", "c10/", "pybind11/", "Python.h")
# Headers of plain types, macros and intrinsics. Others define inline functions, which a compiler
# may emit as weak symbols: the linker then keeps one copy, perhaps the one made of AVX-512.
KERNEL_HEADERS = {
    "cstddef",
    "cstdint",
    "immintrin.h",
    "arm_neon.h",
    "math.h",
    "stdint.h",
    "string.h",
}


def cxx_sources() -> dict[str, str]:
    """Return the text of each C++ file by its path below csrc."""
    csrc = ROOT / "csrc"
    paths = [path for path in csrc.rglob("*") if path.suffix in (".cpp", ".h", ".cu", ".cuh")]
    return {path.relative_to(csrc).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def resolve(file: str, included: str, sources: Mapping[str, str]) -> str | None:
    """Return the path below csrc of an include of ours, None for a system header."""
    beside = Path(os.path.normpath(Path(file).parent / included)).as_posix()
    return beside if beside in sources else included if included in sources else None


def wrong_includes(sources: Mapping[str, str]) -> list[str]:
    """List the includes that go the wrong way, as "file -> included"."""
    wrong = []
    for file, text in sources.items():
        for included in INCLUDE.findall(text):
            own = resolve(file, included, sources)
            if file == "bindings.cpp" or file.startswith("binding/"):
                # The binding knows the launchers but not what is behind them.
                allowed = own is None or not own.startswith(("cpu/", "cuda/"))
            elif included.startswith(TORCH_HEADERS) or (own or "").startswith("bind"):
                allowed = False
            elif file in ("tensor_list.h", "coefficient.h"):
                allowed = own is None
            elif file in ("cpu_kernels.h", "cuda_launchers.h", "gpu_work.h"):
                allowed = own in (None, "tensor_list.h")
            else:
                allowed = True
            if not allowed:
                wrong.append(f"{file} -> {included}")
    return wrong


def kernel_headers(sources: Mapping[str, str]) -> set[str]:
    """Return the system headers that the kernels include, directly or through ours."""
    due = [file for file in sources if re.fullmatch(r"cpu/kernels_\w+\.cpp", file)]
    seen, system = set(due), set()
    while due:
        file = due.pop()
        for included in INCLUDE.findall(sources[file]):
            own = resolve(file, included, sources)
            if own is None:
                system.add(included)
            elif own not in seen:
                seen.add(own)
                due.append(own)
    return system


def weak_symbols(built: compiler.Compiler, source: Path, objects: Path) -> list[str]:
    """Compile a kernel file as the build does and list the weak symbols that it defines.

    Warnings are errors here; in a user's build they are not.
    """
    output = objects / f"{source.stem}.o"
    flags = extension.kernel_flags(built, source)
    command = extension.compile_command(built, source, flags, environ={})
    subprocess.run([*command, "-Werror", "-o", str(output)], check=True)
    listed = subprocess.run(
        ["nm", "--defined-only", str(output)], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [row[-1] for row in rows if row[-2] in "WVu"]
