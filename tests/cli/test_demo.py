"""``fastclip demo``: a shorter run shows what the whole one shows, and failures are reported."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastclip
from fastclip.cli.demo import problems
from fastclip.cli.demo_chart import BLUE, ORANGE, RED
from fastclip.cli.demo_training import MAX_NORM, Run, Runs, float64_clip, float64_norm
from fastclip.cli.main import main

STEPS = 60


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the demo as a user would; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["demo", "--steps", str(STEPS), "--device", "cpu", "--json", "demo.json"]
    done = subprocess.run(
        [sys.executable, "-m", "fastclip", *arguments],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_unclipped_explodes_and_clipped_runs_learn(short_run: tuple[Path, str]) -> None:
    recorded = json.loads((short_run[0] / "demo.json").read_text(encoding="utf-8"))
    runs = {run["name"]: run for run in recorded["runs"]}
    unclipped = runs["no clipping"]
    assert unclipped["final_loss"] is None or unclipped["final_loss"] > unclipped["initial_loss"]
    for name in ("torch.nn.utils", "fastclip", "float64 clip"):
        run = runs[name]
        assert run["final_loss"] < 0.6 * run["initial_loss"]
        assert run["steps_clipped"] == sum(norm + 1e-6 > MAX_NORM for norm in run["norm"])
        assert run["steps_clipped"] > 0
        assert len(run["loss"]) == len(run["norm"]) == len(run["seconds"]) == STEPS
        assert run["largest_loss_difference"] is not None
    # The same weights and the same batch: the first step's numbers are the same bits.
    assert len({run["loss"][0] for run in runs.values()}) == 1
    assert len({run["norm"][0] for run in runs.values()}) == 1
    assert abs(unclipped["initial_loss"] - math.log(256)) < 0.2
    assert runs["fastclip"]["largest_norm_error"] <= 2 * 2.0**-24


def test_table_lists_every_run(short_run: tuple[Path, str]) -> None:
    lines = short_run[1].splitlines()
    for name in ("no clipping", "torch.nn.utils", "fastclip", "float64 clip"):
        assert any(line.startswith(name + " ") for line in lines), short_run[1]
    ours = next(line for line in lines if line.startswith("fastclip "))
    assert f" of {STEPS}" in ours
    assert ours.count(" ms") == 2
    backend = "reference" if fastclip.backend_report()["native"] else "native"
    assert f"backend used by fastclip: {backend}" in lines


def test_chart_shows_the_runs(short_run: tuple[Path, str]) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    pixels = torch.from_numpy(imread(short_run[0] / "demo.png"))[..., :3]
    assert min(pixels.shape[:2]) > 500
    for color in (RED, BLUE, ORANGE):
        distance = (pixels - torch.tensor(to_rgb(color))).abs().amax(dim=-1)
        assert int((distance < 0.02).sum()) > 200


def test_too_few_steps_are_said_and_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo.png"
    assert main(["demo", "--steps", "1", "--device", "cpu", "--out", str(out)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("demo: ")]
    assert len(said) == 3
    assert "without clipping should end above its first loss" in said[0]
    assert "torch.nn.utils should end under" in said[1]
    assert "fastclip should end under" in said[2]


def test_each_condition_has_its_sentence() -> None:
    learned = Run("clipped", loss=[5.0, *[2.0] * 10], norm_error=[1e-8])
    exploded = Run("no clipping", loss=[5.0, *[math.nan] * 10])
    good = Runs(exploded, learned, learned, learned)
    assert problems(good) == []
    grown = replace(exploded, loss=[5.0, *[6.0] * 10])
    assert problems(replace(good, unclipped=grown)) == []
    assert len(problems(replace(good, unclipped=learned))) == 1
    assert len(problems(replace(good, stock=exploded))) == 1
    slow = replace(learned, loss=[5.0, *[3.1] * 10])
    assert len(problems(replace(good, ours=slow))) == 1
    inexact = replace(learned, norm_error=[1e-8, 1e-6])
    assert len(problems(replace(good, ours=inexact))) == 1


def test_yardstick_is_the_formula_in_float64() -> None:
    parameters = [torch.zeros(5), torch.zeros(2, 3)]
    for parameter, value in zip(parameters, (0.3, -1.7), strict=True):
        parameter.grad = torch.full_like(parameter, value)
    values = [p.grad.tolist() for p in parameters if p.grad is not None]
    flat = [*values[0], *(x for row in values[1] for x in row)]
    norm = math.sqrt(math.fsum(x * x for x in flat))
    assert float64_norm(parameters).item() == pytest.approx(norm, rel=1e-15)
    assert float64_clip(parameters).item() == pytest.approx(norm, rel=1e-15)
    clipped = [x for p in parameters if p.grad is not None for x in p.grad.flatten().tolist()]
    for got, x in zip(clipped, flat, strict=True):
        assert got == pytest.approx(x * MAX_NORM / (norm + 1e-6), rel=2.0**-24)


def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "--steps", "1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == ["demo: needs matplotlib and tqdm: pip install matplotlib tqdm"]


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_unusable_device_is_said(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--device", device]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"demo: device must be one that this torch can use (got '{device}'")


def test_missing_folder_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nowhere" / "demo.png"
    assert main(["demo", "--device", "cpu", "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines() == [f"demo: the folder of {out} must exist"]
