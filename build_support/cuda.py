"""The CUDA toolkit: where it is, what it can do, and whether and how the kernels are compiled.

The kernels include no torch, so they also compile for a torch without CUDA, and without a GPU.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from build_support.compiler import Compiler
from build_support.gpus import find_gpus
from build_support.label import is_asked_for
from build_support.torch_on_disk import TorchOnDisk

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_HOME = Path("/usr/local/cuda")
OLDEST_TOOLKIT = (12, 1)
"""The first release whose kernels may take 32,764 bytes of arguments."""

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""What is compiled for GPUs of other machines, as far as nvcc knows it."""

WAY_TO_KERNELS = (
    "to compile the CUDA kernels, install fastclip where a GPU can be seen, or with "
    "TORCH_CUDA_ARCH_LIST set to the compute capability of yours (such as 9.0), or with "
    "FASTCLIP_BUILD=cuda"
)

NVCC_FLAGS = (
    "-O3",
    "-std=c++17",
    # A product is rounded before it is added, unless the source says fma, so that every compiler
    # gives the same bits.
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
)
# The runtime is linked in and hidden: a second one besides torch's does no harm, a missing one
# would.
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
    """The code that nvcc makes: "sm_90" is machine code, "compute_120" is PTX for newer GPUs."""


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
    """Ask nvcc for its own path, because the file on PATH may be a script that calls it."""
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

    Mode "cuda" accepts a torch without CUDA. Mode "auto" does not: nobody could use the kernels.

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
        # The variable may be left over from another toolkit, as is common on clusters.
        return str(error)
    if toolkit is None:
        return f"no CUDA toolkit was found (CUDA_HOME, nvcc on PATH, {DEFAULT_HOME})"
    codes = _misfit(toolkit, torch) or choose_codes(mode, toolkit, environ)
    return codes if isinstance(codes, str) else CudaBuild(toolkit, codes)


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


def choose_codes(mode: str, toolkit: Toolkit, environ: Mapping[str, str]) -> tuple[str, ...] | str:
    """Return what to compile for; a str says why there is nothing.

    It is what TORCH_CUDA_ARCH_LIST names, or ARCHITECTURES in a wheel for others, or else the GPUs
    of this machine. If the machine has none that can be compiled for, it is ARCHITECTURES in mode
    "cuda". In mode "auto" it is nothing, because compiling kernels that cannot run here would take
    minutes.

    Raises:
        ValueError: TORCH_CUDA_ARCH_LIST names what torch or nvcc does not know.
    """
    listed = environ.get("TORCH_CUDA_ARCH_LIST", "")
    if listed not in ("", "native"):
        return _listed_codes(listed, toolkit)
    # The wheel's name does not show the GPUs of this machine, so they do not count.
    if is_asked_for(environ):
        return _codes_for_all(toolkit)
    gpus = find_gpus(environ)
    codes = () if isinstance(gpus, str) else codes_for(gpus, toolkit)
    if codes:
        return codes
    if mode == "cuda":
        return _codes_for_all(toolkit)
    if isinstance(gpus, str):
        return f"no GPU was found where fastclip was built ({gpus}); {WAY_TO_KERNELS}"
    held = ", ".join(map(_dotted, gpus))
    needed = f"{_dotted(min(_usable(toolkit)))} or higher with nvcc {toolkit.release}"
    return (
        f"where fastclip was built the GPUs have compute capability {held} (needed: {needed}); "
        f"{WAY_TO_KERNELS}"
    )


def codes_for(gpus: Sequence[int], toolkit: Toolkit) -> tuple[str, ...]:
    """Return the code to compile for GPUs of these compute capabilities, as far as nvcc can.

    A GPU that nvcc does not know gets PTX of the highest below it, which its driver compiles. PTX
    of the highest is added, because it takes no time and newer GPUs can run it.
    """
    known = _usable(toolkit)
    below = [{number for number in known if number < gpu} for gpu in gpus if gpu not in known]
    machine_code = known & set(gpus)
    ptx = {max(numbers) for numbers in below if numbers}
    if not machine_code | ptx:
        return ()
    ptx.add(max(machine_code | ptx))
    return (
        *(f"sm_{number}" for number in sorted(machine_code)),
        *(f"compute_{number}" for number in sorted(ptx)),
    )


def _usable(toolkit: Toolkit) -> set[int]:
    return {number for number in toolkit.architectures if number >= ARCHITECTURES[0]}


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


def _codes_for_all(toolkit: Toolkit) -> tuple[str, ...]:
    return codes_for(
        [number for number in ARCHITECTURES if number in toolkit.architectures], toolkit
    )


def _listed_codes(listed: str, toolkit: Toolkit) -> tuple[str, ...]:
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
    """Return the command that compiles a kernel file, without its output."""
    gencode = [f"-gencode=arch={code.replace('sm_', 'compute_')},code={code}" for code in codes]
    host = [] if compiler is None else [f"-ccbin={compiler.command[0]}"]
    include = f"-I{ROOT / 'csrc'}"
    return [str(toolkit.nvcc), *NVCC_FLAGS, *gencode, *host, include, "-c", str(source)]
