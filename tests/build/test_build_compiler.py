"""build_support.compiler: the choice of a compiler, its flags, and what is compiled again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import compiler, extension

GXX = shutil.which("g++")
needs_gxx = pytest.mark.skipif(GXX is None, reason="needs g++")


def fake_compiler(path: Path, macros: str) -> Path:
    """Write a program that answers what describe_compiler asks."""
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "  *--version) echo 'fake 1.0'; echo second line;;\n"
        "  *-dumpmachine) echo aarch64-linux-gnu;;\n"
        f"  *-dM*) echo '{macros}';;\n"
        "esac\n"
    )
    path.chmod(0o755)
    return path


def compile_jobs(folder: Path, *extra: str, context: str = "") -> list[str]:
    """Compile a.cpp and b.cpp of ``folder`` and return the names of those that were compiled."""
    jobs = []
    for name in ("a", "b"):
        source, output = folder / f"{name}.cpp", folder / "objects" / f"{name}.o"
        depfile = str(output.with_suffix(".d"))
        command = (str(GXX), *extra, "-c", str(source), "-o", str(output), "-MMD", "-MF", depfile)
        jobs.append(compiler.Job(source, output, command, context))
    return [path.name for path in compiler.compile_all(jobs, at_once=2)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "a b.h").write_text("inline int one() { return 1; }\n")
    (tmp_path / "a.cpp").write_text('#include "a b.h"\nint a() { return one(); }\n')
    (tmp_path / "b.cpp").write_text("int b() { return 2; }\n")
    return tmp_path


@needs_gxx
def test_only_what_changed_is_compiled_again(project: Path) -> None:
    assert compile_jobs(project) == ["a.cpp", "b.cpp"]
    assert compile_jobs(project) == []
    newer = (project / "objects" / "a.o").stat().st_mtime_ns + 10**9
    os.utime(project / "a b.h", ns=(newer, newer))
    assert compile_jobs(project) == ["a.cpp"]
    (project / "objects" / "b.o").unlink()
    assert "b.cpp" in compile_jobs(project)
    assert compile_jobs(project, "-O1") == ["a.cpp", "b.cpp"]
    assert compile_jobs(project, "-O1", context="torch 2.14") == ["a.cpp", "b.cpp"]


@needs_gxx
def test_a_file_that_failed_is_due_again(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "b.cpp").write_text("int b() { return }\n")
    with pytest.raises(subprocess.CalledProcessError):
        compile_jobs(project)
    assert "b.cpp:1" in capfd.readouterr().err
    (project / "b.cpp").write_text("int b() { return 2; }\n")
    assert "b.cpp" in compile_jobs(project)
    assert compile_jobs(project) == []


def test_no_more_compilers_run_than_allowed(tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    program.write_text(
        "import sys, time, pathlib\n"
        "start = time.monotonic(); time.sleep(0.2)\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{start} {time.monotonic()}')\n"
    )
    outputs = [tmp_path / f"{index}.o" for index in range(5)]
    jobs = [
        compiler.Job(program, output, (sys.executable, str(program), str(output)), "")
        for output in outputs
    ]
    compiler.compile_all(jobs, at_once=2)
    spans = [[float(word) for word in output.read_text().split()] for output in outputs]
    running = [sum(start <= at < end for start, end in spans) for at, _ in spans]
    assert max(running) == 2


def test_job_count_is_max_jobs() -> None:
    assert compiler.job_count({}) == 2
    assert compiler.job_count({"MAX_JOBS": "7"}) == 7
    for text in ("0", "-1", "two"):
        with pytest.raises(ValueError, match=f"MAX_JOBS: must be .* \\(got '{text}'\\)"):
            compiler.job_count({"MAX_JOBS": text})


def test_cxx_names_the_compiler(tmp_path: Path) -> None:
    fake = fake_compiler(tmp_path / "mine", "#define __GNUC__ 12")
    found = compiler.find_compiler({"CXX": f"{fake} -march=armv8-a", "PATH": ""})
    assert found is not None
    assert found.command == (str(fake), "-march=armv8-a")
    assert (found.version, found.target) == ("fake 1.0", "aarch64-linux-gnu")
    assert not found.targets_x86_64
    assert found.openmp_flags == ("-fopenmp",)
    assert compiler.find_compiler({"PATH": ""}) is None
    with pytest.raises(ValueError, match="CXX: must name a C\\+\\+ compiler that is there"):
        compiler.find_compiler({"CXX": "no-such-compiler", "PATH": os.environ["PATH"]})


def test_clang_is_built_without_a_second_openmp_runtime(tmp_path: Path) -> None:
    fake = fake_compiler(tmp_path / "clang++", "#define __clang__ 1")
    found = compiler.find_compiler({"CXX": str(fake)})
    assert found is not None
    assert found.openmp_flags == ()
    assert found.description == "fake 1.0, without OpenMP: one thread"


def test_gxx_is_preferred_to_clang(tmp_path: Path) -> None:
    for name in ("clang++", "g++"):
        fake_compiler(tmp_path / name, "")
    found = compiler.find_compiler({"PATH": f"{tmp_path}:{os.defpath}"})
    assert found is not None
    assert found.command == ("g++",)


def test_a_compiler_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no licence >&2\nexit 9\n")
    broken.chmod(0o755)
    with pytest.raises(ValueError, match="failed with status 9: no licence"):
        compiler.find_compiler({"CXX": str(broken)})


def test_users_flags_come_before_those_that_keep_the_promises(tmp_path: Path) -> None:
    built = compiler.Compiler(("g++",), "x86_64-linux-gnu", "13", is_clang=False)
    environ = {"CXXFLAGS": "-O1 -ffp-contract=fast", "CFLAGS": "-pipe"}
    source = tmp_path / "kernels_avx2.cpp"
    flags = extension.kernel_flags(built, source)
    command = extension.compile_command(built, source, flags, environ)
    order = [command.index(flag) for flag in ("-O3", "-pipe", "-O1", "-ffp-contract=off", "-mavx2")]
    assert order == sorted(order)
    assert command.index("-ffp-contract=fast") < command.index("-ffp-contract=off")
    assert "-mavx512f" not in command
