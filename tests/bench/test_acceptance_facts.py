"""What the report of bench gpu says of the sources, the GPU and its driver."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_gpu_report import forms, report

from bench.core import machine
from bench.gpu import devices
from bench.gpu import facts as gpu_facts
from bench.gpu import report as gpu_report


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_the_commit_is_this_projects_own(tmp_path: Path) -> None:
    try:
        git(tmp_path, "init")
    except FileNotFoundError:
        pytest.skip("needs git")
    git(tmp_path, "commit", "--allow-empty", "-m", "of another project")
    assert machine._commit(tmp_path)
    # Unpacked below another project's root, or beside none.
    inner = tmp_path / "unpacked"
    inner.mkdir()
    assert machine._commit(inner) is None
    assert machine._commit(tmp_path / "nowhere") is None


# --- the tools ----------------------------------------------------------------------------------

NVIDIA_SMI = """case "$*" in
*driver_version*) echo 580.95.05; echo 580.95.05 ;;
*clocks.max.sm*) echo "1980 MHz, 2619 MHz, 700.00 W" ;;
*clocks.sm*) echo "1755 MHz, 2619 MHz" ;;
*clocks_event_reasons*) echo "not a valid field"; exit 2 ;;
*clocks_throttle_reasons*) echo 0x0000000000000024 ;;
*compute-apps*) echo "$OWN_PID, python, 100 MiB"; echo "17, other, 5 MiB" ;;
esac
"""


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the one folder in which tools are found, empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OWN_PID", str(os.getpid()))
    return tmp_path


def add_tool(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}")
    file.chmod(0o755)


def test_nvidias_tool_tells_driver_clocks_and_company(tools: Path) -> None:
    add_tool(tools, "nvidia-smi", NVIDIA_SMI)
    assert gpu_facts.driver(is_hip=False) == "580.95.05"
    assert list(gpu_facts.highest_clocks("1-2").values()) == ["1980 MHz", "2619 MHz", "700.00 W"]
    assert gpu_facts.state("1-2") == {
        "clock of the multiprocessors": "1755 MHz",
        "clock of the memory": "2619 MHz",
        "clocks limited by": "power cap, temperature, by software",
        "other processes on the GPU": "17, other, 5 MiB",
    }


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("amd-smi", 'echo "AMDSMI Tool: 25.5 | ROCm version: 6.4 | amdgpu version: 6.12.12 |"'),
        ("rocm-smi", 'echo "=== Version ==="; echo "Driver version: 6.12.12"'),
    ],
)
def test_amds_tools_tell_the_driver(tools: Path, name: str, script: str) -> None:
    add_tool(tools, name, script)
    assert gpu_facts.driver(is_hip=True) == "amdgpu 6.12.12"


@pytest.mark.parametrize("script", [None, "echo failed >&2; exit 9", "exit 0"])
def test_a_tool_that_does_not_answer_is_told_in_words(tools: Path, script: str | None) -> None:
    if script is not None:
        for name in ("nvidia-smi", "amd-smi", "rocm-smi"):
            add_tool(tools, name, script)
    assert gpu_facts.driver(is_hip=False) == "unknown: nvidia-smi does not tell it"
    assert gpu_facts.driver(is_hip=True) == "unknown: neither amd-smi nor rocm-smi tells it"
    assert gpu_facts.highest_clocks("") == {}
    assert gpu_facts.state("").keys() <= {"other processes on the GPU"}


@pytest.mark.parametrize("hip", [None, "6.4.1"])
def test_an_amd_gpu_is_named_by_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tools: Path, hip: str | None
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    device = object.__new__(devices.CudaDevice)
    device.name = "a GPU"
    properties = {"major": 9, "minor": 4, "multi_processor_count": 304, "total_memory": 192 << 30}
    properties |= {"L2_cache_size": 4 << 20, "gcnArchName": "gfx942:sramecc+"}
    device._properties = SimpleNamespace(**properties)
    facts = device.facts()
    assert facts.get("architecture") == (None if hip is None else "gfx942:sramecc+")
    assert facts["driver"].startswith("unknown: ")
    assert device.state() == {}


def test_a_busy_host_is_no_verdict_on_the_gpus_times() -> None:
    made_up = report([forms(0.004, 0.006)])
    made_up["machine"]["others_share"] = 0.5
    text = gpu_report.markdown(made_up)
    assert "NOT A QUIET MACHINE" not in text
    assert "| others on it (of the host: for host times alone) | 50.0% of the processors'" in text
