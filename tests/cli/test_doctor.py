"""``fastclip doctor``: it says ok where all is well, and what differs where it is not."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastclip
from fastclip.cli.awkward import LAYOUTS, awkward_lists, float64_norm
from fastclip.cli.doctor import describe, openmp_runtimes, openmp_warnings
from fastclip.cli.main import main
from fastclip.cli.self_check import AUTOMATIC, BackendResult, check_backends

NATIVE_IS_THERE = not fastclip.backend_report()["native"]


def run_program(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m fastclip`` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "fastclip", *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def check_automatic() -> BackendResult:
    """Run the self-check only on the automatic choice."""
    return check_backends([])[1][AUTOMATIC]


def test_doctor_says_ok(tmp_path: Path) -> None:
    done = run_program("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line]
    said = {line[0]: line[1] for line in lines if len(line) == 2}
    assert said["fastclip"].startswith(fastclip.__version__)
    assert said["torch"] == torch.__version__
    usable = [name for name, reasons in fastclip.backend_report().items() if not reasons]
    for name in [*usable, AUTOMATIC]:
        if name == "triton":  # interpreted here
            assert said[name] == "not checked: its interpreter would take minutes"
            continue
        assert said[name].startswith("ok, "), done.stdout
    assert done.stdout.splitlines()[-1] == "ok"


def test_doctor_json(tmp_path: Path) -> None:
    done = run_program("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    diagnosis = json.loads(done.stdout)
    assert diagnosis["ok"] is True
    assert diagnosis["backends"] == fastclip.backend_report()
    assert diagnosis["build"] == dict(fastclip.build_info())
    assert diagnosis["instruction_set"] == fastclip.instruction_set()
    assert diagnosis["self_check"]["tensors"] >= 200
    assert set(diagnosis["self_check"]["calls"]) >= {AUTOMATIC, "reference"}
    assert all(calls >= 300 for calls in diagnosis["self_check"]["calls"].values())
    assert not any(diagnosis["self_check"]["differences"].values())


def test_wrong_scale_fails_the_self_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = fastclip.clip_grad_norm_

    def wrong(
        parameters: list[Tensor],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        *,
        backend: str | None = None,
    ) -> Tensor:
        total_norm = right(parameters, max_norm, norm_type, error_if_nonfinite, backend=backend)
        if backend == "reference" and norm_type == 3.0 and float(total_norm) > max_norm:
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(1.0 + 2.0**-6)
        return total_norm

    monkeypatch.setattr(fastclip, "clip_grad_norm_", wrong)
    assert main(["doctor", "--json"]) == 1
    diagnosis = json.loads(capsys.readouterr().out)
    differences = diagnosis["self_check"]["differences"]
    assert [name for name in differences if differences[name]] == ["reference"]
    for found in differences["reference"]:
        assert "p = 3" in found["call"]
        assert "gradient" in found["what"]
        assert abs(float(found["got"]) / float(found["expected"]) - 1.0) > 2.0**-7
    text = "\n".join(describe(diagnosis))
    assert "WRONG" in text
    assert differences["reference"][0]["expected"] in text
    assert differences["reference"][0]["got"] in text
    assert text.splitlines()[-1].startswith("NOT ok")


def test_lost_last_element_fails_the_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastclip.get_total_norm

    def wrong(
        tensors: list[Tensor], norm_type: float = 2.0, *, backend: str | None = None
    ) -> Tensor:
        shorter = [tensor.flatten()[:-1] for tensor in tensors]
        return right(shorter, norm_type, backend=backend)

    monkeypatch.setattr(fastclip, "get_total_norm", wrong)
    calls = {found.call for found in check_automatic().differences}
    assert any('"largest at the end"' in call for call in calls)
    assert all(call.startswith("get_total_norm and clip_grads_with_norm_") for call in calls)


def test_missing_clamp_fails_the_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastclip, "clip_grad_value_", lambda *_, backend: None)
    calls = {found.call for found in check_automatic().differences}
    assert calls
    assert all(call.startswith("clip_grad_value_") for call in calls)


def test_write_before_the_nonfinite_error_fails_the_self_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = fastclip.clip_grad_norm_

    def wrong(
        parameters: list[Tensor],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        *,
        backend: str | None = None,
    ) -> Tensor:
        if error_if_nonfinite:
            first = parameters[0].grad
            assert first is not None
            first.zero_()
        return right(parameters, max_norm, norm_type, error_if_nonfinite, backend=backend)

    monkeypatch.setattr(fastclip, "clip_grad_norm_", wrong)
    differences = check_automatic().differences
    assert differences
    assert all("error_if_nonfinite" in found.call for found in differences)
    assert {found.got for found in differences} == {"0.0"}


def test_exception_fails_the_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, backend: str | None) -> None:
        raise OSError(f"{backend}: out of order")

    monkeypatch.setattr(fastclip, "clip_grad_value_", wrong)
    got = {found.got for found in check_automatic().differences}
    assert got == {"OSError: None: out of order"}


def test_float64_norm_is_torchs_where_float64_has_room() -> None:
    generator = torch.Generator().manual_seed(1)
    flat = [torch.randn(n, generator=generator, dtype=torch.float64) for n in (0, 1, 33, 1000)]
    for norm_type in (1.0, 2.0, 3.0, float("inf")):
        expected = torch.linalg.vector_norm(torch.cat(flat), norm_type).item()
        assert float64_norm(flat, norm_type) == pytest.approx(expected, rel=1e-13)
    assert float64_norm([torch.full((4,), 1e200, dtype=torch.float64)], 2.0) == 2e200
    assert float64_norm([], 2.0) == 0.0


def test_awkward_lists_are_as_described() -> None:
    layouts = set()
    for awkward in awkward_lists():
        layouts.update(awkward.layouts)
        for gradient, flat, layout in zip(
            awkward.gradients(), awkward.flat, awkward.layouts, strict=True
        ):
            torch.testing.assert_close(
                gradient.flatten().double(), flat, rtol=0, atol=0, equal_nan=True
            )
            if flat.numel() > 1:
                dense = torch.empty_like(gradient).stride() == gradient.stride()
                assert dense == (layout != "gaps")
            if layout == "misaligned":
                assert gradient.storage_offset() == 1
            if layout == "permuted" and flat.numel() % 2 == 0 and flat.numel() > 2:
                assert not gradient.is_contiguous()
    assert layouts == {*LAYOUTS, "gaps"}


def test_two_openmp_runtimes_are_warned_of() -> None:
    maps = """\
