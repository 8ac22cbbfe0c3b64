"""docs/roofline.md: predictions, marked as such, and what was measured beside them."""

import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from source_tree import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from bench.core.shapes import CASES
from bench.gpu import results as gpu_results
from bench.model import roofline, stock_launches

HEADER = Path(torch.__file__).parent / "include/ATen/native/cuda/MultiTensorApply.cuh"
CHUNK = stock_launches.CHUNK_SIZE


def test_the_document_is_what_the_script_writes() -> None:
    assert roofline.DOCUMENT.read_text(encoding="utf-8") == roofline.document()


def test_every_line_of_a_prediction_says_so() -> None:
    before, heading, after = roofline.document().partition("## Measured on an H200\n")
    assert heading
    predicted, measured = (
        [line for line in part.splitlines() if re.search(r"^\| .*`[\w-]+` \|", line)]
        for part in (before, after)
    )
    # Launches of each list, and times of each in two dtypes, not clipped and clipped.
    assert len(predicted) == len(CASES) * (1 + 2 * 2)
    assert all(row.startswith("| prediction | ") for row in predicted)
    # Launches of five lists, and 21 rows.
    assert len(measured) == 5 + 21
    assert all(row.startswith("| measured | ") for row in measured)


def test_what_is_measured_is_what_the_files_hold() -> None:
    document = roofline.document()
    lines = (gpu_results.H200 / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        clipped = "yes" if row["clipped"] else "no"
        head = f"| measured | `{row['case']}` | {row['dtype']} | {clipped} | "
        cells = document.partition(head)[2].partition("\n")[0].split(" | ")
        for cell, name in zip(cells, ("stock", "native fused"), strict=True):
            rounds = row["entries"][name]["device"]["rounds"]
            measured = float(cell.partition(" /")[0].replace(",", ""))
            assert measured == pytest.approx(statistics.median(rounds) * 1e3, rel=5e-3)


def test_a_measured_line_holds_the_time_against_its_prediction() -> None:
    # 497,759,232 bytes at 4.8 TB/s take 103.7 us; stock moves them three times, in 11 launches.
    line = "| measured | `gpt2-124m` | float32 | no | 471 / 333 / 1.41 | 122 / 106 / 1.16 |"
    assert line in roofline.document().splitlines()


def test_measured_launches_stand_beside_both_counts() -> None:
    lines = roofline.document().splitlines()
    assert "| measured | `gpt2-124m` | 148 | 23 | 11 | 23 |" in lines
    assert "| measured | `llama-3-8b-scaled` | 291 | 60 | 18 | 60 |" in lines
    assert "| measured | `2000x4096` | 2,000 | 65 | 29 | 61 |" in lines
    assert "| measured | `10000x256` | 10,000 | 292 | 115 | 271 |" in lines


def test_a_time_is_bytes_over_bandwidth_and_launches() -> None:
    work = roofline.Work(launches=5, reads=2, writes=1)
    # 3 ms for 3 GB at 1 TB/s, and 2 us for each launch.
    assert work.seconds(10**9, 1e12) == pytest.approx(3e-3 + 5 * 2e-6)


def test_a_line_follows_from_its_case() -> None:
    # 497,759,232 bytes at 3.35 TB/s take 148.6 us, and fastclip's two launches 4 us; stock moves
    # three times as many in 11 launches.
    row = next(
        line
        for line in roofline.document().splitlines()
        if line.startswith("| prediction | `gpt2-124m` | float32 | no |")
    )
    assert row.split(" | ")[6] == "468 / 153 / 3.1"


@pytest.mark.parametrize(
    ("counts", "launches"),
    [
        ([], 0),
        ([0, 0], 0),
        ([1], 1),
        ([1] * 770, 1),
        ([1] * 771, 2),
        ([0] * 5 + [1] * 770, 1),
        ([2240 * CHUNK], 1),
        ([2240 * CHUNK + 1], 2),
        # The launch is full of blocks within the second tensor, whose rest counts as a tensor of
        # the next one: 769 more fill it.
        ([CHUNK, 2240 * CHUNK] + [1] * 769, 2),
        ([CHUNK, 2240 * CHUNK] + [1] * 770, 3),
        ([2240 * CHUNK] + [1] * 770, 2),
    ],
)
def test_foreach_launches_when_tensors_or_blocks_are_full(counts: list[int], launches: int) -> None:
    assert stock_launches.multi_tensor_apply(counts) == launches


@pytest.mark.skipif(not HEADER.exists(), reason="needs the CUDA headers that torch installs")
def test_the_limits_are_those_of_torchs_header() -> None:
    text = " ".join(HEADER.read_text(encoding="utf-8").split())
    both = text.partition("CUDART_VERSION >= 13000")[2].partition("#endif")[0]
    newer, _, older = both.partition("#else")
    if not newer:
        pytest.skip("this torch has no limits for CUDA 13")
    assert f"kChunkSize = {stock_launches.CHUNK_SIZE};" in text
    for part, limits in ((newer, stock_launches.CUDA_13), (older, stock_launches.OLDER)):
        assert f"depth_to_max_tensors[5] = {{{limits.max_tensors}," in part
        assert f"depth_to_max_blocks[5] = {{{limits.max_blocks}," in part


@pytest.mark.parametrize(
    ("cuda", "launches"),
    # 100,000 elements are two chunks.
    [("13.0", 2), ("14.2", 2), ("12.9", 10), (None, 10)],
)
def test_builds_for_older_cuda_and_hip_launch_more(cuda: str | None, launches: int) -> None:
    limits = stock_launches.limits_of(cuda)
    assert stock_launches.multi_tensor_apply([1] * 1000 + [100_000], limits) == launches


class Operations(TorchDispatchMode):
    """Notes the operations that torch carries out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_steps_are_the_operations_of_stocks_clip() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    with Operations() as operations:
        torch.nn.utils.clip_grad_norm_([parameter], 1.0, foreach=True)
    silent = {"detach", "unbind"}
    done = [name.strip("_") for name in operations.names if name not in silent]
    steps = list(stock_launches.stock_launches(CASES["1x1e8"]))
    # On the GPU foreach_norm is three of them: sums from zeros, the chunks, and the cleanup.
    inner = {"zeros", "cleanup"}
    named = [name.removeprefix("linalg_") for name in done]
    assert named == [step for step in steps if step not in inner]


def test_fastclips_work_is_what_was_counted() -> None:
    text = (ROOT / "docs" / "counted-work.md").read_text(encoding="utf-8")
    # The columns "not clipped" and "clipped" of each list.
    line = re.compile(r"^\| `([\w-]+)` \| [\d,]+ \| ([^|]+ \| [^|]+) \|", re.MULTILINE)
    counted = dict(line.findall(text))
    assert counted.keys() == CASES.keys()
    for name, cells in counted.items():
        works = [
            roofline.fastclip_work(CASES[name], clipped, split=True) for clipped in (False, True)
        ]
        told = " | ".join(f"{w.launches} / {w.reads} / {w.writes}" for w in works)
        assert cells == told, name


def test_split_is_a_launch_more() -> None:
    for case in CASES.values():
        fused = roofline.fastclip_work(case, True)
        split = roofline.fastclip_work(case, True, split=True)
        assert split == roofline.Work(fused.launches + 1, fused.reads, fused.writes)


def test_only_the_very_gpu_of_the_data_sheet_is_known() -> None:
    known = roofline.known_gpu("NVIDIA H100 80GB HBM3")
    assert known is not None and known.bytes_per_second == 3.35e12
    for name in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert roofline.known_gpu(name) is None
