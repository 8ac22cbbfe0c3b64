"""Compiling the Triton kernels for every target, two at a time, without a GPU.

``python tests/support/triton_builds.py FOLDER`` leaves the code there. It compiles the
installed package in another process: the tests' process has Triton's interpreter.
"""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

ALL_KINDS = ("SUM_SQ", "SUM_SQ_WIDE", "ABS_SUM", "ABS_MAX", "POWER_SUM")
MIXES = {"float32": 1, "float64": 2, "bfloat16": 4, "float16": 8, "narrow": 13, "all": 15}


@dataclass(frozen=True)
class Target:
    """A GPU to compile for."""

    backend: str
    name: str

    @property
    def is_nvidia(self) -> bool:
        """Return whether the code is PTX, not AMD's assembly."""
        return self.backend == "cuda"

    @property
    def label(self) -> str:
        """Return the name that compilers use."""
        return f"sm_{self.name}" if self.is_nvidia else self.name


TARGETS = (
    *(Target("cuda", name) for name in ("80", "90", "100", "120")),
    *(Target("hip", name) for name in ("gfx90a", "gfx942")),
)
FULL = ("90", "gfx942")  # of these every kernel and sum, of the others the main ones


@dataclass(frozen=True)
class Variant:
    """A kernel with its constants."""

    kernel: str
    mix: str = ""
    kind: str = ""
    finds_inf: bool | None = None
    scales: bool | None = None

    @property
    def name(self) -> str:
        """Return "clip_kernel<SUM_SQ, all>" for example."""
        finds_inf = "finds inf" if self.finds_inf else ""
        scales = "scales" if self.scales else ""
        constants = ", ".join(filter(None, (self.kind, self.mix, finds_inf, scales)))
        return f"{self.kernel}<{constants}>" if constants else self.kernel

    @property
    def is_exempt(self) -> bool:
        """Return whether it computes powers, so slow that one load at a time is enough."""
        return self.kind == "POWER_SUM"


def variants(target: Target) -> list[Variant]:
    """Return what to compile for a target: lists with float64 take SUM_SQ_WIDE, never SUM_SQ."""
    mixes = ("float32", "bfloat16")
    if target.name != "gfx90a":
        mixes = ("narrow", *mixes)
    clips = [Variant("clip_kernel", mix, "SUM_SQ", False) for mix in mixes]
    if target.name not in FULL:
        kinds = ("SUM_SQ_WIDE", "POWER_SUM") if target.is_nvidia else ()
        clips += [Variant("clip_kernel", "all", kind, False) for kind in kinds]
        return [
            *clips,
            *(Variant("clamp_kernel", "bfloat16", scales=scales) for scales in (False, True)),
            *(Variant(f"{name}_kernel", "bfloat16") for name in ("scale", "scale_into")),
        ]
    mix = "all" if target.is_nvidia else "float16"  # to compile within two minutes
    return [
        *clips,
        Variant("clip_kernel", "float16", "SUM_SQ", False),
        Variant("clip_kernel", "float64", "SUM_SQ_WIDE", False),
        Variant("clip_kernel", "bfloat16", "SUM_SQ", True),
        *(Variant("clip_kernel", mix, kind, False) for kind in ALL_KINDS[1:]),
        Variant("reduce_kernel", "narrow", "SUM_SQ", False),
        Variant("reduce_kernel", "all", "ABS_MAX", True),
        *(Variant("finish_kernel", kind=kind) for kind in ("SUM_SQ", "POWER_SUM")),
        Variant("finish_and_scale_kernel", "all", "SUM_SQ_WIDE"),
        *(Variant(f"{name}_kernel", "all") for name in ("scale", "scale_into")),
        *(Variant("clamp_kernel", "all", scales=scales) for scales in (False, True)),
        Variant("write_words_kernel"),
    ]


def compile_kernel(target: Target, variant: Variant, out: Path) -> None:
    """Compile a kernel as a launch would, and leave its code in a folder."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastclip.backends.triton import call
    from fastclip.backends.triton.device import kernels, reduce, table

    kernel = getattr(table if variant.kernel.startswith("write") else kernels, variant.kernel)
    constants: dict[str, int] = {}
    if variant.mix:
        constants["MIX"] = MIXES[variant.mix]
    if variant.kind:
        constants["KIND"] = getattr(reduce, variant.kind).value
    if variant.finds_inf is not None:
        constants["FINDS_INF"] = int(variant.finds_inf)
    if variant.scales is not None:
        constants["SCALES"] = int(variant.scales)
    signature = {name: "constexpr" if name in constants else "i64" for name in kernel.arg_names}
    architecture = int(target.name) if target.is_nvidia else target.name
    gpu = GPUTarget(target.backend, architecture, 32 if target.is_nvidia else 64)
    is_cooperative = variant.kernel == "clip_kernel"
    options = call.compile_options(gpu.warp_size, target.is_nvidia, is_cooperative)
    source = ASTSource(kernel, signature, constants, {})
    compiled = triton.compile(source, target=gpu, options=dict(options))
    folder = folder_of(target, variant, out)
    folder.mkdir(parents=True)
    text = compiled.asm["ptx" if target.is_nvidia else "amdgcn"]
    (folder / "text").write_text(text, encoding="utf-8")
    if target.is_nvidia:
        (folder / "cubin").write_bytes(compiled.asm["cubin"])
    (folder / "shared").write_text(json.dumps(compiled.metadata.shared), encoding="utf-8")


def folder_of(target: Target, variant: Variant, out: Path) -> Path:
    """Return where a kernel's code is left."""
    return out / target.label / re.sub(r"\W+", "-", variant.name)


def compile_kernels(out: Path) -> None:
    """Compile everything, two at a time; for a process without Triton's interpreter."""
    jobs = [(target, variant) for target in TARGETS for variant in variants(target)]
    jobs.sort(key=lambda job: job[1].mix not in ("all", "narrow"))  # the longest first
    targets, compiled = zip(*jobs, strict=True)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(compile_kernel, targets, compiled, repeat(out)))


if __name__ == "__main__":
    compile_kernels(Path(sys.argv[1]))
