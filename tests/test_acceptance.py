"""bench/gpu.py, which `make gpu` runs: on the CPU it goes the same ways, and says that it does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gpu_made_up
import pytest
import torch
from gpu_made_up import install, report
from source_tree import ROOT
from torch import Tensor

import fastclip

sys.path.append(str(ROOT / "bench"))

import clip_form
import devices
import entrants
import gpu
import gpu_report
import gpu_rows
from gradients import Gradients, WrongResultError
from shapes import Case
from timing import Effort

FIVE = Case("five", ((33,), (7, 5), (1,), (4097,), (31,)), "")
QUICK = ["--device", "cpu", "--quick", "--cases", "1000x64"]

needs_native = pytest.mark.skipif(not fastclip.build_info()["native"], reason="needs fastclip._C")


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the forms be chosen; returns those that were, in order."""
    module, chosen = gpu_made_up.clip_mode()
    monkeypatch.setitem(sys.modules, "fastclip.backends.clip_mode", module)
    return chosen


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let apex and TransformerEngine be imported."""
    install(monkeypatch, "amp_C")
    install(monkeypatch, "apex.contrib.clip_grad", clip_grad_norm_=torch.nn.utils.clip_grad_norm_)
    engine = vars(gpu_made_up.transformer_engine(on_device=True))
    install(monkeypatch, "transformer_engine.pytorch.optimizers", **engine)


def tables(text: str) -> list[str]:
    """Return the header lines of all tables of a Markdown text."""
    lines = text.splitlines()
    return [lines[i - 1] for i, line in enumerate(lines) if line.startswith("| --- |")]


# --- the run ------------------------------------------------------------------------------------


@needs_native
def test_a_run_on_the_cpu_says_everywhere_that_it_is_of_no_gpu(
    modes: list[str], others: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert gpu.main([*QUICK, "--dtypes", "float32", "bfloat16", "--out", str(out)]) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# NOT a GPU measurement")
    assert len(tables(text)) == 5
    assert all("NOT a GPU measurement" in header for header in tables(text))
    assert (out / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["is_gpu"] is False
    named = {"driver", "CUDA (torch's)", "CUDA (fastclip's)", "torch", "triton", "fastclip"}
    assert found["versions"].keys() == named
    assert found["machine"]["date"] and "commit" in found["machine"]
    assert [(row["dtype"], row["clipped"]) for row in found["rows"]] == [
        ("float32", False),
        ("float32", True),
        ("bfloat16", False),
        ("bfloat16", True),
    ]
    for row in found["rows"]:
        assert_row_adds_up(row, found["copy_gb_per_s"])
    assert [host["n_tensors"] for host in found["host_times"]] == [10, 100, 1000]
    assert {choice["default"] for choice in found["choices"]} == {None}
    assert set(modes) == {"auto", "fused", "split"} and modes[-1] == "auto"
    assert "native: no choice: this is NOT a GPU measurement" in capsys.readouterr().out


def assert_row_adds_up(row: dict[str, object], copy_gb_per_s: float) -> None:
    """Derive the rates of a row again from its times and the bytes that everyone moves."""
    entries, n_bytes = row["entries"], row["gradient_bytes"]
    assert isinstance(entries, dict) and isinstance(n_bytes, int)
    ours = {"native auto", "native fused", "native split", "native GradClipper"}
    assert ours | {"stock", "apex", "TransformerEngine"} <= entries.keys()
    for name, entry in entries.items():
        reads, writes = (1, 0) if name in ours and not row["clipped"] else (2, 1)
        assert (entry["bytes_read"], entry["bytes_written"]) == (reads * n_bytes, writes * n_bytes)
        rate = (reads + writes) * n_bytes / entry["device"]["median"] / 1e6
        assert entry["gb_per_s"] == pytest.approx(rate)
        assert entry["fraction_of_copy"] == pytest.approx(rate / copy_gb_per_s)
        assert entry["host"]["median"] > 0
        if name == "apex":
            assert entry["replay"] is None and entry["not_replayed"] == entrants.READS_BACK
        else:
            assert entry["replay"]["median"] > 0
        assert entry["error"] <= (2 * 2.0**-24 if name in ours else 2.0**-6)


@needs_native
def test_the_command_writes_a_report_without_the_others(tmp_path: Path) -> None:
    # Whatever is installed, no other is found.
    for name in ("apex", "transformer_engine"):
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError('made up')\n")
    environ = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu.py"), *QUICK, "--dtypes", "float32"],
        cwd=tmp_path,
        env={**os.environ, **environ},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "gpu-report" / "report.md").read_text(encoding="utf-8")
    absent = text.partition("## Who is not here")[2].partition("##")[0]
    assert "apex: ModuleNotFoundError: made up" in absent
    assert "TransformerEngine: ModuleNotFoundError: made up" in absent
    # What the tests and the sanitizer found is told only by those who ran them.
    assert "tests marked gpu: not run by this command" in text
    assert "compute-sanitizer: not run by this command" in text
    assert "FAILED" not in text


def test_a_wrong_result_ends_the_run_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = fastclip.clip_grad_norm_

    def wrong(parameters: list[Tensor], max_norm: float, *, backend: str) -> Tensor:
        return right(parameters, max_norm, backend=backend) * (1 + 4 * 2.0**-23)

    monkeypatch.setattr(fastclip, "clip_grad_norm_", wrong)
    ours = entrants.Entrant("ours", lambda g, m: entrants.list_call(g, m, "reference"), True)
    monkeypatch.setattr(entrants, "find", lambda _: entrants.Field([ours], {}))
    monkeypatch.setattr(gpu_rows._Row, "time", lambda *_: pytest.fail("timed before the check"))
    out = tmp_path / "out"
    assert gpu.main([*QUICK, "--dtypes", "float32", "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert "wrong result, nothing is reported: ours: total_norm must be" in told.err
    assert told.out == "" and not out.exists()


def test_without_a_gpu_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 1
    assert devices.main([]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    for line, who in zip(told.err.splitlines(), ("bench/gpu.py", "make gpu"), strict=True):
        assert line.startswith(f"{who}: a GPU is needed: torch {torch.__version__} ")
    assert not (tmp_path / "out").exists()


# --- who takes part -----------------------------------------------------------------------------


def test_a_backend_that_cannot_run_is_absent_with_its_reasons(
    monkeypatch: pytest.MonkeyPatch, modes: list[str]
) -> None:
    reasons = {"native": ["no driver", "no kernels"], "triton": [], "reference": []}
    monkeypatch.setattr(fastclip, "backend_report", lambda _: reasons)
    field = entrants.find("cuda")
    assert field.absent["fastclip native"] == "no driver; no kernels"
    names = [entrant.name for entrant in field.entrants if entrant.is_ours]
    assert names == ["triton auto", "triton fused", "triton split", "triton GradClipper"]
    reasons.pop("triton")
    assert "has no such backend" in entrants.find("cuda").absent["fastclip triton"]


def test_forms_are_absent_where_they_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_form, "_chooser", lambda: None)
    monkeypatch.setattr(fastclip, "backend_report", lambda _: {"native": [], "triton": ["none"]})
    field = entrants.find("cuda")
    assert {"native fused", "native split"} <= field.absent.keys()
    with clip_form.in_form("auto"):
        pass
    with pytest.raises(ValueError, match="form must be auto"), clip_form.in_form("split"):
        pass


def test_a_form_is_given_back_after_an_error(modes: list[str]) -> None:
    with pytest.raises(KeyError), clip_form.in_form("split"):
        raise KeyError
    assert modes == ["auto", "split", "auto"]


def test_apex_without_its_kernels_is_absent(monkeypatch: pytest.MonkeyPatch, others: None) -> None:
    assert "apex" not in entrants.find("cpu").absent
    monkeypatch.delitem(sys.modules, "amp_C")
    # It would call torch's clip without a word.
    assert "amp_C" in entrants.find("cpu").absent["apex"]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("clipped", [False, True])
def test_transformer_engine_clips_with_its_norm_and_its_scale(
    monkeypatch: pytest.MonkeyPatch, on_device: bool, clipped: bool
) -> None:
    engine = vars(gpu_made_up.transformer_engine(on_device))
    install(monkeypatch, "transformer_engine.pytorch.optimizers", **engine)
    entrant = entrants.find("cpu").entrants[-1]
    assert entrant.name == "TransformerEngine"
    assert entrant.passes(False) == ((2, 1) if on_device else (1, 0))
    assert entrant.not_captured == (None if on_device else entrants.READS_BACK)
    gradients = Gradients(FIVE, "float32")
    total_norm = entrant.prepare(gradients, gradients.max_norm(clipped))()
    assert gradients.norm_error(total_norm) < 1e-6
    gradients.check("it is as good as ours here", total_norm, clipped)


def test_transformer_engine_of_another_make_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "transformer_engine.pytorch.optimizers", multi_tensor_applier=None)
    told = entrants.find("cpu").absent["TransformerEngine"]
    assert told.startswith("AttributeError") and "multi_tensor_l2norm" in told


# --- what is timed ------------------------------------------------------------------------------


class Watched(devices.CpuDevice):
    """A CPU that notes what is asked of it, and on which no capture succeeds."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def clock(self, call: Callable[[], object]) -> tuple[object, float]:
        self.asked.append("clock")
        return super().clock(call)

    def flush(self, host_ms: float) -> None:
        assert host_ms > 0
        self.asked.append("flush")

    def synchronize(self) -> None:
        self.asked.append("synchronize")

    def capture(self, call: devices.Clip) -> devices.Clip:  # noqa: ARG002
        raise devices.NotCapturedError("not here")


