"""GradClipper.state_dict: what a checkpoint holds, and that it is taken back whole or not."""

from __future__ import annotations

import io
import math

import pytest
import torch
from samples import parameters

import fastclip


def clipper(max_norm: object = 1.0, **options: object) -> fastclip.GradClipper:
    held = parameters([torch.ones(3), torch.ones(2, 2)])
    named = list(zip(("weight", "bias"), held, strict=True))
    return fastclip.GradClipper(named, max_norm, **options)  # pyright: ignore


def saved_and_loaded(state: dict[str, object]) -> dict[str, object]:
    """Return a state after torch.save and torch.load by its default, weights_only=True."""
    buffer = io.BytesIO()
    torch.save({"clipper": state}, buffer)
    buffer.seek(0)
    return torch.load(buffer)["clipper"]


@pytest.mark.parametrize("norm_type", (2.0, 1.0, math.inf))
def test_a_checkpoint_restores_the_thresholds(norm_type: float) -> None:
    saved = clipper(0.25, norm_type=norm_type, error_if_nonfinite=True)
    state = saved_and_loaded(saved.state_dict())
    assert state == {
        "max_norm": 0.25,
        "norm_type": norm_type,
        "error_if_nonfinite": True,
        "names": ["weight", "bias"],
    }
    loaded = clipper(9.0)
    loaded.load_state_dict(state)
    assert (loaded.max_norm, loaded.norm_type, loaded.error_if_nonfinite) == (0.25, norm_type, True)
    assert loaded.clip_().item() == saved.clip_().item()


def test_a_tensor_is_saved_and_loaded_by_value() -> None:
    limit = torch.tensor(0.5, dtype=torch.float64)
    saved = clipper(limit)
    state = saved_and_loaded(saved.state_dict())
    limit.fill_(7.0)
    held = torch.tensor(3.0)
    loaded = clipper(held)
    loaded.load_state_dict(state)
    assert loaded.max_norm is held and held.item() == 0.5
    plain = clipper(3.0)
    plain.load_state_dict(state)
    assert isinstance(plain.max_norm, torch.Tensor) and plain.max_norm.item() == 0.5
    plain.max_norm.fill_(2.0)
    assert state["max_norm"] == 0.5
    loaded.load_state_dict(clipper(0.125).state_dict())
    assert loaded.max_norm is held and held.item() == 0.125


def test_the_state_is_no_alias() -> None:
    saved = clipper(1.0)
    state = saved.state_dict()
    state["names"].append("other")  # pyright: ignore
    assert saved.names == ["weight", "bias"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"names": ["weight"]}, ValueError, "got 1 names, not 2"),
        ({"names": ["weight", "scale"]}, ValueError, "got 'scale' at position 1, not 'bias'"),
        ({"names": None}, TypeError, r"names must be a list \(got NoneType\)"),
        ({"max_norm": "1"}, TypeError, r"max_norm must be a number or a tensor \(got str\)"),
        ({"max_norm": torch.ones(2)}, ValueError, r"max_norm must be 0-dim \(got shape \(2,\)\)"),
        ({"norm_type": None}, TypeError, r"norm_type must be a number \(got NoneType\)"),
        ({"error_if_nonfinite": "no"}, TypeError, r"must be a bool \(got str\)"),
        ({"missing": "norm_type"}, KeyError, "norm_type"),
        ({"missing": "error_if_nonfinite"}, KeyError, "error_if_nonfinite"),
    ],
)
def test_a_wrong_state_changes_nothing(
    change: dict[str, object], error: type[Exception], text: str
) -> None:
    limit = torch.tensor(2.0)
    loaded = clipper(limit)
    state = clipper(0.5, norm_type=1.0, error_if_nonfinite=True).state_dict() | change
    state.pop(str(state.pop("missing", None)), None)
    with pytest.raises(error, match=text):
        loaded.load_state_dict(state)
    assert (loaded.max_norm, limit.item()) == (limit, 2.0)
    assert (loaded.norm_type, loaded.error_if_nonfinite) == (2.0, False)
