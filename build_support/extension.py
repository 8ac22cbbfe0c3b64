"""The commands that compile and link fastclip._C."""

import os
import shlex
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from build_support.compiler import Compiler, Job, compile_all, job_count
from build_support.plan import ROOT, WAY_OUT, X86_FLAGS, BuildError, Plan
from build_support.torch_on_disk import TorchOnDisk

DEFAULT_FLAGS = ("-O3", "-g0", "-Wall", "-Wextra")
# After the user's flags. Contraction would change the bits from one instruction set to the next,
# errno keeps a loop over square roots scalar, and a visible symbol could be bound to another
# library's.
FIXED_FLAGS = (
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
)
# torch 2.13's headers ask for C++20 and 2.10's compile as it; the kernels need no more than 17.
BINDING_STANDARD = "-std=c++20"
KERNEL_STANDARD = "-std=c++17"
LIBRARIES = ("torch_python", "torch", "torch_cpu", "c10")


def user_flags(environ: Mapping[str, str], *names: str) -> list[str]:
    """Return the flags in the named environment variables, one after the other."""
    return [flag for name in names for flag in shlex.split(environ.get(name, ""))]


def kernel_flags(compiler: Compiler, source: Path) -> list[str]:
    """Return the flags of a source in csrc/cpu, which knows neither torch nor Python."""
    instruction_set = source.stem.removeprefix("kernels_")
    extra = X86_FLAGS.get(instruction_set, ()) if compiler.targets_x86_64 else ()
    return [KERNEL_STANDARD, *extra]


def binding_flags(compiler: Compiler, torch: TorchOnDisk) -> list[str]:
    """Return the flags of a source that includes torch."""
    # As system headers, so that torch's own warnings do not drown ours.
    python_dir = Path(sysconfig.get_path("include"))
    includes = [f"-isystem{path}" for path in (*torch.include_dirs, python_dir)]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.cxx11_abi)}"
    return [BINDING_STANDARD, *compiler.openmp_flags, "-DTORCH_EXTENSION_NAME=_C", abi, *includes]


def compile_command(
    compiler: Compiler, source: Path, flags: list[str], environ: Mapping[str, str] = os.environ
) -> list[str]:
    """Return the command that compiles ``source``, less its output."""
    return [
        *compiler.command,
        *DEFAULT_FLAGS,
        *user_flags(environ, "CPPFLAGS", "CFLAGS", "CXXFLAGS"),
        *FIXED_FLAGS,
        *flags,
        f"-I{ROOT / 'csrc'}",
        "-c",
        str(source),
    ]


def build_extension(plan: Plan, torch: TorchOnDisk, output: Path, object_dir: Path) -> None:
    """Compile what has changed and link ``output``.

    Raises:
        BuildError: a compiler or the linker failed.
    """
    if plan.compiler is None:
        raise ValueError("build_extension: the plan must name a compiler")
    jobs = [_job(plan.compiler, torch, source, object_dir) for source in plan.sources]
    try:
        compile_all(jobs, job_count(os.environ))
        link(plan.compiler, torch, [job.output for job in jobs], output)
    except subprocess.CalledProcessError as error:
        raise BuildError(
            f"the native extension could not be built: {shlex.join(error.cmd)} failed with "
            f"status {error.returncode}, and what it said is above; {WAY_OUT}"
        ) from error
    except (OSError, ValueError) as error:
        raise BuildError(f"the native extension could not be built: {error}; {WAY_OUT}") from error


def _job(compiler: Compiler, torch: TorchOnDisk, source: Path, object_dir: Path) -> Job:
    knows_torch = source.parent.name not in ("cpu", "cuda")
    flags = kernel_flags(compiler, source) if not knows_torch else binding_flags(compiler, torch)
    output = object_dir / source.relative_to(ROOT).with_suffix(".o")
    command = compile_command(compiler, source, flags)
    command += ["-o", str(output), "-MMD", "-MF", str(output.with_suffix(".d"))]
    # -MMD leaves system headers out: the versions stand for them.
    context = compiler.version if not knows_torch else f"{compiler.version} torch {torch.version}"
    return Job(source, output, tuple(command), context)


def link(compiler: Compiler, torch: TorchOnDisk, objects: list[Path], output: Path) -> None:
    """Link the objects, without a run path: torch is imported, hence loaded, before fastclip._C.

    Nor with -fopenmp: the OpenMP calls are then bound to the runtime that libtorch_cpu itself has
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
        "-o",
        str(output),
    ]
    subprocess.run(command, check=True)
