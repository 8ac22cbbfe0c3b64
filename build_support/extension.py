"""The commands that compile and link fastclip._C."""

import os
import shlex
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from build_support.compiler import Compiler, Job, compile_all, job_count
from build_support.cuda import LINK_FLAGS, CudaBuild, choose_cuda, nvcc_command
from build_support.plan import ROOT, WAY_OUT, X86_FLAGS, BuildError, CudaFacts, Plan
from build_support.torch_on_disk import TorchOnDisk

DEFAULT_FLAGS = ("-O3", "-g0", "-Wall", "-Wextra")
# These come after the user's flags. Contraction would make the bits depend on the instruction set,
# errno would keep a loop over square roots scalar, and a visible symbol could be bound to another
# library's.
FIXED_FLAGS = (
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
)
# torch 2.13's headers need C++20, and 2.10's accept it; the kernels need only C++17.
BINDING_STANDARD = "-std=c++20"
KERNEL_STANDARD = "-std=c++17"
CPU_WAY_OUT = (
    "FASTCLIP_BUILD=cpu builds the CPU kernels, and CUDA gradients are then clipped with torch"
)
LIBRARIES = ("torch_python", "torch", "torch_cpu", "c10")


def user_flags(environ: Mapping[str, str], *names: str) -> list[str]:
    """Return the flags in the named environment variables, one after the other."""
    return [flag for name in names for flag in shlex.split(environ.get(name, ""))]


def kernel_flags(compiler: Compiler, source: Path) -> list[str]:
    """Return the flags of a source in csrc/cpu, which includes neither torch nor Python."""
    instruction_set = source.stem.removeprefix("kernels_")
    extra = X86_FLAGS.get(instruction_set, ()) if compiler.targets_x86_64 else ()
    return [KERNEL_STANDARD, *extra]


def binding_flags(compiler: Compiler, torch: TorchOnDisk) -> list[str]:
    """Return the flags of a source that includes torch."""
    # They count as system headers, so that torch's warnings do not hide ours.
    python_dir = Path(sysconfig.get_path("include"))
    includes = [f"-isystem{path}" for path in (*torch.include_dirs, python_dir)]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.cxx11_abi)}"
    flags = [BINDING_STANDARD, *compiler.openmp_flags, "-DTORCH_EXTENSION_NAME=_C", abi, *includes]
    # torch's directories may lie in ROOT, and the compiler takes the last map that fits.
    maps = [prefix_map(path, "torch/include") for path in torch.include_dirs]
    return [*flags, *maps, prefix_map(python_dir, "python/include")]


def prefix_map(directory: Path, name: str) -> str:
    """Return the flag that lets messages name a directory as ``name``.

    Messages of torch's macros contain __FILE__, and a wheel should not show where it was built.
    """
    return f"-ffile-prefix-map={directory}={name}"


def compile_command(
    compiler: Compiler, source: Path, flags: list[str], environ: Mapping[str, str] = os.environ
) -> list[str]:
    """Return the command that compiles ``source``, without its output."""
    return [
        *compiler.command,
        *DEFAULT_FLAGS,
        *user_flags(environ, "CPPFLAGS", "CFLAGS", "CXXFLAGS"),
        *FIXED_FLAGS,
        prefix_map(ROOT, "fastclip"),
        *flags,
        f"-I{ROOT / 'csrc'}",
        "-c",
        str(source),
    ]


def decide_cuda(
    plan: Plan, torch: TorchOnDisk, environ: Mapping[str, str] = os.environ
) -> CudaBuild | str:
    """Decide whether the CUDA kernels are compiled; a str says why not.

    Raises:
        BuildError: FASTCLIP_BUILD=cuda asks for what cannot be built here, or TORCH_CUDA_ARCH_LIST
            names what cannot be used.
    """
    try:
        choice = choose_cuda(plan.mode, torch, environ)
    except (OSError, ValueError) as error:
        raise BuildError(f"{error}; {CPU_WAY_OUT}") from error
    if isinstance(choice, str) and plan.mode == "cuda":
        raise BuildError(f"FASTCLIP_BUILD=cuda: {choice}; {CPU_WAY_OUT}")
    return choice


