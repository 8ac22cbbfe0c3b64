"""transformers' Trainer on a tiny GPT-2 and real text: training over the patch equals stock's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from source_tree import ROOT
from torch import Tensor

import fastclip

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own
LENGTH = 32
STEPS = 12


class Text(torch.utils.data.Dataset):
    """The bytes of a text, cut into sequences."""

    def __init__(self, path: Path) -> None:
        values = torch.tensor(list(path.read_bytes()))
        self.rows = values[: len(values) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def train(folder: Path, max_grad_norm: float, **options: object) -> tuple[list[float], list[float]]:
    """Train for some steps; return the losses and the norms that the Trainer logged."""
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, attn_pdrop=0.0
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_grad_norm=max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **options,
    )
    model = transformers.GPT2LMHeadModel(config)
    trainer = transformers.Trainer(model, arguments, train_dataset=Text(ROOT / "LICENSE"))
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [row["loss"] for row in rows], [row["grad_norm"] for row in rows]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-5),
        ({"gradient_accumulation_steps": 3}, 1e-5),
        # A coefficient that differs by 2**-24 may round a gradient, and a weight, another way.
        ({"bf16": True}, 1e-2),
    ],
    ids=("float32", "accumulation", "bf16"),
)
def test_losses_and_norms_are_those_of_stock(
    tmp_path: Path, options: dict[str, object], tolerance: float
) -> None:
    stock, stock_norms = train(tmp_path / "stock", 0.1, **options)
    calls: list[float] = []
    with fastclip.patch_torch():
        ours = torch.nn.utils.clip_grad_norm_

        def counted(*args: object, **kwargs: object) -> Tensor:
            calls.append(1)
            return ours(*args, **kwargs)  # pyright: ignore

        torch.nn.utils.clip_grad_norm_ = counted  # pyright: ignore
        try:
            losses, norms = train(tmp_path / "ours", 0.1, **options)
        finally:
            torch.nn.utils.clip_grad_norm_ = ours
    assert len(calls) == len(losses) == STEPS
    assert ours is fastclip.clip_grad_norm_
    assert losses == pytest.approx(stock, rel=tolerance)
    assert norms == pytest.approx(stock_norms, rel=tolerance)
    assert min(norms) > 0.1, "every step is clipped"
    assert losses[-1] < losses[0]