def bench_of(device: devices.Device, *taking_part: entrants.Entrant) -> gpu_rows.Bench:
    stock = entrants.Entrant("stock", entrants._on_list(entrants._stock))
    return gpu_rows.Bench(device, [stock, *taking_part], Effort(2, 2, 0.0), 1e9)


def test_every_device_time_follows_a_flush_and_nobody_waits_in_a_host_time() -> None:
    device = Watched()
    ours = entrants.Entrant("ours", lambda g, m: entrants.list_call(g, m, "reference"), True)
    gradients = Gradients(FIVE, "float32")
    found = gpu_rows.measure_row(bench_of(device, ours), gradients, clipped=True)
    # Two checks; then two calls in three rounds, by the host's clock and by the device's.
    assert device.asked == ["synchronize"] * (2 + 2 * 3) + ["flush", "clock"] * (2 * 3)
    for entry in found["entries"].values():
        assert entry["replay"] is None and entry["not_replayed"] == "not here"
    for grad, saved in zip(gradients.grads, gradients.saved, strict=True):
        assert torch.equal(grad, saved)


def test_a_replay_is_checked_before_it_is_timed() -> None:
    class Faulty(devices.CpuDevice):
        def capture(self, call: devices.Clip) -> devices.Clip:
            return lambda: call() * 2

    ours = entrants.Entrant("ours", lambda g, m: entrants.list_call(g, m, "reference"), True)
    bench = bench_of(Faulty(), ours)
    with pytest.raises(WrongResultError, match="ours: total_norm must be"):
        gpu_rows.measure_row(bench, Gradients(FIVE, "float32"), clipped=False)


