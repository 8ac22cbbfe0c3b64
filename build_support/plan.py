"""What to build, decided from FASTCLIP_BUILD, the system and the compiler, without torch.

torch is looked for when the extension is compiled (torch_on_disk.py), not here: an sdist and the
package's metadata must build without torch.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension
from setuptools.errors import BaseError

from build_support.compiler import Compiler, find_compiler

MODES = ("auto", "cuda", "cpu", "python")
ROOT = Path(__file__).resolve().parent.parent
INFO_NAME = "_build_info.json"
WAY_OUT = "FASTCLIP_BUILD=python installs fastclip without the native extension"

# The kernels' instruction sets, best first; the flags that compile each on x86-64.
X86_FLAGS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "baseline": (),
}


class BuildError(BaseError):
    """The build cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class CudaFacts:
    """What is recorded of the CUDA kernels: a release and codes, or why there are none."""

    release: str | None = None
    codes: list[str] = field(default_factory=list)
    reason: str | None = None


@dataclass(frozen=True)
class Plan:
    """What this run of setup.py builds: with a ``compiler`` native code, else pure Python."""

    mode: str
    compiler: Compiler | None
    reason: str | None

    @property
    def extensions(self) -> list[Extension]:
        """List the extension modules for setuptools, which derives the wheel's tag from them."""
        if self.compiler is None:
            return []
        sources = [str(path.relative_to(ROOT)) for path in self.sources(has_cuda=False)]
        return [Extension("fastclip._C", sources=sources)]

    @property
    def instruction_sets(self) -> list[str]:
        """List the instruction sets that the kernels are compiled for, best first."""
        if self.compiler is None:
            return []
        if not self.compiler.targets_x86_64:
            return ["baseline"]
        return list(X86_FLAGS)

    def sources(self, has_cuda: bool) -> list[Path]:
        """List the C++ and CUDA sources, the slowest to compile first."""
        left_out = {
            f"kernels_{name}.cpp" for name in X86_FLAGS if name not in self.instruction_sets
        }
        kernels = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
        binding = sorted((ROOT / "csrc" / "binding").glob("*.cpp"))
        kept = [path for path in kernels if path.name not in left_out]
        cuda = sorted((ROOT / "csrc" / "cuda").glob("*.cu")) if has_cuda else []
        launchers = ROOT / "csrc" / "cuda" / ("launchers.cpp" if has_cuda else "absent.cpp")
        return [*cuda, ROOT / "csrc" / "bindings.cpp", *binding, *kept, launchers]

    def write_info(
        self, package: Path, torch_version: str | None, cuda: CudaFacts | None = None
    ) -> None:
        """Record in ``package`` what was built, for fastclip.build_info()."""
        facts = CudaFacts(reason=self.reason) if cuda is None else cuda
        info = {
            "mode": self.mode,
            "native": self.compiler is not None,
            "torch": torch_version,
            "compiler": None if self.compiler is None else self.compiler.description,
            "cuda": facts.release,
            "cuda_architectures": facts.codes,
            "cuda_reason": facts.reason,
            "instruction_sets": self.instruction_sets,
            "reason": self.reason,
        }
        package.mkdir(parents=True, exist_ok=True)
        (package / INFO_NAME).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def plan_build(
    environ: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
) -> Plan:
    """Decide what to build.

    Raises:
        BuildError: FASTCLIP_BUILD is none of MODES, asks for what cannot be built here, or the
            compiler does not answer.
    """
    mode = environ.get("FASTCLIP_BUILD") or "auto"
    if mode not in MODES:
        raise BuildError(f"FASTCLIP_BUILD: must be one of {', '.join(MODES)} (got {mode!r})")
    if mode == "python":
        return Plan(mode, None, "FASTCLIP_BUILD=python was set")
    compiler, reason = None, f"the native extension is built on Linux only (this is {platform})"
    if platform == "linux":
        try:
            compiler = find_compiler(environ)
        except (OSError, ValueError) as error:
            raise BuildError(f"{error}; {WAY_OUT}") from error
        reason = "no C++ compiler was found"
    if compiler is None and mode in ("cpu", "cuda"):
        raise BuildError(f"FASTCLIP_BUILD={mode}: {reason}; {WAY_OUT}")
    return Plan(mode, compiler, reason if compiler is None else None)
