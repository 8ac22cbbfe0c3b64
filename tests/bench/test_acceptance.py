"""bench gpu, which `make gpu` runs: on the CPU it goes the same ways, and says that it does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_gpu_report import choose_forms, install_others, ours
from source_tree import ROOT
from torch import Tensor

import fastclip
from bench.core.gradients import Gradients
from bench.core.shapes import Case
from bench.gpu import devices, entrants
from bench.gpu import rows as gpu_rows
from bench.gpu import run as gpu

QUICK = ["--device", "cpu", "--quick", "--cases", "1000x64"]

needs_native = pytest.mark.skipif(not fastclip.build_info()["native"], reason="needs fastclip._C")


def tables(text: str) -> list[str]:
    """Return the header lines of all tables of a Markdown text."""
    lines = text.splitlines()
    return [lines[i - 1] for i, line in enumerate(lines) if line.startswith("| --- |")]


# --- the run ------------------------------------------------------------------------------------


@needs_native
def test_a_run_on_the_cpu_says_everywhere_that_it_is_of_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    modes = choose_forms(monkeypatch)
    install_others(monkeypatch)
    states = iter(({"clock": "210 MHz"}, {"clock": "1980 MHz"}))
    monkeypatch.setattr(devices.Device, "state", lambda _: next(states))
    out = tmp_path / "out"
    assert gpu.main([*QUICK, "--dtypes", "float32", "bfloat16", "--out", str(out)]) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# NOT a GPU measurement")
    assert len(tables(text)) == 5
    assert all("NOT a GPU measurement" in header for header in tables(text))
    assert (out / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["is_gpu"] is False
    clocks = (found["facts"]["clock, before"], found["facts"]["clock, right after"])
    assert clocks == ("210 MHz", "1980 MHz")
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
    assert {choice["faster"] for choice in found["choices"]} == {None}
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
        [sys.executable, str(ROOT / "bench"), "gpu", *QUICK, "--dtypes", "float32"],
        cwd=tmp_path,
        env={**os.environ, **environ},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "gpu-report" / "report.md").read_text(encoding="utf-8")
    absent = text.partition("## What is not here")[2].partition("##")[0]
    assert "apex: ModuleNotFoundError: made up" in absent
    assert "TransformerEngine: ModuleNotFoundError: made up" in absent
    # What the tests and the sanitizer found is told only by those who ran them.
    assert "tests marked gpu: not run by this command" in text
    assert "compute-sanitizer: not run by this command" in text
    assert "FAILED" not in text


def wrong(parameters: list[Tensor], max_norm: float, *, backend: str) -> Tensor:
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm * (1 + 4 * 2.0**-23)


def test_a_wrong_result_fails_the_run_and_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fastclip, "clip_grad_norm_", wrong)
    stock = entrants.find("cpu").present[0]
    chosen = entrants.Entrants([stock, ours()], {})
    monkeypatch.setattr(entrants, "find", lambda _: chosen)
    assert gpu.main([*QUICK, "--dtypes", "float32", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [list(row["entries"]) for row in found["rows"]] == [["stock"]] * 2
    assert all(list(host["microseconds"]) == ["stock"] for host in found["host_times"])
    told = "FAILED: ours at 1000x64 float32, not clipped: ours: total_norm must be"
    assert told in capsys.readouterr().err
    assert told in (tmp_path / "report.md").read_text(encoding="utf-8").partition("# NOT")[0]


def one_case_without_memory(case: Case, dtype: str, device: str) -> Gradients:
    if dtype == "bfloat16":
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")
    return Gradients(case, dtype, device)


def test_too_little_memory_costs_one_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    freed: list[int] = []
    monkeypatch.setattr(devices.Device, "free_memory", lambda _: freed.append(1))
    monkeypatch.setattr(gpu, "Gradients", one_case_without_memory)
    chosen = entrants.Entrants([entrants.find("cpu").present[0], ours()], {})
    monkeypatch.setattr(entrants, "find", lambda _: chosen)
    dtypes = ["float32", "bfloat16", "float16", "float16"]
    assert gpu.main([*QUICK, "--dtypes", *dtypes, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    # And a dtype that is named twice is measured once.
    assert [row["dtype"] for row in found["rows"]] == ["float32"] * 2 + ["float16"] * 2
    reason = "OutOfMemoryError: tried to allocate 2 GiB"
    assert found["skipped"] == {"1000x64 bfloat16": reason} and freed == [1]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"- everything at 1000x64 bfloat16: {reason}" in text
    assert not (tmp_path / gpu.PARTIAL).exists()


def test_a_device_that_fails_ends_the_run_with_the_rows_so_far(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = gpu.measure_row

    def once(bench: gpu.Bench, gradients: Gradients, clipped: bool) -> gpu_rows.GpuRow:
        if clipped:
            raise RuntimeError("an illegal memory access\nwas encountered")
        return measured(bench, gradients, clipped)

    monkeypatch.setattr(gpu, "measure_row", once)
    monkeypatch.setattr(gpu, "measure_host", lambda _: pytest.fail("the device is broken"))
    assert gpu.main([*QUICK, "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [(row["dtype"], row["clipped"]) for row in found["rows"]] == [("float32", False)]
    told = "the run ended at 1000x64 float32: RuntimeError: an illegal memory access"
    assert found["failures"][-1] == told


def test_a_crash_leaves_the_rows_so_far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def crash(_: object) -> None:
        raise KeyboardInterrupt

    for name in ("report.md", "report.json", "report.png"):
        (tmp_path / name).write_text("of an older run")
    monkeypatch.setattr(gpu, "measure_host", crash)
    with pytest.raises(KeyboardInterrupt):
        gpu.main([*QUICK, "--dtypes", "float32", "--out", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == [gpu.PARTIAL]
    lines = (tmp_path / gpu.PARTIAL).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["clipped"] for line in lines] == [False, True]


def test_what_the_report_needs_is_asked_for_before_measuring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "run", lambda *_: pytest.fail("measured"))
    file = tmp_path / "file"
    file.write_text("")
    assert gpu.main([*QUICK, "--out", str(file)]) == 1
    assert "nothing was measured: --out must be a folder to write to" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert gpu.main([*QUICK, "--out", str(tmp_path / "out")]) == 1
    told = "nothing was measured: matplotlib is needed to draw report.png"
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_a_gpu_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 1
    assert devices.main([]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    for line, who in zip(told.err.splitlines(), ("bench gpu", "make gpu"), strict=True):
        assert line.startswith(f"{who}: a GPU is needed: torch {torch.__version__} ")
    assert not (tmp_path / "out").exists()
