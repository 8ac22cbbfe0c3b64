"""``fastclip doctor``: what is installed, what can run, and whether its results are right."""

import json
import platform
import re
import sys
import time
from pathlib import Path
from typing import TypedDict

import torch

import fastclip
from fastclip import BuildInfo

from .self_check import BackendResult, check_backends

MAX_SHOWN = 5
"""How many differences of one backend the text shows; --json has all of them."""

GPU_BACKENDS = ("native", "triton")
"""The backends with their own kernels for GPUs."""

INTERPRETED = "triton"
"""Its kernels run on the CPU only in an interpreter, which is too slow for the self-check."""

MAPS = Path("/proc/self/maps")
CPUINFO = Path("/proc/cpuinfo")
OPENMP = re.compile(r"lib(gomp|iomp5|omp)\b.*\.so")
"""File names of GNU's, Intel's and LLVM's runtimes; wheels add a hash to the first word."""


class SelfCheck(TypedDict):
    """The self-check's outcome, by backend."""

    ok: bool
    tensors: int
    seconds: float
    calls: dict[str, int]
    differences: dict[str, list[dict[str, str]]]


NOT_RUN = SelfCheck(ok=False, tensors=0, seconds=0.0, calls={}, differences={})


class Diagnosis(TypedDict):
    """Everything that doctor finds out."""

    ok: bool
    fastclip: str
    torch: str
    python: str
    platform: str
    cpu: str
    threads: int
    build: BuildInfo
    instruction_set: str | None
    backends: dict[str, list[str]]
    cuda: dict[str, list[str]]
    openmp: list[str]
    problems: list[str]
    warnings: list[str]
    self_check: SelfCheck


def run_doctor(as_json: bool) -> int:
    """Examine this installation and print what was found.

    Args:
        as_json: print one JSON object instead of text.

    Returns:
        The exit status: 0 if the self-check passed, else 1.
    """
    diagnosis = examine()
    print(json.dumps(diagnosis, indent=2) if as_json else "\n".join(describe(diagnosis)))
    return 0 if diagnosis["ok"] else 1


def examine() -> Diagnosis:
    """Collect versions, backends and OpenMP runtimes, and run the self-check."""
    problems: list[str] = []
    instruction_set: str | None = None
    backends: dict[str, list[str]] = {}
    cuda: dict[str, list[str]] = {}
    try:
        backends = fastclip.backend_report()
        cuda = fastclip.backend_report("cuda")
        instruction_set = fastclip.instruction_set()
    except ValueError as error:
        problems.append(str(error))
    # With a setting that no clip accepts, every call of the self-check would fail in the same way.
    self_check = NOT_RUN if problems else _self_check(backends)
    # This is last, so that everything which the backends load is loaded.
    runtimes = openmp_runtimes(MAPS.read_text(encoding="utf-8") if MAPS.exists() else "")
    return Diagnosis(
        ok=self_check["ok"],
        fastclip=fastclip.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu_model(),
        threads=torch.get_num_threads(),
        build=fastclip.build_info(),
        instruction_set=instruction_set,
        backends=backends,
        cuda=cuda,
        openmp=runtimes,
        problems=problems,
        warnings=[
            *build_warnings(fastclip.build_info()),
            *cuda_warnings(cuda),
            *openmp_warnings(runtimes),
        ],
        self_check=self_check,
    )


def openmp_runtimes(maps: str) -> list[str]:
    """Return the paths of the OpenMP runtimes in a process's memory map, each once."""
    # Address, permissions, offset, device, inode, and the path if the memory is a file's.
    fields = (line.split(maxsplit=5) for line in maps.splitlines())
    paths = {Path(field[5]) for field in fields if len(field) == 6}
    return sorted(str(path) for path in paths if OPENMP.match(path.name))


def build_warnings(build: BuildInfo) -> list[str]:
    """Warn about a source tree, which python finds before the installed fastclip."""
    if build["mode"] != "none":
        return []
    return [
        f"{Path(fastclip.__file__).parent} is a source tree, not an installed fastclip; to examine "
        "that one, run the command fastclip doctor, or this from another directory"
    ]


def cuda_warnings(cuda: dict[str, list[str]]) -> list[str]:
    """Warn where there is a GPU that neither the CUDA nor the Triton kernels can run on."""
    if not torch.cuda.is_available() or not all(cuda[name] for name in GPU_BACKENDS):
        return []
    reasons = [reason for name in GPU_BACKENDS for reason in cuda[name]]
    return [f"CUDA gradients are clipped with torch operations: {'; '.join(reasons)}"]


def openmp_warnings(runtimes: list[str]) -> list[str]:
    """Warn about several OpenMP runtimes: each has its own threads, and they compete."""
    if len(runtimes) < 2:
        return []
    listed = ", ".join(runtimes)
    return [
        f"{len(runtimes)} OpenMP runtimes are loaded ({listed}); their threads compete for the "
        "same cores, so clipping and training may run slower than they should"
    ]


