"""What the CUDA kernels are compiled for: the machine's GPUs, or all if that is asked for."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from build_runs import HOOK, copy_tree, made, run_python, wheel_info
from fake_tools import LACKING_DRIVER, fake_driver, fake_toolkit, writing_compiler
from source_tree import ROOT, cuda, gpus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, as the kernels do")

KNOWN = (75, 80, 90, 100, 110)
ALL = ("sm_75", "sm_80", "sm_90", "sm_100", "compute_100")
"""What an nvcc that knows KNOWN compiles for GPUs of other machines."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fake_driver(tmp_path_factory.mktemp("driver"))


def beside(driver: str, *capabilities: int, **variables: str) -> dict[str, str]:
    """Return an environment in which the driver has GPUs of these compute capabilities."""
    folders = ":".join(filter(None, [driver, os.environ.get("LD_LIBRARY_PATH")]))
    listed = ",".join(map(str, capabilities))
    return {"LD_LIBRARY_PATH": folders, "FAKE_GPUS": listed, **variables}


def chosen(environ: dict[str, str], mode: str = "auto") -> Sequence[str]:
    return cuda.choose_codes(mode, cuda.Toolkit(Path(), "13.0", KNOWN), environ)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, [75, 90, 120]),
        ("0,1,2,3", [75, 90, 120]),
        ("1", [90]),
        ("2,0", [75, 120]),
        ("0,1,7,2", [75, 90]),
        ("", "the NVIDIA driver sees none with CUDA_VISIBLE_DEVICES=''"),
        ("-1", "the NVIDIA driver sees none with CUDA_VISIBLE_DEVICES='-1'"),
    ],
)
def test_the_gpus_are_those_that_the_driver_shows(
    visible: str | None, found: list[int] | str, driver: str
) -> None:
    environ = beside(driver, 75, 90, 120, 90)
    if visible is not None:
        environ["CUDA_VISIBLE_DEVICES"] = visible
    assert gpus.find_gpus(environ) == found


def test_a_driver_without_gpus_sees_none(driver: str) -> None:
    assert gpus.find_gpus(beside(driver)) == "the NVIDIA driver sees none"


