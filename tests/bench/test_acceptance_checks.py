"""What `make gpu` runs before the times, and what makes it fail."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from source_tree import ROOT

import fastclip
from bench.gpu import checks as gpu_checks
from bench.gpu import devices, entrants, sanitize
from bench.gpu import run as gpu

RUN = ["--device", "cpu", "--quick", "--cases", "1000x64", "--dtypes", "float32"]

JUNIT = """<testsuites><testsuite>
<testcase name="a" /><testcase name="b"><skipped message="needs two GPUs" /></testcase>
<testcase name="c"><skipped message="needs two GPUs" /></testcase>
</testsuite></testsuites>"""

# --- the recipe ---------------------------------------------------------------------------------


def clean_environment() -> dict[str, str]:
    """Return the environment without the variables that the tests may have been started with."""
    ours = ("FASTCLIP_BUILD", "SANITIZER", "VENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    return {name: value for name, value in os.environ.items() if name not in ours}


def recipe(*variables: str) -> str:
    """Return what `make gpu` would run."""
    done = subprocess.run(
        ["make", "-n", "gpu", "TORCH=any", *variables],
        cwd=ROOT,
        env=clean_environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("sanitizer", ["", "/opt/cuda/compute-sanitizer"])
def test_make_gpu_asks_for_a_gpu_then_tests_then_times(sanitizer: str) -> None:
    told = recipe(f"SANITIZER={sanitizer}")
    # What an older run left is removed first. pip installs torch before anything can be asked, and
    # all else afterwards.
    steps = ("bench devices", "gpu.xml .venv/sanitized.txt gpu-report/report.md", "pip install")
    steps += ("-m gpu", f'bench sanitize --sanitizer "{sanitizer}"', "bench gpu")
    places = [told.rindex(step) for step in steps]
    assert places == sorted(places)
    assert told.count("TRITON_INTERPRET=0") == 2


# Logs what it runs; fails at the tests and under the sanitizer, and at the times if told so.
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
*--build*) echo cuda ;;
"bench gpu"*) ls "$REPORT" "$(dirname "$LOG")" >> "$LOG"; exit "$STATUS" ;;
"-m pytest"*|"bench sanitize"*) exit 1 ;;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("status", [0, 1])
def test_make_gpu_takes_the_times_though_tests_fail(tmp_path: Path, status: int) -> None:
    venv, out, log = tmp_path / "env", tmp_path / "report", tmp_path / "env" / "log"
    (venv / "bin").mkdir(parents=True)
    out.mkdir()
    python = venv / "bin" / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    old = [out / "report.md", out / "report.png", venv / "gpu.xml", venv / "sanitized.txt"]
    for file in old:
        file.write_text("of an older run")
    environ = {"LOG": str(log), "REPORT": str(out), "STATUS": str(status)}
    variables = ("TORCH=any", f"VENV={venv}", f"GPU_REPORT={out}", "SANITIZER=")
    done = subprocess.run(
        ["make", "gpu", *variables],
        cwd=ROOT,
        env={**clean_environment(), **environ},
        check=False,
        capture_output=True,
        text=True,
    )
    # What takes the times decides, alone.
    assert (done.returncode == 0) is (status == 0), done.stderr
    told = log.read_text(encoding="utf-8")
    steps = ("-m pytest", "bench sanitize", "bench gpu")
    assert [told.index(step) for step in steps] == sorted(told.index(step) for step in steps)
    # They were gone before the times were taken.
    listed = told.rpartition("--sanitizer")[2].splitlines()[1:]
    assert not {file.name for file in old} & set(listed)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_takes_an_environment_from_elsewhere(tmp_path: Path) -> None:
    told = recipe(f"VENV={tmp_path}/env", "SANITIZER=")
    assert ".." not in told and ".venv" not in told
    assert f"-c {ROOT}/pyproject.toml" in told and f"{ROOT}/tests" in told


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_builds_cuda_kernels_for_a_torch_with_cuda(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n[ "$3" = --build ] && echo cuda\n')
    python.chmod(0o755)
    assert "FASTCLIP_BUILD=cuda " in recipe(f"VENV={tmp_path}")
    # What the user set holds.
    assert "FASTCLIP_BUILD=cpu " in recipe(f"VENV={tmp_path}", "FASTCLIP_BUILD=cpu")


def test_make_gpu_runs_every_file_that_needs_a_gpu() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    marked = [path.name for path, text in texts.items() if "pytest.mark.gpu" in text]
    assert set(marked) - {Path(__file__).name} == {"test_gpu.py"}


@pytest.mark.parametrize(("cuda", "build"), [("13.0", "cuda"), (None, "auto")])
def test_what_is_built_follows_from_torch(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cuda: str | None,
    build: str,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert devices.main(["--build"]) == 0
    assert capsys.readouterr().out == f"{build}\n"


# --- compute-sanitizer --------------------------------------------------------------------------

FAKE = """#!/bin/sh
echo "${PYTORCH_NO_CUDA_MEMORY_CACHING:-caching}" "$@" >> "$0.log"
[ "$2" = "${FAKE_BAD_TOOL:-none}" ] && exit "$FAKE_STATUS"
exit 0
"""


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """Return a compute-sanitizer that runs nothing and logs what it was asked."""
    file = tmp_path / "compute-sanitizer"
    file.write_text(FAKE)
    file.chmod(0o755)
    return file


def sanitized(tool: Path) -> tuple[int, list[str]]:
    out = tool.parent / "sanitized.txt"
    status = sanitize.main(["--sanitizer", str(tool), "--out", str(out)])
    return status, out.read_text(encoding="utf-8").splitlines()


def test_every_tool_of_the_sanitizer_runs(tool: Path) -> None:
    status, lines = sanitized(tool)
    assert status == 0
    assert [line.partition(":")[0] for line in lines] == [run.title for run in sanitize.RUNS]
    assert all(line.endswith(": nothing reported") for line in lines)
    asked = (tool.parent / "compute-sanitizer.log").read_text().splitlines()
    # Errors of API calls are torch's own probing; option and tool go together.
    assert [("--report-api-errors no" in line) for line in asked] == [
        run.tool == "memcheck" for run in sanitize.RUNS
    ]
    assert [line.partition(" ")[0] for line in asked] == ["1"] * 4 + ["caching"]
    assert all(" not big " in line for line in asked)


@pytest.mark.parametrize(
    ("status", "told"),
    [("86", "ERRORS REPORTED"), ("1", "TESTS FAILED, exit status 1")],
)
def test_a_complaint_is_written_and_the_other_tools_still_run(
    monkeypatch: pytest.MonkeyPatch, tool: Path, status: str, told: str
) -> None:
    monkeypatch.setenv("FAKE_BAD_TOOL", "racecheck")
    monkeypatch.setenv("FAKE_STATUS", status)
    found, lines = sanitized(tool)
    assert found == 1 and len(lines) == len(sanitize.RUNS)
    assert lines[1] == f"racecheck: {told}" and lines[2] == "initcheck: nothing reported"
    check = gpu_checks.check_sanitizer(tool.parent / "sanitized.txt", {"native": None})
    assert check.failures == [f"compute-sanitizer: racecheck: {told}"]


def test_a_sanitizer_by_a_relative_path(monkeypatch: pytest.MonkeyPatch, tool: Path) -> None:
    monkeypatch.chdir(tool.parent)
    out = tool.parent / "elsewhere" / "sanitized.txt"
    out.parent.mkdir()
    assert sanitize.main(["--sanitizer", f"./{tool.name}", "--out", str(out)]) == 0
    tool.unlink()
    assert sanitize.main(["--sanitizer", f"./{tool.name}", "--out", str(out)]) == 1
    assert "memcheck: TESTS FAILED, [Errno 2]" in out.read_text(encoding="utf-8")


def test_without_the_sanitizer_its_check_is_skipped(tmp_path: Path) -> None:
    out = tmp_path / "sanitized.txt"
    assert sanitize.main(["--sanitizer", "", "--out", str(out)]) == 1
    check = gpu_checks.check_sanitizer(out, {"native": None, "triton": None})
    assert check == gpu_checks.Check("SKIPPED: compute-sanitizer is not installed", [])


def test_the_sanitizers_check_says_what_it_left_out(tool: Path) -> None:
    sanitized(tool)
    file = tool.parent / "sanitized.txt"
    # Triton's tests ran: their result counts, though native has none.
    check = gpu_checks.check_sanitizer(file, {"native": "no driver", "triton": None})
    assert check.summary.startswith("memcheck: nothing reported; racecheck: nothing reported")
    assert "Left out: the tests marked big; under racecheck" in check.summary
    assert check.summary.endswith("Without native: no driver") and check.failures == []
    check = gpu_checks.check_sanitizer(file, {"native": "no driver", "triton": "no GPU"})
    assert check.summary.startswith(
        "SKIPPED, as no backend with GPU kernels can run here: native: no"
    )


# --- the verdict --------------------------------------------------------------------------------


def test_skipped_tests_are_told_as_skipped(tmp_path: Path) -> None:
    junit = tmp_path / "gpu.xml"
    junit.write_text(JUNIT)
    assert gpu_checks.check_tests(junit) == gpu_checks.Check(
        "1 passed, 0 failed, 2 SKIPPED (needs two GPUs)", []
    )
    assert gpu_checks.check_tests(None) == gpu_checks.Check("not run by this command")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no report that can be read: "),
        (JUNIT[:60], "no report that can be read: "),
        (JUNIT.replace('"a" />', '"a"><failure /></testcase>'), "0 passed, 1 failed, 2 SKIPPED"),
        (JUNIT.replace('name="c"><skipped', 'name="c"><error'), "1 passed, 1 failed, 1 SKIPPED"),
        (JUNIT.replace('<testcase name="a" />', ""), "0 passed, 0 failed, 2 SKIPPED"),
        ("<testsuites />", "0 passed, 0 failed, 0 SKIPPED"),
    ],
)
def test_tests_that_did_not_all_pass_fail_the_run(
    tmp_path: Path, text: str | None, told: str
) -> None:
    junit = tmp_path / "gpu.xml"
    if text is not None:
        junit.write_text(text)
    check = gpu_checks.check_tests(junit)
    assert check.summary.startswith(told)
    assert check.failures == [f"tests marked gpu: {check.summary}"]


@pytest.mark.parametrize("text", [None, ""])
def test_a_sanitizer_without_a_report_fails_the_run(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "sanitized.txt"
    if text is not None:
        file.write_text(text)
    (failure,) = gpu_checks.check_sanitizer(file, {"native": None}).failures
    assert failure.startswith("compute-sanitizer: no report that can be read")


def test_a_gpu_without_a_backend_fails_the_run() -> None:
    absent = {"native": "no driver", "triton": "no triton"}
    missing = gpu_checks.missing_backends
    assert missing(absent, True, True) == [
        "the backend native cannot run here: no driver",
        "the backend triton cannot run here: no triton",
    ]
    # ROCm has no native kernels; the CPU stands in for a GPU where there is none.
    assert missing(absent, True, False) == ["the backend triton cannot run here: no triton"]
    assert missing(absent, False, True) == []
    assert missing({"native": None, "triton": None}, True, True) == []


def test_a_run_without_fastclip_fails_and_still_writes_its_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"native": ["not built"], "triton": ["no triton"]}
    monkeypatch.setattr(fastclip, "backend_report", lambda _: nothing)
    junit = tmp_path / "gpu.xml"
    assert gpu.main([*RUN, "--out", str(tmp_path), "--junit", str(junit)]) == 1
    failures = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["failures"]
    assert failures[0] == "no form of fastclip was timed"
    assert failures[1].startswith("tests marked gpu: no report that can be read")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith(f"FAILED: {failures[0]}\n\nFAILED: {failures[1]}\n\n# NOT a GPU")
    assert f"FAILED: {failures[0]}\nFAILED: {failures[1]}\n" in capsys.readouterr().err
    assert [entrant.name for entrant in entrants.find("cpu").present if entrant.is_ours] == []
