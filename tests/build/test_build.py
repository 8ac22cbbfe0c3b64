"""The build: what FASTCLIP_BUILD does, how torch is found, what a wheel holds and records."""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from build_runs import (
    copy_tree,
    isolated_environment,
    link_setuptools,
    made,
    run_hook,
    run_python,
    unpack,
    wheel_info,
)
from source_tree import ROOT, compiler, plan, torch_on_disk

import fastclip
from fastclip._build import DISTRIBUTION

PURE = {"FASTCLIP_BUILD": "python"}

needs_native = pytest.mark.skipif(not fastclip.build_info()["native"], reason="needs fastclip._C")
needs_compiler = pytest.mark.skipif(
    plan.plan_build({"PATH": os.environ["PATH"]}).compiler is None,
    reason="needs Linux and a C++ compiler",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return isolated_environment(tmp_path_factory.mktemp("isolated"))


def test_native_is_there_when_it_must_be() -> None:
    if os.environ.get("FASTCLIP_REQUIRE_NATIVE") != "1":
        pytest.skip("FASTCLIP_REQUIRE_NATIVE is not 1")
    assert fastclip.build_info()["reason"] is None
    assert fastclip.backend_report()["native"] == []
    assert Path(str(fastclip.__file__)).parent != ROOT / "fastclip", "not the installed package"


@needs_native
def test_build_info_says_what_was_built() -> None:
    info = fastclip.build_info()
    assert info["version"] == fastclip.__version__
    assert (info["torch"] or "").split(".")[:2] == torch.__version__.split(".")[:2]
    assert info["reason"] is None
    assert (info["cuda"] is None) == (info["cuda_reason"] is not None)
    assert info["compiler"]
    assert fastclip.instruction_set() in info["instruction_sets"]
    assert info["instruction_sets"][-1] == "baseline"


@needs_native
def test_one_openmp_runtime_is_loaded() -> None:
    code = "import torch, fastclip._C; print(open('/proc/self/maps').read())"
    done = run_python(code, cwd=Path(sys.prefix))
    assert "fastclip/_C." in done.stdout, done.stderr
    loaded = set(re.findall(r"\S*/lib(?:gomp|omp|iomp5)\b\S*", done.stdout))
    assert len(loaded) == 1
    assert torch_on_disk.find_torch().library_dir in Path(loaded.pop()).parents


def test_python_wheel_is_pure_and_clips(tree: Path, tmp_path: Path) -> None:
    done = run_hook("build_wheel", tree, tmp_path, environ=PURE)
    wheel = made(done, tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel_info(wheel) == {
        "mode": "python",
        "native": False,
        "torch": None,
        "compiler": None,
        "cuda": None,
        "cuda_architectures": [],
        "cuda_reason": "FASTCLIP_BUILD=python was set",
        "instruction_sets": [],
        "reason": "FASTCLIP_BUILD=python was set",
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastclip/py.typed" in names
    assert not [name for name in names if name.endswith((".so", ".cpp", ".h")) or "test" in name]
    code = """if True:
        import torch, fastclip
        p = torch.nn.Parameter(torch.zeros(2)); p.grad = torch.tensor([3.0, 4.0])
        print(fastclip.clip_grad_norm_([p], 1.0).item(), round(p.grad.norm().item(), 4))
        print(fastclip.backend_report()["native"])"""
    place = unpack(wheel, tmp_path / "unpacked")
    shown = run_python(code, cwd=place, environ={"PYTHONWARNINGS": "error::RuntimeWarning"})
    assert shown.stdout.splitlines() == [
        "5.0 1.0",
        "['fastclip._C is not built: FASTCLIP_BUILD=python was set']",
    ], shown.stderr


# Prints the warnings of two clips.
TWO_CLIPS = """
import warnings, torch, fastclip
p = torch.nn.Parameter(torch.zeros(2)); p.grad = torch.tensor([3.0, 4.0])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2): fastclip.clip_grad_norm_([p], 1.0)
print([str(w.message) for w in caught if w.category is RuntimeWarning])
"""


def test_a_source_tree_that_was_never_built_says_so_once(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    shutil.copytree(ROOT / "fastclip", tmp_path / "fastclip", ignore=ignored)
    shown = run_python(TWO_CLIPS, cwd=tmp_path)
    assert shown.stdout.count("was never built") == 1, shown.stderr


def test_no_compiler_gives_a_pure_wheel_that_says_so_once(tree: Path, tmp_path: Path) -> None:
    wheel = made(run_hook("build_wheel", tree, tmp_path, environ={"PATH": ""}), tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel_info(wheel)["mode"] == "auto"
    shown = run_python(TWO_CLIPS, cwd=unpack(wheel, tmp_path / "unpacked"))
    assert shown.stdout.count("no C++ compiler was found") == 1, shown.stderr


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"FASTCLIP_BUILD": "cuda", "CUDA_HOME": "/no/such"},
            "CUDA_HOME: must name a CUDA toolkit with bin/nvcc (got '/no/such'); "
            "FASTCLIP_BUILD=cpu builds",
        ),
        (
            {"FASTCLIP_BUILD": "cuda", "PATH": ""},
            "FASTCLIP_BUILD=cuda: no C++ compiler was found",
        ),
        (
            {"FASTCLIP_BUILD": "gpu"},
            "FASTCLIP_BUILD: must be one of auto, cuda, cpu, python (got 'gpu')",
        ),
        (
            {"FASTCLIP_BUILD": "cpu", "PATH": ""},
            "FASTCLIP_BUILD=cpu: no C++ compiler was found",
        ),
        (
            {"CXX": "/no/such/g++ -m64"},
            "CXX: must name a C++ compiler that is there (got '/no/such/g++'); "
            "FASTCLIP_BUILD=python installs",
        ),
    ],
)
def test_what_cannot_be_built_fails_in_plain_words(
    tree: Path, tmp_path: Path, environ: dict[str, str], message: str
) -> None:
    done = run_hook("build_wheel", tree, tmp_path, environ=environ)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_a_compiler_that_fails_fails_the_install(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failing = tmp_path / "g++"
    failing.write_text('#!/bin/sh\ncase "$*" in *" -c "*) exit 3;; esac\nexec g++ "$@"\n')
    failing.chmod(0o755)
    done = run_hook("build_wheel", tree, out, environ={"CXX": str(failing)})
    assert done.returncode != 0
    assert "failed with status 3" in done.stderr
    assert plan.WAY_OUT in done.stderr
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_get_pure_python(platform: str) -> None:
    chosen = plan.plan_build({"PATH": os.environ["PATH"]}, platform)
    assert chosen.extensions == []
    assert chosen.reason == f"the native extension is built on Linux only (this is {platform})"
    with pytest.raises(plan.BuildError, match=f"Linux only \\(this is {platform}\\)"):
        plan.plan_build({"FASTCLIP_BUILD": "cpu"}, platform)


def test_instruction_sets_follow_the_target() -> None:
    x86 = plan.Plan("auto", compiler.Compiler(("g++",), "x86_64-linux-gnu", "13", False), None)
    arm = plan.Plan("auto", compiler.Compiler(("g++",), "aarch64-linux-gnu", "13", False), None)
    assert x86.instruction_sets == ["avx512", "avx2", "baseline"]
    assert arm.instruction_sets == ["baseline"]
    left_out = {path.name for path in x86.sources(has_cuda=False)} - {
        path.name for path in arm.sources(has_cuda=False)
    }
    assert left_out == {"kernels_avx2.cpp", "kernels_avx512.cpp"}
    assert x86.sources(has_cuda=False)[0].name == "bindings.cpp"


def test_isolation_that_hides_torch_fails_with_the_command(
    tree: Path, tmp_path: Path, isolated: Path
) -> None:
    if plan.plan_build({"PATH": os.environ["PATH"]}).compiler is None:
        pytest.skip("needs Linux and a C++ compiler")
    done = run_hook("build_wheel", tree, tmp_path, python=isolated)
    assert done.returncode != 0
    assert "torch was not found" in done.stderr
    assert "pip install --no-build-isolation ." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sdist_builds_without_torch_and_installs(
    tree: Path, tmp_path: Path, isolated: Path
) -> None:
    planted = [tree / "fastclip" / "_C.x.so", tree / "fastclip" / "_build_info.json"]
    for path in planted:
        path.write_text("left by an earlier build")
    try:
        sdist = made(run_hook("build_sdist", tree, tmp_path, python=isolated), tmp_path)
    finally:
        for path in planted:
            path.unlink()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    sources = {f"csrc/{path.relative_to(ROOT / 'csrc')}" for path in (ROOT / "csrc").rglob("*.*")}
    assert sources <= names
    assert {"setup.py", "build_support/plan.py", "LICENSE", "CHANGELOG.md"} <= names
    assert not {name for name in names if name.endswith((".so", "_build_info.json"))}
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    done = run_hook("build_wheel", unpacked, tmp_path, python=isolated, environ=PURE)
    assert wheel_info(made(done, tmp_path))["native"] is False


def test_torch_is_found_under_pips_isolation(tmp_path: Path) -> None:
    # pip takes site-packages off sys.path in a sitecustomize and puts its own directory there.
    link_setuptools(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.path[:] = [p for p in sys.path if not p.endswith('-packages')]\n"
    )
    code = """if True:
        import importlib.util
        print(importlib.util.find_spec("torch"))
        from build_support.torch_on_disk import find_torch
        print(find_torch().version)"""
    done = run_python(code, cwd=ROOT, environ={"PYTHONPATH": str(tmp_path)})
    assert done.stdout.splitlines() == ["None", torch.__version__], done.stderr


def test_hidden_directories_are_the_environments_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [tmp_path / name for name in ("platlib", "purelib", "user")]
    for path in expected:
        path.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(site, "getsitepackages", lambda prefixes: [str(tmp_path / "missing")])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert torch_on_disk.hidden_directories() == [str(path) for path in expected[:2]]
    (tmp_path / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    assert torch_on_disk.hidden_directories() == [str(path) for path in expected]
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert torch_on_disk.hidden_directories() == [str(path) for path in expected]


def test_a_torch_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(plan.BuildError, match=r"must be 2\.10 or later \(got 2\.9\.1\+cpu\)"):
        torch_on_disk.find_torch()


@needs_native
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf, of binutils")
def test_the_extension_is_stripped_and_borrows_torchs_libraries() -> None:
    library = next(Path(str(fastclip.__file__)).parent.glob("_C.*.so"))
    read = ["readelf", "--dynamic", "--sections", "--wide", str(library)]
    shown = subprocess.run(read, check=True, capture_output=True, text=True).stdout
    assert "libtorch_cpu.so" in shown
    # A libgomp of the extension could be a second thread pool; a run path could lead to another
    # torch.
    assert not re.findall(r"RPATH|RUNPATH|libgomp|\.symtab|\.debug", shown)


@needs_native
def test_a_native_wheel_is_tagged_for_its_platform() -> None:
    tags = metadata.distribution(DISTRIBUTION).read_text("WHEEL") or ""
    assert "Root-Is-Purelib: false" in tags
    assert re.search(r"^Tag: cp3\d+-cp3\d+-linux_\w+$", tags, re.MULTILINE)
