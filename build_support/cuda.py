"""The CUDA toolkit: where it is, what it can do, and whether and how the kernels are compiled.

Kernels know no torch: they compile against a torch without CUDA, too, on a machine without a GPU.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from build_support.compiler import Compiler
from build_support.torch_on_disk import TorchOnDisk

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_HOME = Path("/usr/local/cuda")
OLDEST_TOOLKIT = (12, 1)
"""The first whose kernels may take 32,764 bytes of arguments."""

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""What is compiled unless TORCH_CUDA_ARCH_LIST says otherwise, as far as nvcc knows it."""

NVCC_FLAGS = (
    "-O3",
    "-std=c++17",
    # A product that is added is rounded first unless the source says fma: the same bits from every
    # compiler.
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
)
# A second runtime besides torch's own is no harm, a missing one would be: linked in, and hidden.
LINK_FLAGS = ("-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL")


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit on disk."""

    home: Path
    release: str
    """Such as "13.0"."""

    architectures: tuple[int, ...]
    """The compute capabilities that its nvcc compiles for, such as 90."""

    @property
    def nvcc(self) -> Path:
        """Return the compiler's path."""
        return self.home / "bin" / "nvcc"

    @property
    def library_dir(self) -> Path:
        """Return where the static runtime lies."""
        candidates = [self.home / "lib64", *sorted(self.home.glob("targets/*/lib"))]
        held = [path for path in candidates if (path / "libcudart_static.a").exists()]
        return held[0] if held else candidates[0]

    @property
    def version(self) -> tuple[int, ...]:
        """Return the release as numbers."""
        return tuple(int(part) for part in self.release.split("."))


@dataclass(frozen=True)
class CudaBuild:
    """A decision to compile the kernels."""

    toolkit: Toolkit
    codes: tuple[str, ...]
    """What nvcc makes: "sm_90" is machine code, "compute_120" PTX for GPUs to come."""


def find_toolkit(environ: Mapping[str, str] = os.environ) -> Toolkit | None:
    """Return the toolkit that CUDA_HOME or CUDA_PATH names, else nvcc's on PATH, else None.

    Raises:
        ValueError: a variable names a directory without nvcc, or nvcc does not answer.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := environ.get(name):
            if not (Path(home) / "bin" / "nvcc").exists():
                raise ValueError(f"{name}: must name a CUDA toolkit with bin/nvcc (got {home!r})")
            return _describe(Path(home))
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    if on_path is not None:
        return _describe(_home_of(Path(on_path)))
    return _describe(DEFAULT_HOME) if (DEFAULT_HOME / "bin" / "nvcc").exists() else None


def _home_of(nvcc: Path) -> Path:
    """Ask nvcc where it lies: what is on PATH may be a script that calls it."""
    done = subprocess.run(
        [str(nvcc), "--dryrun", "-c", "-x", "cu", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )
    here = re.search(r"_HERE_=(.+)", done.stderr)
    return (nvcc.resolve().parent if here is None else Path(here[1].strip())).parent


def _describe(home: Path) -> Toolkit:
    release = re.search(r"release (\d+\.\d+)", _answer(home / "bin" / "nvcc", "--version"))
    if release is None:
        raise ValueError(f"{home / 'bin' / 'nvcc'} --version names no release")
    listed = re.findall(r"sm_(\d+)\b", _answer(home / "bin" / "nvcc", "--list-gpu-code"))
    return Toolkit(home, release[1], tuple(sorted({int(number) for number in listed})))


def _answer(nvcc: Path, flag: str) -> str:
    done = subprocess.run([str(nvcc), flag], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"{nvcc} {flag} failed with status {done.returncode}: {done.stderr}")
    return done.stdout


def choose_cuda(mode: str, torch: TorchOnDisk, environ: Mapping[str, str]) -> CudaBuild | str:
    """Decide whether the kernels are compiled; a str says why not.

    Mode "cuda" takes a torch without CUDA, too; "auto" would then build what nobody can use.

    Raises:
        ValueError: TORCH_CUDA_ARCH_LIST cannot be used.
    """
    if mode == "cpu":
        return "FASTCLIP_BUILD=cpu was set"
    if torch.hip is not None:
        return f"torch {torch.version} is built for ROCm"
    if mode == "auto" and torch.cuda is None:
        return f"torch {torch.version} is built without CUDA"
    try:
        toolkit = find_toolkit(environ)
    except (OSError, ValueError) as error:
        # Left behind by another toolkit, as is common on clusters.
        return str(error)
    if toolkit is None:
        return f"no CUDA toolkit was found (CUDA_HOME, nvcc on PATH, {DEFAULT_HOME})"
    return _misfit(toolkit, torch) or CudaBuild(toolkit, choose_codes(toolkit, environ))


def _misfit(toolkit: Toolkit, torch: TorchOnDisk) -> str | None:
    found = f"the CUDA toolkit in {toolkit.home} is {toolkit.release}"
    if toolkit.version < OLDEST_TOOLKIT:
        return f"{found} (needed: {'.'.join(map(str, OLDEST_TOOLKIT))} or later)"
    if torch.cuda is not None and torch.cuda.split(".")[0] != str(toolkit.version[0]):
        return (
            f"{found} and torch {torch.version} is built with CUDA {torch.cuda}: their first "
            "numbers must be equal"
        )
    return None


def choose_codes(toolkit: Toolkit, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return what to compile for: TORCH_CUDA_ARCH_LIST as torch reads it, else ARCHITECTURES.

    Raises:
        ValueError: TORCH_CUDA_ARCH_LIST names what torch or nvcc does not know.
    """
    listed = environ.get("TORCH_CUDA_ARCH_LIST")
    if not listed:
        known = [number for number in ARCHITECTURES if number in toolkit.architectures]
        return (*(f"sm_{number}" for number in known), f"compute_{known[-1]}")
    from torch.utils import cpp_extension

    try:
        flags = cpp_extension._get_cuda_arch_flags()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"TORCH_CUDA_ARCH_LIST: {error} (got {listed!r})") from error
    codes = tuple(re.findall(r",code=(\w+)", " ".join(flags)))
    for code in codes:
        number = int(re.findall(r"\d+", code)[0])
        if number not in toolkit.architectures:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST: must name what nvcc {toolkit.release} compiles for "
                f"(got {listed!r}; known: {', '.join(map(str, toolkit.architectures))})"
            )
    return codes


def nvcc_command(
    toolkit: Toolkit, source: Path, codes: Sequence[str], compiler: Compiler | None = None
) -> list[str]:
    """Return the command that compiles a kernel file, less its output."""
    gencode = [f"-gencode=arch={code.replace('sm_', 'compute_')},code={code}" for code in codes]
    host = [] if compiler is None else [f"-ccbin={compiler.command[0]}"]
    include = f"-I{ROOT / 'csrc'}"
    return [str(toolkit.nvcc), *NVCC_FLAGS, *gencode, *host, include, "-c", str(source)]