7f0000000000-7f0000001000 r-xp 00000000 fe:00 12 /opt/a b/torch/lib/libgomp-a34b3233.so.1.0.0
7f0000002000-7f0000003000 r--p 00001000 fe:00 12 /opt/a b/torch/lib/libgomp-a34b3233.so.1.0.0
7f0000004000-7f0000005000 r-xp 00000000 fe:00 13 /usr/lib/libiomp5.so
7f0000006000-7f0000007000 r-xp 00000000 fe:00 14 /usr/lib/libompi_cuda.so.3
7f0000008000-7f0000009000 rw-p 00000000 00:00 0
"""
    runtimes = openmp_runtimes(maps)
    assert runtimes == [
        "/opt/a b/torch/lib/libgomp-a34b3233.so.1.0.0",
        "/usr/lib/libiomp5.so",
    ]
    warned = openmp_warnings(runtimes)
    assert len(warned) == 1
    assert all(runtime in warned[0] for runtime in runtimes)
    assert openmp_warnings(runtimes[:1]) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_torchs_openmp_runtime_is_found() -> None:
    if not torch.backends.openmp.is_available():
        pytest.skip("this torch is built without OpenMP")
    assert len(openmp_runtimes(Path("/proc/self/maps").read_text(encoding="utf-8"))) == 1


@pytest.mark.skipif(not NATIVE_IS_THERE, reason="FASTCLIP_ISA is read by the native backend")
def test_unknown_instruction_set_is_said_in_words(tmp_path: Path) -> None:
    for extra in ([], ["--json"]):
        done = run_program("doctor", *extra, cwd=tmp_path, environment={"FASTCLIP_ISA": "nonsense"})
        assert done.returncode == 1
        assert "FASTCLIP_ISA" in done.stdout
        assert "nonsense" in done.stdout
        assert "Traceback" not in done.stderr
    diagnosis = json.loads(done.stdout)
    assert diagnosis["ok"] is False
    assert len(diagnosis["problems"]) == 1
    demo = run_program("demo", cwd=tmp_path, environment={"FASTCLIP_ISA": "nonsense"})
    assert demo.returncode == 2
    assert demo.stderr.splitlines() == [f"demo: {diagnosis['problems'][0]}"]


def test_without_arguments_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "doctor" in text
    assert "demo" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"fastclip {fastclip.__version__}"
