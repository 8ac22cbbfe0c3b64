"""Check every entrant on one case against float64, then time device, graph replay and host."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypedDict

import torch

from bench.core.gradients import Gradients
from bench.core.shapes import Case
from bench.core.text import Head
from bench.core.timing import (
    Contender,
    Effort,
    Milliseconds,
    Rates,
    alternate,
    median_ratio,
    rates,
    wall_clock,
)
from bench.gpu.calls import Bench, Calls
from bench.gpu.devices import Device
from bench.gpu.entrants import STOCK


class Entry(Rates):
    """What one entrant took.

    ``device`` is the time between two events around a call that the host had launched whole before
    the first, except in ``rounds_not_ahead`` of its rounds; ``host`` is what the call kept the host
    for; ``replay`` is the device's time for a CUDA graph, with rounds of the same kind.
    """

    device: Milliseconds
    host: Milliseconds
    replay: Milliseconds | None
    not_replayed: str | None
    rounds_not_ahead: int
    replay_rounds_not_ahead: int
    error: float
    fraction_of_copy: float
    stock_over: float


class GpuRow(Head):
    """What each entrant took, and those that were not timed.

    ``failures`` are fastclip's: one of its entrants raised, or gave a wrong result.
    """

    entries: dict[str, Entry]
    not_timed: dict[str, str]
    failures: list[str]


class HostTime(TypedDict):
    """What a call on a list of so many tiny tensors keeps the host for."""

    n_tensors: int
    microseconds: dict[str, float]
    failures: list[str]


HOST_TENSORS = (10, 100, 1000)


def measure_row(bench: Bench, gradients: Gradients, clipped: bool) -> GpuRow:
    """Check all results, then time the entrants that passed: calls first, then replays of graphs.

    Raises:
        Exception: whatever stock's call raised.
        torch.OutOfMemoryError: there was too little memory even for a call of fastclip.
    """
    row = Calls(bench, gradients, clipped)
    errors = row.check_all()
    host = row.time_all(wall_clock, lambda _: bench.device.synchronize())

    def flush(name: str) -> None:
        bench.device.flush(host[name]["high"])

    on_device = row.time_all(bench.device.clock, flush)
    late = row.late_rounds
    replayed = row.time_replays(bench.device.clock, flush)
    gradients.restore()
    entries: dict[str, Entry] = {}
    for name, device in on_device.items():
        found = rates(gradients.n_bytes, row.entrants[name].passes(clipped), device)
        entries[name] = Entry(
            device=device,
            host=host[name],
            replay=replayed.get(name),
            not_replayed=row.not_replayed.get(name),
            rounds_not_ahead=late[name],
            replay_rounds_not_ahead=row.late_rounds.get(name, 0) if name in replayed else 0,
            error=errors[name],
            **found,
            fraction_of_copy=found["gb_per_s"] * 1e9 / bench.copy_bytes_per_second,
            stock_over=median_ratio(on_device[STOCK], device),
        )
    return GpuRow(
        **gradients.head(clipped),
        entries=entries,
        not_timed=row.dropped,
        failures=row.failures,
    )


def measure_host(bench: Bench, counts: Sequence[int] = HOST_TENSORS) -> list[HostTime]:
    """Time the host alone on lists of tiny tensors: nothing is clipped or waited for."""
    found: list[HostTime] = []
    for n in counts:
        case = Case(f"{n}x64", ((64,),) * n, "a list whose cost is the host's alone")
        row = Calls(bench, Gradients(case, "float32", bench.device.type), clipped=False)
        row.check_all()
        samples = row.time_all(wall_clock, lambda _: bench.device.synchronize())
        microseconds = {name: sample["median"] * 1e3 for name, sample in samples.items()}
        found.append(HostTime(n_tensors=n, microseconds=microseconds, failures=row.failures))
    return found


def copy_speed(device: Device, n_bytes: int, effort: Effort) -> float:
    """Return the bytes that a copy on the device reads and writes in a second."""
    source, target = (torch.ones(n_bytes, dtype=torch.uint8, device=device.type) for _ in range(2))
    copying = Contender(partial(target.copy_, source), before=partial(device.flush, 0.0))
    sample = alternate({"copy": copying}, effort, device.clock)["copy"]
    return 2 * n_bytes / sample["median"] * 1e3
