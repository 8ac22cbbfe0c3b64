"""How the clip mode is chosen, and what of it reaches the extension."""

from types import SimpleNamespace

import pytest

import fastclip
from fastclip import build_info
from fastclip.backends import clip_mode, native


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin as a process without the variable does, and undo what a test chooses."""
    monkeypatch.setattr(clip_mode, "_state", {})
    monkeypatch.setattr(clip_mode, "_followers", [])
    monkeypatch.delenv(clip_mode.VARIABLE, raising=False)


@pytest.mark.parametrize(("set_to", "mode"), [(None, "auto"), ("", "auto"), ("fused", "fused")])
def test_the_environment_chooses(
    monkeypatch: pytest.MonkeyPatch, set_to: str | None, mode: str
) -> None:
    if set_to is not None:
        monkeypatch.setenv(clip_mode.VARIABLE, set_to)
    assert clip_mode.clip_mode() == mode
    clip_mode.set_clip_mode("split")
    assert clip_mode.clip_mode() == "split"


def test_an_unknown_mode_raises_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    match = r"FASTCLIP_CLIP_MODE: must be one of auto, fused, split \(got 'both'\)"
    clip_mode.set_clip_mode("fused")
    with pytest.raises(ValueError, match=match):
        clip_mode.set_clip_mode("both")
    assert clip_mode.clip_mode() == "fused"
    monkeypatch.setattr(clip_mode, "_state", {})
    monkeypatch.setenv(clip_mode.VARIABLE, "both")
    with pytest.raises(ValueError, match=match):
        clip_mode.clip_mode()


@pytest.mark.skipif(not build_info()["native"], reason="fastclip._C is not built")
def test_the_extension_fuses_clips_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(fastclip, "_C", SimpleNamespace(fuse_clips=told.append), raising=False)
    monkeypatch.delenv(native.ISA_VARIABLE, raising=False)
    native._load.__wrapped__()
    for mode in ("fused", "split", "fused", "auto"):
        clip_mode.set_clip_mode(mode)
    assert told == [False, True, False, True, False]
