"""fastclip._build: the record read back, and what a torch of another version is told."""

import json
from importlib import metadata
from pathlib import Path

import pytest

import fastclip
from fastclip import _build, doctor

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

    def __init__(self, direct_url: object) -> None:
        self.text = None if direct_url is None else json.dumps(direct_url)

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