def describe(diagnosis: Diagnosis) -> list[str]:
    """Return the diagnosis as lines of aligned text."""
    build = diagnosis["build"]
    lines = [
        _line("fastclip", f"{diagnosis['fastclip']}  ({Path(fastclip.__file__).parent})"),
        _line("torch", diagnosis["torch"]),
        _line("python", f"{diagnosis['python']}  ({sys.executable})"),
        _line("platform", diagnosis["platform"]),
        _line("cpu", diagnosis["cpu"]),
        _line("threads", str(diagnosis["threads"])),
        _line("build", _describe_build(build)),
        _line("instruction set", diagnosis["instruction_set"] or "none"),
        *_column("openmp", diagnosis["openmp"] or ["none found"]),
        "",
        "backends" if diagnosis["backends"] else "backends: not examined",
    ]
    for name, reasons in diagnosis["backends"].items():
        lines += _column(f"  {name}", _describe_reasons(reasons))
    for name in GPU_BACKENDS if diagnosis["cuda"] else ():
        lines += _column(f"  {name}, cuda", _describe_reasons(diagnosis["cuda"][name]))
    lines += ["", *_describe_self_check(diagnosis["self_check"])]
    if diagnosis["self_check"]["calls"] and diagnosis["backends"].get(INTERPRETED) == []:
        lines.append(_line(f"  {INTERPRETED}", "not checked: its interpreter would take minutes"))
    lines.append("")
    lines += [f"warning: {warning}" for warning in diagnosis["warnings"]]
    lines += [f"problem: {problem}" for problem in diagnosis["problems"]]
    lines.append("ok" if diagnosis["ok"] else "NOT ok: see above")
    return lines


def _describe_reasons(reasons: list[str]) -> list[str]:
    return [f"cannot run: {reason}" for reason in reasons] or ["ready"]


def _describe_build(build: BuildInfo) -> str:
    if not build["native"]:
        return f"pure Python: {build['reason']}"
    sets = ", ".join(build["instruction_sets"])
    parts = [f"mode {build['mode']}", f"torch {build['torch']}", f"{build['compiler']}", sets]
    if build["cuda"] is None:
        parts.append(f"no CUDA kernels: {build['cuda_reason']}")
    else:
        parts.append(f"CUDA {build['cuda']} for {', '.join(build['cuda_architectures'])}")
    return "; ".join(parts)


def _describe_self_check(self_check: SelfCheck) -> list[str]:
    if not self_check["calls"]:
        return ["self-check: not run"]
    tensors, seconds = self_check["tensors"], self_check["seconds"]
    lines = [f"self-check: {tensors} tensors against float64, {seconds:.1f} s"]
    for name, differences in self_check["differences"].items():
        calls = self_check["calls"][name]
        if not differences:
            lines.append(_line(f"  {name}", f"ok, {calls} calls"))
            continue
        lines.append(_line(f"  {name}", f"WRONG: {len(differences)} differences in {calls} calls"))
        for found in differences[:MAX_SHOWN]:
            lines.append(f"    {found['call']}:")
            lines.append(f"      {found['what']}")
            lines.append(f"      expected {found['expected']}, got {found['got']}")
        if len(differences) > MAX_SHOWN:
            lines.append(f"    and {len(differences) - MAX_SHOWN} more (--json lists them)")
    return lines


def _self_check(backends: dict[str, list[str]]) -> SelfCheck:
    start = time.perf_counter()
    on_cpu = [name for name in _usable(backends) if name != INTERPRETED]
    tensors, results = check_backends(on_cpu)
    if torch.cuda.is_available():
        _, on_gpu = check_backends(_usable(fastclip.backend_report("cuda")), "cuda")
        results |= {f"{name}, cuda": result for name, result in on_gpu.items()}
    return SelfCheck(
        ok=not any(result.differences for result in results.values()),
        tensors=tensors,
        seconds=time.perf_counter() - start,
        calls={name: result.calls for name, result in results.items()},
        differences={name: _as_records(result) for name, result in results.items()},
    )


def _usable(backends: dict[str, list[str]]) -> list[str]:
    return [name for name, reasons in backends.items() if not reasons]


def _as_records(result: BackendResult) -> list[dict[str, str]]:
    return [
        {"call": found.call, "what": found.what, "expected": found.expected, "got": found.got}
        for found in result.differences
    ]


def _cpu_model() -> str:
    """Return the CPU's name if the system gives it, else its architecture."""
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _line(label: str, value: str) -> str:
    return f"{label:<18}{value}"


def _column(label: str, values: list[str]) -> list[str]:
    """Put the label before the first value and blanks before the others."""
    return [_line(label if i == 0 else "", value) for i, value in enumerate(values)]
