"""The wheel that is given to others: its name, its files, its metadata, and a torch that differs.

The compiler of most of these builds writes a line of text as an object, so they take no time, and a
test that imported such an extension would fail.
"""

import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from build_runs import copy_tree, isolated_environment, made, run_hook, run_python, unpack
from fake_tools import fake_toolkit, writing_compiler
from source_tree import ROOT, label, plan, torch_on_disk

import fastclip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: others get no wheel")

MINOR = ".".join(torch.__version__.split(".")[:2])
TAGGED = re.compile(r"-cp3\d+-cp3\d+t?-linux_\w+\.whl$")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    fake = writing_compiler(tmp_path_factory.mktemp("compiler") / "g++")
    return {"FASTCLIP_BUILD": "cpu", "FASTCLIP_LABEL": "1", "CXX": str(fake)}


@pytest.fixture(scope="module")
def wheel(tree: Path, environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    return made(run_hook("build_wheel", tree, out, environ=environ), out)


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_in(wheel: Path) -> Message:
    (path,) = (name for name in names_in(wheel) if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(path).decode())


@pytest.mark.parametrize(
    ("torch_version", "cuda", "local"),
    [
        ("2.13.0+cpu", None, "torch2.13.cpu"),
        ("2.14.1+cu130", "13.0", "torch2.14.cu130"),
        ("2.15.0a0+git1234567", "12.9", "torch2.15.cu129"),
    ],
)
def test_the_label_names_torch_and_the_kernels(
    torch_version: str, cuda: str | None, local: str
) -> None:
    assert label.local_version(torch_version, plan.CudaFacts(cuda)) == local


def test_a_labelled_wheel_is_named_for_torch_python_and_platform(wheel: Path) -> None:
    version = f"{fastclip.__version__}+torch{MINOR}.cpu"
    assert wheel.name.startswith(f"torch_fastclip-{version}-")
    assert TAGGED.search(wheel.name)
    assert metadata_in(wheel)["Version"] == version


def test_the_label_tells_cuda_kernels(tree: Path, environ: dict[str, str], tmp_path: Path) -> None:
    release = torch.version.cuda or "13.0"
    home = fake_toolkit(tmp_path / "cuda", release)
    asked = {**environ, "FASTCLIP_BUILD": "cuda", "CUDA_HOME": str(home)}
    done = run_hook("prepare_metadata_for_build_wheel", tree, tmp_path, environ=asked)
    version = f"{fastclip.__version__}+torch{MINOR}.cu{release.replace('.', '')}"
    assert made(done, tmp_path).name == f"torch_fastclip-{version}.dist-info"


def test_a_pure_wheel_has_no_label(tree: Path, environ: dict[str, str], tmp_path: Path) -> None:
    asked = {**environ, "FASTCLIP_BUILD": "python"}
    pure = made(run_hook("build_wheel", tree, tmp_path, environ=asked), tmp_path)
    assert pure.name == f"torch_fastclip-{fastclip.__version__}-py3-none-any.whl"


def test_a_label_is_asked_for_with_0_or_1(
    tree: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    done = run_hook("build_wheel", tree, tmp_path, environ={**environ, "FASTCLIP_LABEL": "cu130"})
    assert done.returncode != 0
    assert "FASTCLIP_LABEL: must be 0 or 1 (got 'cu130')" in done.stderr
    assert "Traceback" not in done.stderr
    assert not label.is_asked_for({}) and not label.is_asked_for({"FASTCLIP_LABEL": "0"})


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "fastclip"
    sources = [path for path in package.rglob("*") if path.suffix in (".py", ".pyi", ".typed")]
    written = {str(path.relative_to(ROOT)) for path in sources}
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = {f"fastclip/_C{suffix}", "fastclip/_build_info.json"}
    names = names_in(wheel)
    assert {name for name in names if ".dist-info/" not in name} == written | built
    noted = {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name}
    assert noted == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }


def test_a_wheel_asks_for_torch_alone(wheel: Path) -> None:
    about = metadata_in(wheel)
    assert about["Name"] == "torch-fastclip"
    assert about["Requires-Python"] == ">=3.10"
    assert set(about.get_all("Provides-Extra", [])) == {"bench", "demo", "lint", "test", "triton"}
    needs = about.get_all("Requires-Dist", [])
    # The wheel must not require the torch of its label: pip would replace the installed torch
    # without a question.
    assert [need for need in needs if "extra ==" not in need] == ["torch>=2.10"]


def test_no_file_tells_where_it_was_built(wheel: Path, tree: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        telling = [name for name in archive.namelist() if str(tree).encode() in archive.read(name)]
    assert telling == []


@pytest.mark.skipif(not fastclip.build_info()["native"], reason="needs fastclip._C")
def test_the_extension_does_not_tell_where_it_was_built() -> None:
    (library,) = Path(str(fastclip.__file__)).parent.glob("_C.*.so")
    held = library.read_bytes()
    assert b"fastclip/csrc/bindings.cpp" in held, "the messages that name files are gone"
    includes = torch_on_disk.find_torch().include_dirs
    for directory in (ROOT, *includes, Path(sysconfig.get_path("include"))):
        assert str(directory).encode() not in held


# Clips under a torch of another version, and prints why the extension does not run.
ANOTHER_TORCH = """
import torch
torch.__version__ = "2.99.0+cu999"
import fastclip
p = torch.nn.Parameter(torch.zeros(2)); p.grad = torch.tensor([3.0, 4.0])
print(fastclip.__file__)
print(fastclip.clip_grad_norm_([p], 1.0).item(), round(p.grad.norm().item(), 4))
print(fastclip.backend_report()["native"])
"""


@pytest.mark.parametrize("from_file", [True, False], ids=["file", "index"])
def test_beside_another_torch_a_wheel_gives_the_reason(
    wheel: Path, tmp_path: Path, from_file: bool
) -> None:
    place = tmp_path / "packages"
    if from_file:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--target", str(place), str(wheel)], check=True)
    else:
        # For what comes from an index, pip leaves no note of where it came from.
        unpack(wheel, place)
    shown = run_python(ANOTHER_TORCH, cwd=tmp_path, environ={"PYTHONPATH": str(place)})
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        str(place / "fastclip" / "__init__.py"),
        "5.0 1.0",
        str(
            [
                f"fastclip._C was built against torch {torch.__version__} and torch 2.99.0+cu999 "
                "is running; install a wheel that was built for torch 2.99, or fastclip's sources "
                "with: pip install --force-reinstall --no-cache-dir --no-deps DIRECTORY"
            ]
        ),
    ], shown.stderr


def test_an_sdist_has_no_label_and_builds_the_same_wheel(
    tree: Path, environ: dict[str, str], wheel: Path, tmp_path: Path
) -> None:
    # In this environment there is no torch.
    isolated = isolated_environment(tmp_path / "isolated")
    done = run_hook("build_sdist", tree, tmp_path, python=isolated, environ=environ)
    sdist = made(done, tmp_path)
    assert sdist.name == f"torch_fastclip-{fastclip.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    done = run_hook("build_wheel", unpacked, tmp_path, environ=environ)
    again = made(done, tmp_path)
    assert again.name == wheel.name
    assert names_in(again) == names_in(wheel)
