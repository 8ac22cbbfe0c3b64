"""Who takes part in bench gpu, and who is absent and why."""

import sys

import fake_gpu_report
import pytest
from fake_gpu_report import FIVE, choose_forms, install, install_others

import fastclip
from bench.core.gradients import Gradients
from bench.gpu import calls, entrants


def test_a_backend_that_cannot_run_is_absent_with_its_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose_forms(monkeypatch)
    reasons = {"native": ["no driver", "no kernels"], "triton": [], "reference": []}
    monkeypatch.setattr(fastclip, "backend_report", lambda _: reasons)
    found = entrants.find("cuda")
    assert found.absent["fastclip native"] == "no driver; no kernels"
    names = [entrant.name for entrant in found.present if entrant.is_ours]
    assert names == ["triton auto", "triton fused", "triton split", "triton GradClipper"]
    reasons.pop("triton")
    assert "has no such backend" in entrants.find("cuda").absent["fastclip triton"]


def test_a_form_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = choose_forms(monkeypatch)
    with pytest.raises(KeyError), calls.in_form("split"):
        raise KeyError
    assert modes == ["auto", "split", "auto"]


def test_apex_without_its_kernels_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    install_others(monkeypatch)
    assert "apex" not in entrants.find("cpu").absent
    monkeypatch.delitem(sys.modules, "amp_C")
    # It would call torch's clip without a word.
    assert "amp_C" in entrants.find("cpu").absent["apex"]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("clipped", [False, True])
def test_transformer_engine_clips_with_its_norm_and_its_scale(
    monkeypatch: pytest.MonkeyPatch, on_device: bool, clipped: bool
) -> None:
    engine = vars(fake_gpu_report.transformer_engine(on_device))
    install(monkeypatch, "transformer_engine.pytorch.optimizers", **engine)
    entrant = entrants.find("cpu").present[-1]
    assert entrant.name == "TransformerEngine"
    assert entrant.passes(False) == ((2, 1) if on_device else (1, 0))
    assert entrant.not_captured == (None if on_device else entrants.READS_BACK)
    gradients = Gradients(FIVE, "float32")
    total_norm = entrant.prepare(gradients, gradients.max_norm(clipped))()
    assert gradients.norm_error(total_norm) < 1e-6
    gradients.check("it is as good as ours here", total_norm, clipped)


def test_transformer_engine_of_another_make_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "transformer_engine.pytorch.optimizers", multi_tensor_applier=None)
    text = entrants.find("cpu").absent["TransformerEngine"]
    assert text.startswith("AttributeError") and "multi_tensor_l2norm" in text
