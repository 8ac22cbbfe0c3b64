"""fastclip._build: the record read back, and the answer to a torch of another version."""

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fastclip
from fastclip import _build
from fastclip.backends import base, extension
from fastclip.cli import doctor

RECORD = {
    "mode": "cpu",
    "native": True,
    "torch": "2.13.0+cpu",
    "compiler": "g++ 12.2.0",
    "cuda": None,
    "cuda_architectures": [],
    "cuda_reason": "FASTCLIP_BUILD=cpu was set",
    "instruction_sets": ["avx2", "baseline"],
    "reason": None,
}


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "_build_info.json"
    monkeypatch.setattr(_build, "INFO_PATH", path)
    return path


class Installed:
    """A distribution as importlib.metadata gives it, with this direct_url.json."""

    def __init__(self, direct_url: object, version: str = fastclip.__version__) -> None:
        self.text = None if direct_url is None else json.dumps(direct_url)
        self.version = version

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.text


def test_the_record_is_read_back(record: Path) -> None:
    record.write_text(json.dumps(RECORD))
    assert fastclip.build_info() == {"version": fastclip.__version__, **RECORD}


def test_a_tree_that_was_never_built_says_so(record: Path) -> None:
    info = fastclip.build_info()
    assert (info["mode"], info["native"], info["torch"]) == ("none", False, None)
    assert info["instruction_sets"] == []
    assert "is a source tree" in doctor.build_warnings(info)[0]
    assert info["reason"] == (
        f"the fastclip in {record.parent} was never built (pip install builds it)"
    )
    assert _build.torch_mismatch("2.13.0") is None


@pytest.mark.parametrize("running", ["2.13.0", "2.13.0+cpu", "2.13.1+cu130", "2.13.0a0+git123"])
def test_the_same_minor_version_fits(record: Path, running: str) -> None:
    record.write_text(json.dumps(RECORD))
    assert _build.torch_mismatch(running) is None


@pytest.mark.parametrize("running", ["2.14.1+cu130", "2.1.3", "2.130.0", "3.13.0"])
def test_another_torch_is_a_reason_with_the_command(
    record: Path, running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.write_text(json.dumps(RECORD))
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(None))
    assert _build.torch_mismatch(running) == (
        f"fastclip._C was built against torch 2.13.0+cpu and torch {running} is running; "
        "rebuild it with: pip install --force-reinstall --no-cache-dir --no-deps torch-fastclip"
    )


LABELLED = f"{fastclip.__version__}+torch2.13.cpu"
FILE = "file:///gone/torch_fastclip-0.1.0-cp311-cp311-linux_x86_64.whl"


@pytest.mark.parametrize(
    ("origin", "version", "in_a_wheel"),
    [
        ({"url": FILE, "archive_info": {}}, fastclip.__version__, True),
        ({"url": FILE.replace("file:///gone", "https://example.org")}, LABELLED, True),
        (None, LABELLED, True),
        (None, fastclip.__version__, False),
        # This was built with a label from sources that are there, so pip can build them again.
        ({"url": "file:///checkout", "dir_info": {}}, LABELLED, False),
    ],
)
def test_a_wheel_is_not_asked_to_be_rebuilt(
    record: Path,
    origin: dict[str, object] | None,
    version: str,
    in_a_wheel: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record.write_text(json.dumps(RECORD))
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin, version))
    mismatch = _build.torch_mismatch("2.14.1+cu130")
    start = "fastclip._C was built against torch 2.13.0+cpu and torch 2.14.1+cu130 is running; "
    command = "pip install --force-reinstall --no-cache-dir --no-deps"
    assert mismatch == start + (
        "install a wheel that was built for torch 2.14, or fastclip's sources with: "
        f"{command} DIRECTORY"
        if in_a_wheel
        else f"rebuild it with: {command} torch-fastclip"
    )


@pytest.mark.parametrize(
    ("origin", "target"),
    [
        ({"url": "file://{here}", "dir_info": {}}, "{here}"),
        ({"url": "file://{here}", "dir_info": {"editable": True}}, "-e {here}"),
        ({"url": "file://{here}/gone", "dir_info": {}}, "torch-fastclip"),
        ({"url": "https://example.org/fastclip.tar.gz", "archive_info": {}}, "torch-fastclip"),
        (
            {"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}},
            "git+https://example.org/r.git@ab12",
        ),
    ],
)
def test_the_command_names_what_was_installed(
    origin: dict[str, object], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {**origin, "url": str(origin["url"]).format(here=tmp_path)}
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(here))
    assert _build.install_target() == target.format(here=tmp_path)


def test_a_copy_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Installed:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert _build.install_target() == "torch-fastclip"
    assert not _build.came_in_a_wheel()


def test_an_extension_for_another_torch_is_told_at_the_first_clip(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.write_text(json.dumps(RECORD))
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(None))
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    extension.load.cache_clear()
    base.warn_once.cache_clear()
    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.tensor([3.0, 4.0])
    with pytest.warns(RuntimeWarning) as caught:
        assert fastclip.clip_grad_norm_([p], 9.0) == fastclip.clip_grad_norm_([p], 9.0) == 5
    extension.load.cache_clear()
    (warning,) = caught
    assert str(warning.message).startswith(
        "fastclip: fastclip._C was built against torch 2.13.0+cpu and torch 2.99.0 is running; "
    )
    assert str(warning.message).endswith("; gradients are clipped with torch operations")
