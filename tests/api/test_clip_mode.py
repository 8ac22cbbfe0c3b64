"""How the clip mode is chosen, and that it reaches the extension."""

from types import SimpleNamespace

import pytest
import torch

import fastclip
from fastclip.backends import clip_mode, extension
from fastclip.backends.request import ClipRequest


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin as a process without the variable does, and undo what a test chooses."""
    monkeypatch.setattr(clip_mode, "_state", {})
    monkeypatch.delenv(clip_mode.VARIABLE, raising=False)


@pytest.mark.parametrize(("set_to", "mode"), [(None, "auto"), ("", "auto"), ("fused", "fused")])
def test_the_environment_chooses(
    monkeypatch: pytest.MonkeyPatch, set_to: str | None, mode: str
) -> None:
    if set_to is not None:
        monkeypatch.setenv(clip_mode.VARIABLE, set_to)
    assert fastclip.clip_mode() == mode
    fastclip.set_clip_mode("split")
    assert fastclip.clip_mode() == "split"


def test_an_unknown_mode_raises_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    match = r": mode must be one of auto, fused, split \(got 'both'\)"
    fastclip.set_clip_mode("fused")
    with pytest.raises(ValueError, match="set_clip_mode" + match):
        fastclip.set_clip_mode("both")
    assert fastclip.clip_mode() == "fused"
    monkeypatch.setattr(clip_mode, "_state", {})
    monkeypatch.setenv(clip_mode.VARIABLE, "both")
    with pytest.raises(ValueError, match=clip_mode.VARIABLE + match):
        fastclip.clip_mode()


def test_native_clips_are_fused_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []

    def clip(_: ClipRequest, is_fused: bool) -> torch.Tensor:
        modes.append(is_fused)
        return torch.tensor(0.0)

    bound = SimpleNamespace(clip=clip)
    binding = SimpleNamespace(UnsupportedError=KeyError, gather=lambda *_: bound)
    monkeypatch.setattr(extension, "load", lambda: ())
    monkeypatch.setattr(extension, "binding", binding)
    for mode in (None, "fused", "split", "fused", "auto"):
        if mode is not None:
            fastclip.set_clip_mode(mode)
        fastclip.clip_grad_norm_([torch.ones(2, requires_grad=True)], 1.0)
    assert modes == [False, True, False, True, False]
