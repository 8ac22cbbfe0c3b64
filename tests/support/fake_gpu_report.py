"""Reports of runs that never were, and packages that are not there, to test bench gpu."""

import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from bench.core.machine import HostLoad, describe
from bench.core.shapes import Case
from bench.core.timing import Milliseconds
from bench.gpu import calls, entrants
from bench.gpu.fused_or_split import Choice, choose
from bench.gpu.report import GpuReport
from bench.gpu.rows import Entry, GpuRow, HostTime

N_BYTES = 64_000 * 4
FIVE = Case("five", ((33,), (7, 5), (1,), (4097,), (31,)), "")


def milliseconds(value: float) -> Milliseconds:
    return Milliseconds(rounds=(value, value, value), median=value, low=value, high=value)


def entry(device_ms: float, stock_ms: float = 0.04) -> Entry:
    return Entry(
        device=milliseconds(device_ms),
        host=milliseconds(0.1),
        replay=None,
        not_replayed="made up",
        rounds_not_ahead=0,
        replay_rounds_not_ahead=0,
        error=1e-8,
        bytes_read=N_BYTES,
        bytes_written=0,
        gb_per_s=N_BYTES / device_ms / 1e6,
        fraction_of_copy=0.5,
        stock_over=stock_ms / device_ms,
    )


def row(device_ms: Mapping[str, float], clipped: bool = False, case: str = "1000x64") -> GpuRow:
    return GpuRow(
        case=case,
        dtype="float32",
        clipped=clipped,
        n_tensors=1000,
        gradient_bytes=N_BYTES,
        entries={"stock": entry(0.04), **{name: entry(ms) for name, ms in device_ms.items()}},
        not_timed={},
        failures=[],
    )


def forms(fused_ms: float, split_ms: float, clipped: bool = False, case: str = "1000x64") -> GpuRow:
    times = {"native auto": fused_ms, "native fused": fused_ms, "native split": split_ms}
    return row(times, clipped, case)


def report(
    rows: Sequence[GpuRow],
    device_name: str = "NVIDIA H100 80GB HBM3",
    is_gpu: bool = True,
    failures: Sequence[str] = (),
    cuda: str | None = "13.0",
) -> GpuReport:
    absent = {"fastclip triton": "no such backend", "apex": "ModuleNotFoundError: no apex"}
    choices: list[Choice] = [
        choose(rows, "native", is_gpu, None),
        choose(rows, "triton", is_gpu, absent["fastclip triton"]),
    ]
    return GpuReport(
        failures=list(failures),
        is_gpu=is_gpu,
        cuda=cuda,
        device_name=device_name,
        machine=describe(HostLoad()),
        facts={"device": device_name, "driver": "580.1"},
        versions={"driver": "580.1", "CUDA (torch's)": "13.0", "torch": "2.13.0", "triton": "3.9"},
        checks={"tests marked gpu": "1 passed, 0 failed, 2 SKIPPED (needs two GPUs)"},
        settings={"repetitions": "7 to 100"},
        copy_gb_per_s=3000.0,
        absent=absent,
        skipped={},
        choices=choices,
        rows=list(rows),
        host_times=[
            HostTime(n_tensors=10, microseconds={"stock": 70.0, "native auto": 6.0}, failures=[])
        ],
    )


def ours(name: str = "ours", form: str = "auto") -> entrants.Entrant:
    """Return an entrant of fastclip's that runs everywhere."""
    return entrants.Entrant(name, lambda g, m: entrants.list_call(g, m, "reference"), True, form)


def choose_forms(patch: pytest.MonkeyPatch) -> list[str]:
    """Let the forms be noted instead of chosen; returns those that were, in order."""
    chosen = ["auto"]
    patch.setattr(calls, "set_clip_mode", chosen.append)
    patch.setattr(calls, "clip_mode", lambda: chosen[-1])
    return chosen


def install_others(patch: pytest.MonkeyPatch) -> None:
    """Let apex and TransformerEngine be imported."""
    install(patch, "amp_C")
    install(patch, "apex.contrib.clip_grad", clip_grad_norm_=torch.nn.utils.clip_grad_norm_)
    engine = vars(transformer_engine(on_device=True))
    install(patch, "transformer_engine.pytorch.optimizers", **engine)


def install(patch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    """Let a module of this name be imported, with every package above it."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        above = ".".join(parts[:i])
        patch.setitem(sys.modules, above, ModuleType(above))
    vars(sys.modules[name]).update(contents)


def transformer_engine(on_device: bool) -> SimpleNamespace:
    """Return TransformerEngine's operations in torch; older releases scale by a number alone."""

    def apply(
        operation: Callable[..., object], flag: Tensor, lists: list[list[Tensor]], *rest: object
    ) -> object:
        return operation(2048 * 32, flag, lists, *rest)

    def norm(_: int, flag: Tensor, lists: list[list[Tensor]], per_tensor: bool) -> object:
        assert flag.dtype == torch.int32 and per_tensor is False
        norms = torch.stack([torch.linalg.vector_norm(x.float()) for x in lists[0]])
        return torch.linalg.vector_norm(norms).reshape(1), torch.empty(0)

    def scale(_: int, flag: Tensor, lists: list[list[Tensor]], factor: float) -> None:
        assert isinstance(factor, float) and factor < 1
        for source, target in zip(*lists, strict=True):
            target.copy_(source * factor)

    def scale_by_tensor(_: int, flag: Tensor, lists: list[list[Tensor]], factor: Tensor) -> None:
        for source, target in zip(*lists, strict=True):
            target.copy_(source * factor)

    found = SimpleNamespace(
        multi_tensor_applier=apply, multi_tensor_l2norm=norm, multi_tensor_scale=scale
    )
    if on_device:
        found.multi_tensor_scale_tensor = scale_by_tensor
    return found
