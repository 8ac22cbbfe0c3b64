"""The C++ compiler: which one, what it can do, and files compiled a few at a time.

An object is compiled again only if its command, the compiler, the torch version or a file that it
includes has changed.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# g++ comes first: clang++ uses its own OpenMP runtime, and torch brings GCC's.
CANDIDATES = ("g++", "c++", "clang++")
DEFAULT_JOBS = 2


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler as a command, with the version that it reports."""

    command: tuple[str, ...]
    target: str
    version: str
    is_clang: bool

    @property
    def targets_x86_64(self) -> bool:
        """Return whether its code is for x86-64."""
        return self.target.startswith(("x86_64", "amd64"))

    @property
    def openmp_flags(self) -> tuple[str, ...]:
        """List the flags that make ATen's parallel_for use torch's own threads.

        Clang calls a runtime (libomp) that torch does not bring: its build runs on one thread
        rather than load a second runtime.
        """
        return () if self.is_clang else ("-fopenmp",)

    @property
    def description(self) -> str:
        """Return the compiler's name and version, for build_info()."""
        threads = "" if self.openmp_flags else ", without OpenMP: one thread"
        return self.version + threads


@dataclass(frozen=True)
class Job:
    """One source to compile into one object."""

    source: Path
    output: Path
    command: tuple[str, ...]
    # Anything else that the object depends on and that is no file of ours, such as torch's version.
    context: str

    @property
    def depfile(self) -> Path:
        """Return where the compiler lists the files that the source includes."""
        return self.output.with_suffix(".d")

    @property
    def signature_file(self) -> Path:
        """Return where the signature of the object's last compilation is kept."""
        return self.output.with_suffix(".sig")

    @property
    def signature(self) -> str:
        """Return a digest of everything but the files that the object depends on."""
        return hashlib.sha256("\0".join((*self.command, self.context)).encode()).hexdigest()


def find_compiler(environ: Mapping[str, str]) -> Compiler | None:
    """Return the compiler that CXX names, else the first of CANDIDATES, or None.

    Raises:
        ValueError: CXX names a compiler that does not exist or does not answer.
    """
    named = shlex.split(environ.get("CXX", ""))
    if named and shutil.which(named[0], path=environ.get("PATH")) is None:
        raise ValueError(f"CXX: must name a C++ compiler that is there (got {named[0]!r})")
    for command in [named] if named else [[name] for name in CANDIDATES]:
        if shutil.which(command[0], path=environ.get("PATH")) is not None:
            return describe_compiler(command)
    return None


def describe_compiler(command: Sequence[str]) -> Compiler:
    """Ask a compiler for its target, its version and its kind."""
    version = _answer(command, "--version").splitlines()
    macros = _answer(command, "-dM", "-E", "-x", "c++", os.devnull)
    return Compiler(
        command=tuple(command),
        target=_answer(command, "-dumpmachine").strip(),
        version=version[0] if version else " ".join(command),
        is_clang="__clang__" in macros,
    )


def _answer(command: Sequence[str], *flags: str) -> str:
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = shlex.join([*command, *flags])
        raise ValueError(f"{shown} failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def job_count(environ: Mapping[str, str]) -> int:
    """Return how many compilers may run at once: MAX_JOBS, by default 2.

    Raises:
        ValueError: MAX_JOBS is no positive integer.
    """
    text = environ.get("MAX_JOBS") or str(DEFAULT_JOBS)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"MAX_JOBS: must be a positive integer (got {text!r})")
    return int(text)


def is_current(job: Job) -> bool:
    """Return whether the job's object exists and is newer than everything it was made from."""
    files = (job.output, job.depfile, job.signature_file)
    if not all(path.exists() for path in files):
        return False
    if job.signature_file.read_text(encoding="utf-8") != job.signature:
        return False
    made = job.output.stat().st_mtime_ns
    included = _read_depfile(job.depfile)
    return all(path.exists() and path.stat().st_mtime_ns <= made for path in included)


def _read_depfile(depfile: Path) -> list[Path]:
    _, _, names = depfile.read_text(encoding="utf-8").replace("\\\n", " ").partition(": ")
    return [Path(name) for name in shlex.split(names)]


def compile_all(jobs: Sequence[Job], at_once: int) -> list[Path]:
    """Compile what is not current, ``at_once`` files at a time, and return those sources.

    Raises:
        subprocess.CalledProcessError: a compiler failed; its output is on stderr.
    """
    due = [job for job in jobs if not is_current(job)]
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        running = [pool.submit(_compile, job) for job in due]
        try:
            for future in running:
                future.result()
        except subprocess.CalledProcessError:
            # The jobs that still wait would only delay the message.
            pool.shutdown(cancel_futures=True)
            raise
    return [job.source for job in due]


def _compile(job: Job) -> None:
    # The line and its end are one write, because other threads write at the same time.
    print(f"compiling {job.source.name}\n", end="", flush=True)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    job.signature_file.unlink(missing_ok=True)
    subprocess.run(job.command, check=True)
    job.signature_file.write_text(job.signature, encoding="utf-8")