def describe_choice(choice: CudaBuild | str) -> str:
    """Return the line that tells users what is compiled and, if need be, how to get more."""
    if isinstance(choice, str):
        return f"building without CUDA kernels: {choice}"
    return f"building CUDA kernels for {', '.join(choice.codes)}"


def facts_of(choice: CudaBuild | str) -> CudaFacts:
    """Return the record's entries for a choice."""
    if isinstance(choice, str):
        return CudaFacts(reason=choice)
    return CudaFacts(release=choice.toolkit.release, codes=list(choice.codes))


def build_extension(
    plan: Plan,
    torch: TorchOnDisk,
    output: Path,
    object_dir: Path,
    cuda: CudaBuild | None = None,
) -> None:
    """Compile what has changed and link ``output``.

    Raises:
        BuildError: a compiler or the linker failed.
    """
    if plan.compiler is None:
        raise ValueError("build_extension: the plan must name a compiler")
    sources = plan.sources(has_cuda=cuda is not None)
    jobs = [_job(plan.compiler, torch, source, object_dir, cuda) for source in sources]
    try:
        limit = job_count(os.environ)
    except ValueError as error:
        raise BuildError(str(error)) from error
    try:
        compile_all(jobs, limit)
        link(plan.compiler, torch, [job.output for job in jobs], output, cuda)
    except subprocess.CalledProcessError as error:
        raise BuildError(
            f"the native extension could not be built: {shlex.join(error.cmd)} failed with "
            f"status {error.returncode}, and what it said is above; {WAY_OUT}"
        ) from error
    except (OSError, ValueError) as error:
        raise BuildError(f"the native extension could not be built: {error}; {WAY_OUT}") from error


def _job(
    compiler: Compiler,
    torch: TorchOnDisk,
    source: Path,
    object_dir: Path,
    cuda: CudaBuild | None,
) -> Job:
    # -MMD leaves system headers out, so versions stand for them.
    context = compiler.version
    if source.suffix == ".cu":
        if cuda is None:
            raise ValueError(f"{source.name}: must be compiled with a toolkit")
        command = nvcc_command(cuda.toolkit, source, cuda.codes, compiler)
        context += f" CUDA {cuda.toolkit.release}"
    elif source.parent.name == "cuda":
        toolkit = [] if cuda is None else [f"-isystem{cuda.toolkit.home / 'include'}"]
        command = compile_command(compiler, source, [KERNEL_STANDARD, *toolkit])
    elif source.parent.name == "cpu":
        command = compile_command(compiler, source, kernel_flags(compiler, source))
    else:
        command = compile_command(compiler, source, binding_flags(compiler, torch))
        context += f" torch {torch.version}"
    output = object_dir / source.relative_to(ROOT).with_suffix(".o")
    command += ["-o", str(output), "-MMD", "-MF", str(output.with_suffix(".d"))]
    return Job(source, output, tuple(command), context)


def link(
    compiler: Compiler,
    torch: TorchOnDisk,
    objects: list[Path],
    output: Path,
    cuda: CudaBuild | None = None,
) -> None:
    """Link the objects, without a run path: torch is imported, hence loaded, before fastclip._C.

    There is no -fopenmp either, so that OpenMP calls are bound to the runtime that libtorch_cpu has
    loaded, whatever its file is called (wheels rename theirs), and there is never a second one.
    """
    print(f"linking {output}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *compiler.command,
        "-shared",
        "-Wl,--strip-all",
        *(str(path) for path in objects),
        *user_flags(os.environ, "LDFLAGS"),
        f"-L{torch.library_dir}",
        *(f"-l{name}" for name in LIBRARIES),
        *([] if cuda is None else [f"-L{cuda.toolkit.library_dir}", *LINK_FLAGS]),
        "-o",
        str(output),
    ]
    subprocess.run(command, check=True)
