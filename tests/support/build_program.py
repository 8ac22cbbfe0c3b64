"""Build CUDA C++ sources and the emulator into a program that runs on the CPU.

It needs g++ and the CUDA toolkit's headers (CUDA_HOME, CUDA_PATH or /usr/local/cuda) but no nvcc.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

Build = Literal["plain", "address", "thread"]
BUILDS: tuple[Build, ...] = ("plain", "address", "thread")

HERE = Path(__file__).resolve().parents[1] / "emulator"
JOBS = 2
# As for nvcc, a product is rounded before it is added, unless the source says fma.
COMMON = ("-std=c++17", "-fPIC", "-ffp-contract=off", "-g1", "-Wall", "-Wno-unknown-pragmas")
SANITIZERS: dict[Build, tuple[str, ...]] = {
    "plain": (),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
# Frame pointers: a sanitizer cannot otherwise walk the stack of a fiber.
LEVELS: dict[Build, tuple[str, ...]] = {
    "plain": ("-O2",),
    "address": ("-O1", "-fno-omit-frame-pointer"),
    "thread": ("-O1", "-fno-omit-frame-pointer"),
}
# The runtime is never compiled for ThreadSanitizer: what its scheduler reads and writes would
# look like races of the kernels.
RUNTIME: dict[Build, tuple[str, ...]] = {
    "plain": ("-O2",),
    "address": ("-O2", "-DEMULATOR_ADDRESS"),
    "thread": ("-O2", "-DEMULATOR_THREAD"),
}


def find_toolkit() -> Path | None:
    """Return the CUDA toolkit's directory if its headers are there."""
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for place in (Path(place) for place in places if place):
        if (place / "include" / "cuda_runtime.h").is_file():
            return place
    return None


def missing() -> str | None:
    """Return what a build needs and does not find, or None."""
    if shutil.which("g++") is None:
        return "the emulator needs g++"
    if find_toolkit() is None:
        return "the emulator needs the CUDA toolkit's headers (CUDA_HOME, /usr/local/cuda)"
    return None


def build_program(
    sources: Sequence[Path],
    out: Path,
    build: Build = "plain",
    *,
    shared: bool = False,
    include: Sequence[Path] = (),
    flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
    jobs: int = JOBS,
) -> Path:
    """Compile sources and the emulator into an executable, or into a shared object.

    Nothing is compiled again whose preprocessed text and command are those of an object in ``out``.

    Args:
        sources: C++ and CUDA files; ``.cu`` is compiled unchanged, as C++.
        out: A directory, made if need be, for objects and the program.
        build: "plain"; "address" for AddressSanitizer and UndefinedBehaviorSanitizer; "thread"
            for ThreadSanitizer.
        shared: Make a shared object, such as a Python extension.
        include: Directories to search for headers, after the emulator's.
        flags: More flags for the compilation of ``sources``.
        link_flags: More flags for the link, at its end.
        jobs: How many compilers run at a time.

    Returns:
        The path of the program in ``out``, named after the first source and the build.

    Raises:
        RuntimeError: A compiler or the toolkit is missing, or a compilation fails; with the
            compiler's output.
    """
    reason = missing()
    if reason is not None:
        raise RuntimeError(reason)
    out.mkdir(parents=True, exist_ok=True)
    own = source_flags(build, include, flags)
    runtime = [*COMMON, *RUNTIME[build], *_search(())]
    commands = [(source, own) for source in sources]
    commands += [(source, runtime) for source in sorted((HERE / "runtime").glob("*.cpp"))]
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(lambda command: _compile(command[0], command[1], out), commands))
    program = out / f"{sources[0].stem}-{build}{'.so' if shared else ''}"
    link = [*link_command(objects, build, shared=shared), *link_flags]
    stamp = program.with_suffix(program.suffix + ".command")
    if not (program.exists() and stamp.exists() and stamp.read_text() == " ".join(link)):
        run_into(link, program)
        stamp.write_text(" ".join(link))
    return program


def source_flags(build: Build, include: Sequence[Path], flags: Sequence[str]) -> list[str]:
    """Return the flags of a source, which is no part of the emulator; see ``build_program``."""
    return [*COMMON, *LEVELS[build], *SANITIZERS[build], *_search(include), *flags]


def compile_command(source: Path, flags: Sequence[str]) -> list[str]:
    """Return the command that compiles a source, for ``run_into``."""
    return ["g++", "-x", "c++", *flags, "-c", str(source)]


def link_command(objects: Sequence[Path], build: Build, *, shared: bool = False) -> list[str]:
    """Return the command that links objects, the emulator's among them, for ``run_into``."""
    # -Bsymbolic: a process that has loaded the real runtime must not lend it to the emulator.
    kind = ["-shared", "-Wl,-Bsymbolic"] if shared else ["-pie"]
    return ["g++", *kind, *SANITIZERS[build], *map(str, objects), "-ldl", "-lpthread"]


def _search(include: Sequence[Path]) -> list[str]:
    toolkit = find_toolkit()
    assert toolkit is not None
    ours = [f"-I{HERE / 'include'}", f"-I{HERE}", *(f"-I{path}" for path in include)]
    theirs = [toolkit / "include", toolkit / "include" / "cccl"]
    return [*ours, *(flag for path in theirs for flag in ("-isystem", str(path)))]


def _compile(source: Path, flags: Sequence[str], out: Path) -> Path:
    command = ["g++", "-x", "c++", *flags]
    text = _run([*command, "-E", str(source)])
    # What -D and -I say is in the text: the builds share most of the runtime.
    kept = [flag for flag in command if not flag.startswith(("-D", "-I"))]
    digest = hashlib.sha256(" ".join(kept).encode() + text).hexdigest()[:16]
    compiled = out / f"{source.stem}-{digest}.o"
    if not compiled.exists():
        run_into(compile_command(source, flags), compiled)
    return compiled


def run_into(command: Sequence[str], target: Path) -> None:
    """Run a command that makes ``target``. Raises: RuntimeError with its output, if it fails."""
    # It has another name until it is whole: the link may be cut off, and another process may have
    # the old one loaded.
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    _run([*command, "-o", str(part)])
    part.replace(target)


def _run(command: Sequence[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        output = done.stderr.decode(errors="replace")
        raise RuntimeError(f"{' '.join(command)}\n{output}")
    return done.stdout
