"""build_support.check_wheel: what it sees in doctor's findings, and what it answers."""

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from source_tree import check_wheel

import fastclip
from fastclip.backends import extension
from fastclip.cli.doctor import Diagnosis, examine


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return examine()


def recorded() -> dict[str, object]:
    """Return what the wheel of the installed fastclip records."""
    return {key: value for key, value in fastclip.build_info().items() if key != "version"}


def test_what_is_installed_here_passes(diagnosis: Diagnosis) -> None:
    assert check_wheel.judge(recorded(), diagnosis) == []


@pytest.mark.skipif(not fastclip.build_info()["native"], reason="needs fastclip._C")
def test_what_is_wrong_is_told(diagnosis: Diagnosis) -> None:
    unwell: Diagnosis = {**diagnosis, "ok": False}
    assert check_wheel.judge(recorded(), unwell) == ["fastclip doctor does not pass"]
    (other,) = check_wheel.judge({**recorded(), "cuda": "11.0"}, diagnosis)
    assert other.startswith("doctor examined another build: {") and "'cuda': '11.0'" in other
    refused: Diagnosis = {**diagnosis, "backends": {"native": ["a", "b"]}}
    assert check_wheel.judge(recorded(), refused) == [
        "native cannot run: a",
        "native cannot run: b",
    ]
    assert check_wheel.judge(recorded(), {**diagnosis, "backends": {}}) == [
        "native cannot run: it was not examined"
    ]
    idle: Diagnosis = {**diagnosis, "self_check": {**diagnosis["self_check"], "calls": {}}}
    assert check_wheel.judge(recorded(), idle) == ["the self-check did not call native"]


@pytest.mark.skipif(not fastclip.build_info()["native"], reason="needs fastclip._C")
def test_the_extension_itself_is_asked_for_cuda_kernels() -> None:
    reasons = importlib.import_module("fastclip._C").cuda_reasons(0)
    kernels_are_there = fastclip.build_info()["cuda"] is not None
    assert (check_wheel.judge_kernels(reasons) == []) is kernels_are_there
    assert check_wheel.judge_kernels([extension.NO_KERNELS]) == [
        "the extension says: fastclip._C has no CUDA kernels"
    ]


@pytest.mark.parametrize("problems", [[], ["native cannot run: a"]])
def test_the_status_tells_the_outcome(
    problems: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []

    def check(wheel: Path, requirement: str, place: Path) -> list[str]:
        asked.append(requirement)
        return problems

    monkeypatch.setattr(check_wheel, "check", check)
    monkeypatch.setattr(check_wheel.metadata, "version", lambda name: f"of {name}")
    assert check_wheel.main([str(tmp_path / "a.whl")]) == len(problems)
    assert check_wheel.main(["a.whl", "--torch", "torch==2.14.1"]) == len(problems)
    assert asked == ["torch==of torch", "torch==2.14.1"]
    said = capsys.readouterr().out.splitlines()
    assert said[: len(problems) + 1] == [
        *(f"problem: {problem}" for problem in problems),
        f"a.whl: {'NOT ok' if problems else 'ok'}",
    ]


def test_what_cannot_be_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(place: Path, *command: str, may_fail: bool = False) -> str:
        raise subprocess.CalledProcessError(1, command, "", "no matching distribution")

    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fastclip/_build_info.json", "{}")
    monkeypatch.setattr(check_wheel, "_run", run)
    monkeypatch.setattr(check_wheel.venv, "create", lambda place, with_pip: None)
    assert check_wheel.main([str(wheel)]) == 1
    assert "no matching distribution" in capsys.readouterr().out


def test_a_doctor_that_crashes_is_told_from_one_that_finds_something(tmp_path: Path) -> None:
    found = (sys.executable, "-c", "print('NOT ok'); raise SystemExit(1)")
    assert check_wheel._run(tmp_path, *found, may_fail=True) == "NOT ok\n"
    for command, may_fail in ((found, False), ((sys.executable, "-c", "1 / 0"), True)):
        with pytest.raises(subprocess.CalledProcessError):
            check_wheel._run(tmp_path, *command, may_fail=may_fail)
