"""The build of the CUDA kernels: which toolkit, which architectures, or why none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_tools import fake_toolkit
from source_tree import ROOT, compiler, cuda, extension, plan, torch_on_disk
from toolkit import may_skip

REAL = cuda.find_toolkit()
NO_NVCC = may_skip("needs nvcc" if REAL is None else None)
KNOWN = (75, 80, 90, 100, 110)


def torch(cuda: str | None = None, hip: str | None = None) -> torch_on_disk.TorchOnDisk:
    return torch_on_disk.TorchOnDisk("2.13.0", (), Path(), True, cuda, hip)


def planned(mode: str) -> plan.Plan:
    return plan.Plan(mode, compiler.Compiler(("g++",), "x86_64-linux-gnu", "g++ 12", False), None)


def test_variables_come_before_the_path(tmp_path: Path) -> None:
    home, path, other = (fake_toolkit(tmp_path / name) for name in ("home", "path", "other"))
    environ = {"CUDA_HOME": str(home), "CUDA_PATH": str(path), "PATH": f"{other / 'bin'}:/bin"}
    for expected, name in ((home, "CUDA_HOME"), (path, "CUDA_PATH"), (other, "PATH")):
        toolkit = cuda.find_toolkit(environ)
        assert toolkit == cuda.Toolkit(expected, "13.0", KNOWN)
        del environ[name]


def test_a_script_on_the_path_is_asked_where_nvcc_lies(tmp_path: Path) -> None:
    home = fake_toolkit(tmp_path / "cuda")
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    toolkit = cuda.find_toolkit({"PATH": f"{wrapper.parent}:/bin"})
    assert toolkit is not None and toolkit.home == home


def test_a_named_toolkit_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"CUDA_HOME: must name a CUDA toolkit with bin/nvcc \(got"
    ):
        cuda.find_toolkit({"CUDA_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("mode", "built_with", "release", "reason"),
    [
        ("cpu", "13.0", "13.0", "FASTCLIP_BUILD=cpu was set"),
        ("auto", None, "13.0", "torch 2.13.0 is built without CUDA"),
        ("auto", "12.8", "13.0", "their first numbers must be equal"),
        ("cuda", "12.8", "13.0", "13.0 and torch 2.13.0 is built with CUDA 12.8"),
        ("auto", "13.0", "12.0", "is 12.0 (needed: 12.1 or later)"),
        ("cuda", None, "12.0", "is 12.0 (needed: 12.1 or later)"),
    ],
)
def test_what_speaks_against_the_kernels(
    tmp_path: Path, mode: str, built_with: str | None, release: str, reason: str
) -> None:
    environ = {"CUDA_HOME": str(fake_toolkit(tmp_path / "cuda", release))}
    choice = cuda.choose_cuda(mode, torch(built_with), environ)
    assert isinstance(choice, str) and reason in choice
    if mode != "cuda":
        assert extension.decide_cuda(planned(mode), torch(built_with), environ) == choice
        return
    with pytest.raises(plan.BuildError) as caught:
        extension.decide_cuda(planned(mode), torch(built_with), environ)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("FASTCLIP_BUILD=cuda: the CUDA toolkit in ")
    assert "FASTCLIP_BUILD=cpu builds the CPU kernels" in str(caught.value)


def test_a_stale_variable_leaves_the_kernels_out_unless_they_were_asked_for() -> None:
    environ = {"CUDA_HOME": "/no/such"}
    reason = "CUDA_HOME: must name a CUDA toolkit with bin/nvcc (got '/no/such')"
    assert extension.decide_cuda(planned("auto"), torch("13.0"), environ) == reason
    with pytest.raises(plan.BuildError) as caught:
        extension.decide_cuda(planned("cuda"), torch("13.0"), environ)
    assert str(caught.value).startswith(f"FASTCLIP_BUILD=cuda: {reason}; ")


@pytest.mark.parametrize("mode", ("auto", "cuda"))
def test_no_toolkit_and_rocm_are_reasons(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda, "DEFAULT_HOME", tmp_path)
    choice = cuda.choose_cuda(mode, torch("13.0"), {"PATH": str(tmp_path)})
    assert isinstance(choice, str) and "no CUDA toolkit was found" in choice
    assert cuda.choose_cuda(mode, torch(hip="6.4"), {}) == "torch 2.13.0 is built for ROCm"


@pytest.mark.parametrize(
    ("mode", "built_with"), [("auto", "13.2"), ("cuda", "13.0"), ("cuda", None)]
)
def test_kernels_are_built(tmp_path: Path, mode: str, built_with: str | None) -> None:
    # In a wheel for others, the GPUs of this machine make no difference.
    environ = {"CUDA_HOME": str(fake_toolkit(tmp_path / "cuda")), "FASTCLIP_LABEL": "1"}
    choice = extension.decide_cuda(planned(mode), torch(built_with), environ)
    assert not isinstance(choice, str)
    assert choice.codes == ("sm_75", "sm_80", "sm_90", "sm_100", "compute_100")
    assert extension.facts_of(choice) == plan.CudaFacts("13.0", list(choice.codes), None)
    sources = [path.name for path in planned(mode).sources(has_cuda=True)]
    assert {"clip.cu", "launchers.cpp"} < set(sources) and "absent.cpp" not in sources
    without = [path.name for path in planned(mode).sources(has_cuda=False)]
    assert "absent.cpp" in without and not {"clip.cu", "launchers.cpp"} & set(without)


@pytest.mark.parametrize(
    ("listed", "codes"),
    [
        ("9.0", {"sm_90"}),
        ("8.0;9.0+PTX", {"sm_80", "sm_90", "compute_90"}),
        ("7.5 10.0", {"sm_75", "sm_100"}),
    ],
)
def test_architectures_are_read_as_torch_reads_them(
    listed: str, codes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    toolkit = cuda.Toolkit(Path(), "13.0", KNOWN)
    assert set(cuda.choose_codes("auto", toolkit, os.environ)) == codes


@pytest.mark.parametrize("listed", ("5.0", "x", "8.7"))
def test_unknown_architectures_are_refused(listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    with pytest.raises(ValueError, match=rf"TORCH_CUDA_ARCH_LIST: .*\(got '{listed}'"):
        cuda.choose_codes("auto", cuda.Toolkit(Path(), "13.0", KNOWN), os.environ)


LOOK = """
import json, torch, fastclip
from fastclip import _C
parameter = torch.nn.Parameter(torch.zeros(3))
parameter.grad = torch.full((3,), 2.0)
norm = fastclip.clip_grad_norm_([parameter], 1.0, backend="native").item()
report = fastclip.backend_report("cuda")
print(json.dumps([fastclip.build_info(), norm, _C.cuda_reasons(0), report]))
"""


@pytest.mark.slow
@pytest.mark.skipif(NO_NVCC is not None, reason=str(NO_NVCC))
def test_the_cuda_build_imports_and_runs_without_a_gpu(tmp_path: Path) -> None:
    if REAL is not None and (misfit := cuda._misfit(REAL, torch_on_disk.find_torch())):
        pytest.skip(misfit)
    environ = {**os.environ, "FASTCLIP_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "9.0"}
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "base")]
    library = tmp_path / "library"
    done = subprocess.run(
        [*command, "--build-lib", str(library)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = (library / "fastclip").glob("_C*.so")
    symbols = subprocess.run(["nm", "-D", built], check=True, capture_output=True, text=True).stdout
    assert [line for line in symbols.splitlines() if "cudart" in line or " cuda" in line] == []
    environ = {**os.environ, "PYTHONPATH": str(library)}
    looked = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert looked.returncode == 0, looked.stderr
    info, norm, reasons, report = json.loads(looked.stdout)
    assert REAL is not None
    assert (info["cuda"], info["cuda_architectures"]) == (REAL.release, ["sm_90"])
    assert info["cuda_reason"] is None
    assert norm == pytest.approx(12**0.5)
    if not Path("/dev/nvidiactl").exists():
        (reason,) = reasons
        assert reason.startswith("the CUDA kernels cannot run on device cuda:0: cudaError")
        assert "the NVIDIA driver" in reason or "nvidia-smi" in reason
    import torch

    if not torch.cuda.is_available():
        lacks = "torch sees no GPU" if torch.version.cuda else "is built without CUDA"
        assert report["native"][-1].endswith(lacks)
        assert report["reference"] == ["torch sees no GPU"]