def halved(gradients: Gradients, max_norm: float) -> devices.Clip:
    return lambda: torch.nn.utils.clip_grad_norm_(gradients.parameters, max_norm / 2)


def astray(gradients: Gradients, max_norm: float) -> devices.Clip:
    return lambda: torch.nn.utils.clip_grad_norm_(gradients.parameters, max_norm) * 1.02


def refusing(gradients: Gradients, max_norm: float) -> devices.Clip:
    def call() -> Tensor:
        raise RuntimeError("no kernel image")

    return call


def test_anothers_wrong_or_missing_result_is_told_and_not_timed() -> None:
    taking_part = {"half": halved, "astray": astray, "refuses": refusing}
    bench = bench_of(
        devices.CpuDevice(), *(entrants.Entrant(*pair) for pair in taking_part.items())
    )
    found = gpu_rows.measure_row(bench, Gradients(FIVE, "bfloat16"), clipped=True)
    assert list(found["entries"]) == ["stock"]
    assert "gradient 0 is not its old value" in found["not_timed"]["half"]
    assert found["not_timed"]["astray"].startswith("its total_norm is off by 2.")
    assert found["not_timed"]["refuses"] == "RuntimeError: no kernel image"
    text = gpu_report.markdown(report([{**found, "case": "1000x64"}]))
    assert "- refuses at 1000x64 bfloat16, clipped: RuntimeError: no kernel image" in text


def test_a_flush_outlasts_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    device = object.__new__(devices.CudaDevice)
    device._flush_ms = 0.1
    writes: list[int] = []
    monkeypatch.setattr(devices.CudaDevice, "_write", lambda _: writes.append(1))
    device.flush(0.0)
    assert len(writes) == 1
    device.flush(2.0)
    assert (len(writes) - 2) * 0.1 >= 2.0 * 1.4