def test_nvidia_smi_is_not_asked(driver: str, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho 9.0\n")
    smi.chmod(0o755)
    environ = beside(driver, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert gpus.find_gpus(environ) == "the NVIDIA driver sees none"
    assert not (tmp_path / "asked").exists()


def test_a_file_that_is_no_library_is_no_driver(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    found = gpus.find_gpus({"LD_LIBRARY_PATH": str(tmp_path)})
    assert found == "libcuda.so.1 of the NVIDIA driver cannot be loaded"


def test_a_library_that_lacks_a_function_is_no_driver(tmp_path: Path) -> None:
    found = gpus.find_gpus({"LD_LIBRARY_PATH": fake_driver(tmp_path, LACKING_DRIVER)})
    assert found == f"{tmp_path / 'libcuda.so.1'}: undefined symbol: cuDeviceGetCount"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("is too old", "the NVIDIA driver answers cuInit with error 803"),
        ("crashes", "the NVIDIA driver crashed with signal 6"),
        ("hangs", "the NVIDIA driver did not answer within 0.5 s"),
    ],
)
def test_a_driver_that_is_unwell_is_a_reason(
    state: str, reason: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if state == "hangs":
        monkeypatch.setattr(gpus, "TIMEOUT_S", 0.5)
    start = time.monotonic()
    assert gpus.find_gpus(beside(driver, 90, FAKE_DRIVER=state)) == reason
    assert time.monotonic() - start < 30


def test_what_a_driver_says_is_no_gpu(driver: str) -> None:
    assert gpus.find_gpus(beside(driver, 90, FAKE_DRIVER="talks")) == [90]


@pytest.mark.parametrize("mode", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("there", "codes"),
    [
        ([90], ("sm_90", "compute_90")),
        ([90, 90, 75], ("sm_75", "sm_90", "compute_90")),
        # nvcc does not know this one, so it gets PTX of the highest below it.
        ([120], ("compute_110",)),
        ([86], ("compute_80",)),
        ([86, 90], ("sm_90", "compute_80", "compute_90")),
        ([90, 120], ("sm_90", "compute_110")),
        # This one is too old for any code; the others get theirs.
        ([70, 90], ("sm_90", "compute_90")),
    ],
)
def test_the_gpus_that_are_there_are_compiled_for(
    there: list[int], codes: tuple[str, ...], mode: str, driver: str
) -> None:
    assert chosen(beside(driver, *there), mode) == codes


def test_kernels_are_for_no_gpu_older_than_they_were_made_for(driver: str) -> None:
    # This nvcc would compile for one of them.
    toolkit = cuda.Toolkit(Path(), "12.8", (50, 60, 70, *KNOWN))
    reason = cuda.choose_codes("auto", toolkit, beside(driver, 70, 61))
    assert isinstance(reason, str)
    assert reason.startswith("where fastclip was built the GPUs have compute capability 6.1, 7.0")
    assert "(needed: 7.5 or higher with nvcc 12.8); " in reason
    assert cuda.choose_codes("cuda", toolkit, beside(driver, 70)) == ALL
    mixed = cuda.choose_codes("auto", toolkit, beside(driver, 70, 72, 80))
    assert mixed == ("sm_80", "compute_80")


def test_without_a_gpu_the_kernels_are_left_out_unless_asked_for(driver: str) -> None:
    environ = beside(driver)
    assert chosen(environ) == (
        "no GPU was found where fastclip was built (the NVIDIA driver sees none); "
        "to compile the CUDA kernels, install fastclip where a GPU can be seen, or with "
        "TORCH_CUDA_ARCH_LIST set to the compute capability of yours (such as 9.0), or with "
        "FASTCLIP_BUILD=cuda"
    )
    assert chosen(environ, "cuda") == ALL
    assert chosen({**environ, "FASTCLIP_LABEL": "1"}) == ALL
    assert isinstance(chosen({**environ, "FASTCLIP_LABEL": "0"}), str)


def test_a_wheel_for_others_is_not_for_the_gpus_here(driver: str) -> None:
    environ = beside(driver, 90, FASTCLIP_LABEL="1")
    assert chosen(environ) == chosen(environ, "cuda") == ALL


@pytest.mark.parametrize("there", [(), (75,)], ids=["no GPU", "a GPU"])
@pytest.mark.parametrize("mode", ["auto", "cuda"])
def test_the_list_that_is_set_counts_alone(
    mode: str, there: tuple[int, ...], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    for extra in ({}, {"FASTCLIP_LABEL": "1"}):
        environ = beside(driver, *there, TORCH_CUDA_ARCH_LIST="9.0", **extra)
        assert chosen(environ, mode) == ("sm_90",)


def test_native_names_the_gpus_that_are_there(driver: str) -> None:
    environ = beside(driver, 80, TORCH_CUDA_ARCH_LIST="native")
    assert chosen(environ) == ("sm_80", "compute_80")
    assert "no GPU was found" in chosen(beside(driver, TORCH_CUDA_ARCH_LIST="native"))


# setup.py runs in the hook's process, so this gives it a torch with CUDA, whichever torch runs the
# tests.
WITH_CUDA = f"import torch; torch.version.cuda = '13.0'; torch.version.hip = None; {HOOK}"


@pytest.mark.parametrize("there", [(), (75, 120)], ids=["no GPU", "two GPUs"])
def test_the_build_says_what_it_compiles_for_and_records_it(
    there: tuple[int, ...], driver: str, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    tree = copy_tree(tmp_path / "tree")
    environ = beside(
        driver,
        *there,
        CXX=str(writing_compiler(tmp_path / "g++")),
        CUDA_HOME=str(fake_toolkit(tmp_path / "cuda")),
    )
    code = WITH_CUDA.format(hook="build_wheel")
    done = run_python(code, str(tmp_path / "out"), cwd=tree, environ=environ)
    info = wheel_info(made(done, tmp_path / "out"))
    assert (info["mode"], info["native"]) == ("auto", True)
    said = [line for line in done.stdout.splitlines() if line.startswith("building ")]
    compiled = set(re.findall(r"compiling (\w+\.cu)$", done.stdout, re.MULTILINE))
    if there:
        assert info["cuda_architectures"] == ["sm_75", "compute_110"]
        assert (info["cuda"], info["cuda_reason"]) == ("13.0", None)
        assert said == ["building CUDA kernels for sm_75, compute_110"]
        assert compiled == {path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    else:
        assert (info["cuda"], info["cuda_architectures"]) == (None, [])
        assert said == [f"building without CUDA kernels: {info['cuda_reason']}"]
        assert info["cuda_reason"] == chosen(environ)
        assert compiled == set()
