"""What bench gpu reports, from runs that never were: the choice, the predictions, the skips."""

import math

import fake_gpu_report
import pytest
from fake_gpu_report import forms, report

from bench.gpu import report as gpu_report
from bench.gpu.fused_or_split import choose
from bench.model import roofline


@pytest.mark.parametrize(
    ("fused_ms", "split_ms", "faster", "told"),
    [
        ((1.0, 2.0), (1.25, 2.5), "fused", "fused is faster where nothing else"),
        ((1.25, 2.5), (1.0, 2.0), "split", "split is faster where nothing else"),
        ((1.0, 2.0), (1.005, 1.995), "either", "equal within 1%: fused time"),
    ],
)
def test_the_faster_form_is_the_one_that_takes_less(
    fused_ms: tuple[float, float], split_ms: tuple[float, float], faster: str, told: str
) -> None:
    rows = [
        forms(fused, split, clipped, "resnet-50")
        for fused, split, clipped in zip(fused_ms, split_ms, (False, True), strict=True)
    ]
    choice = choose(rows, "native", True, None)
    assert choice["faster"] == faster and told in choice["summary"]
    assert choice["against"] == [] and "mixed" not in choice["summary"]
    over = sum(fused_ms) / sum(split_ms)
    assert choice["fused_over_split"] == pytest.approx(over)
    assert f"of all models together {over:.3f}" in choice["summary"]
    ratios = [fused / split for fused, split in zip(fused_ms, split_ms, strict=True)]
    mean = choice["ratios"]["models"]["mean"]
    assert mean == pytest.approx(math.sqrt(math.prod(ratios)))
    text = gpu_report.markdown(report(rows))
    assert choice["summary"] in text and "waits until every other kernel on the GPU is done" in text


def test_tiny_lists_decide_nothing_and_are_told() -> None:
    # Fused takes a third of the time on three tiny lists, 5 % more on a model, and is even on one.
    small = [forms(0.01, 0.03, case=case) for case in ("1000x64", "10000x256", "2000x4096")]
    models = [forms(1.05, 1.0, case="gpt2-124m"), forms(0.2, 0.2, True, "resnet-50")]
    choice = choose([*small, *models], "native", True, None)
    assert choice["faster"] == "split"
    assert choice["fused_over_split"] == pytest.approx(1.25 / 1.2)
    assert choice["ratios"]["lists of many small tensors"]["mean"] == pytest.approx(1 / 3)
    assert choice["against"][0] == "1000x64 float32, not clipped: 0.333"
    assert len(choice["against"]) == 3
    assert f"mixed, since these cases go against it: {choice['against'][0]}; " in choice["summary"]


def test_models_that_contradict_each_other_are_mixed() -> None:
    models = [forms(1.0, 1.1, case="gpt2-124m"), forms(0.21, 0.2, True, "resnet-50")]
    choice = choose(models, "native", True, None)
    assert choice["faster"] == "fused"
    assert choice["against"] == ["resnet-50 float32, clipped: 1.050"]
    equal = [forms(1.0, 1.1, case="gpt2-124m"), forms(1.1, 1.0, True, "resnet-50")]
    choice = choose(equal, "native", True, None)
    assert choice["faster"] == "either" and len(choice["against"]) == 2
    # Within 2 % nothing is against anything.
    models[1] = forms(0.203, 0.2, True, "resnet-50")
    assert choose(models, "native", True, None)["against"] == []


def test_times_that_are_the_hosts_decide_nothing() -> None:
    late = forms(1.0, 2.0, case="gpt2-124m")
    late["entries"]["native fused"]["rounds_not_ahead"] = 2  # of three
    told = "left out, as the host was late there: gpt2-124m float32, not clipped: 0.500"
    choice = choose([late], "native", True, None)
    assert choice["faster"] is None and told in choice["summary"]
    choice = choose([late, forms(1.1, 1.0, case="resnet-50")], "native", True, None)
    assert choice["faster"] == "split" and told in choice["summary"]


def test_without_a_model_there_is_no_choice() -> None:
    choice = choose([forms(1.0, 2.0), forms(1.0, 2.0, case="1x1e8")], "native", True, None)
    assert choice["faster"] is None
    assert choice["summary"].startswith("no choice: no model was timed in both forms")
    assert choice["ratios"].keys() == {"lists of many small tensors"}


def test_there_is_no_choice_without_a_gpu_or_without_both_forms() -> None:
    rows = [forms(1.0, 2.0)]
    assert choose(rows, "native", False, None)["faster"] is None
    assert choose(rows, "triton", True, None)["faster"] is None
    absent = choose(rows, "triton", True, "no such backend")
    assert (absent["faster"], absent["summary"]) == (None, "not measured: no such backend")


def test_a_gpus_report_names_all_that_a_time_depends_on() -> None:
    found = report([forms(0.004, 0.006)])
    text = gpu_report.markdown(found)
    assert text.startswith("# fastclip on NVIDIA H100 80GB HBM3\n")
    assert "NOT a GPU" not in text
    named = gpu_report.provenance(found)
    assert named in text
    for part in ("driver 580.1", "CUDA (torch's) 13.0", "torch 2.13.0", "triton 3.9"):
        assert part in named
    assert found["machine"]["date"] in named and "commit" in named
    assert "tests marked gpu: 1 passed, 0 failed, 2 SKIPPED (needs two GPUs)" in text
    assert "fastclip triton: no such backend" in text and "apex: ModuleNotFoundError" in text


@pytest.mark.parametrize(
    ("device_name", "bytes_per_second", "told"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12, "the data sheet's (3.35 TB/s)"),
        ("NVIDIA RTX 9000", 3000e9, "the measured copy's (3000 GB/s), since docs/roofline.md"),
    ],
)
def test_measured_stands_beside_predicted(
    device_name: str, bytes_per_second: float, told: str
) -> None:
    text = gpu_report.markdown(report([forms(0.004, 0.006)], device_name))
    assert told in text
    lines = text.partition("## Measured beside predicted")[2].splitlines()
    line = next(line for line in lines if "| native split |" in line)
    predicted = fake_gpu_report.N_BYTES / bytes_per_second * 1e6 + 2 * roofline.LAUNCH_MICROSECONDS
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[4:] == ["6", f"{predicted:.3g}", f"{6 / predicted:.2f}"]


@pytest.mark.parametrize(("cuda", "launches"), [("13.0", 19), ("12.8", 35), (None, 35)])
def test_stocks_launches_are_those_of_the_torch_that_is_measured(
    cuda: str | None, launches: int
) -> None:
    text = gpu_report.markdown(report([forms(0.004, 0.006)], cuda=cuda))
    lines = text.partition("## Measured beside predicted")[2].splitlines()
    line = next(line for line in lines if "| stock |" in line)
    # 1000 tensors: 2 launches of 770, or 10 of 110, of each of two operations.
    predicted = (
        3 * fake_gpu_report.N_BYTES / 3.35e12 * 1e6 + launches * roofline.LAUNCH_MICROSECONDS
    )
    assert line.split(" | ")[5] == f"{predicted:.3g}"
    built = "without CUDA" if cuda is None else f"with CUDA {cuda}"
    assert f"Stock's launches are those of a torch built {built}, which takes up to" in text


def test_a_failed_run_says_so_before_all_else() -> None:
    rows = [forms(0.004, 0.006)]
    text = gpu_report.markdown(report(rows, failures=["no kernels", "1 test failed"]))
    assert text.startswith("FAILED: no kernels\n\nFAILED: 1 test failed\n\n# fastclip on")
    assert "FAILED" not in gpu_report.markdown(report(rows))
