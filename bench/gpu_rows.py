"""Check every entrant on one case against float64, then time device, graph replay and host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import torch
from clip_form import in_form
from devices import Clip, Device, NotCapturedError
from entrants import STOCK, Entrant
from gradients import Gradients
from measure import Milliseconds, check_coefficient, in_milliseconds
from shapes import Case
from timing import Clock, Contender, Effort, Sample, alternate, median_ratio, wall_clock
from torch import Tensor


class Entry(TypedDict):
    """What one entrant took.

    ``device`` is the time between two events around a call that the host had launched whole before
    the first; ``host`` is what the call kept the host for; ``replay`` is that of a CUDA graph.
    """

    device: Milliseconds
    host: Milliseconds
    replay: Milliseconds | None
    not_replayed: str | None
    error: float
    bytes_read: int
    bytes_written: int
    gb_per_s: float
    fraction_of_copy: float
    stock_over: float


class GpuRow(TypedDict):
    """A case in one dtype, clipped or not: what each entrant took, and who was not timed."""

    case: str
    dtype: str
    clipped: bool
    n_tensors: int
    gradient_bytes: int
    entries: dict[str, Entry]
    not_timed: dict[str, str]


class HostTime(TypedDict):
    """What a call on a list of so many tiny tensors keeps the host for."""

    n_tensors: int
    microseconds: dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What holds for every row of a run."""

    device: Device
    entrants: Sequence[Entrant]
    effort: Effort
    copy_bytes_per_second: float


HOST_TENSORS = (10, 100, 1000)


class _Row:
    """The calls of one row, each with the form that it runs in."""

    def __init__(self, bench: Bench, gradients: Gradients, clipped: bool) -> None:
        self.bench, self.gradients, self.clipped = bench, gradients, clipped
        self.max_norm = gradients.max_norm(clipped)
        self.entrants = {entrant.name: entrant for entrant in bench.entrants}
        self.calls = {
            name: entrant.prepare(gradients, self.max_norm)
            for name, entrant in self.entrants.items()
        }

    def check(self, name: str, call: Clip) -> float | str:
        """Return the error of a call's norm, or why another's call is not to be timed.

        Raises:
            WrongResultError: the call is fastclip's and float64 contradicts it.
        """
        entrant = self.entrants[name]
        self.gradients.restore()
        try:
            with in_form(entrant.form):
                total_norm = call()
            self.bench.device.synchronize()
        except RuntimeError as error:
            if entrant.is_ours or name == STOCK:
                raise
            return f"{type(error).__name__}: {error}"
        if entrant.is_ours:
            self.gradients.check(name, total_norm, self.clipped)
        elif name != STOCK and (reason := self.gradients.strays(total_norm, self.clipped)):
            return reason
        return self.gradients.norm_error(total_norm)

    def check_all(self) -> tuple[dict[str, float], dict[str, str]]:
        """Keep the calls that may be timed; return their errors, and why the others may not."""
        checks = {name: self.check(name, call) for name, call in self.calls.items()}
        errors = {name: error for name, error in checks.items() if isinstance(error, float)}
        self.calls = {name: self.calls[name] for name in errors}
        return errors, {name: told for name, told in checks.items() if isinstance(told, str)}

    def time(
        self, calls: Mapping[str, Clip], clock: Clock, ready: Callable[[str], None]
    ) -> dict[str, Sample]:
        """Time calls in alternation, each on restored gradients and a device that is ready."""
        contenders = {
            name: Contender(
                call,
                before=partial(self._prepare, name, ready),
                after=partial(check_coefficient, name, self.max_norm, self.clipped),
                within=partial(in_form, self.entrants[name].form),
            )
            for name, call in calls.items()
        }
        return alternate(contenders, self.bench.effort, clock)

    def _prepare(self, name: str, ready: Callable[[str], None]) -> None:
        if self.clipped:
            self.gradients.restore()
        ready(name)

    def replays(self) -> tuple[dict[str, Clip], dict[str, str]]:
        """Return a checked replay of every call that can be captured; why the others cannot."""
        found: dict[str, Clip] = {}
        reasons: dict[str, str] = {}
        for name, call in self.calls.items():
            entrant = self.entrants[name]
            if entrant.not_captured is not None:
                reasons[name] = entrant.not_captured
                continue
            try:
                with in_form(entrant.form):
                    replay = self.bench.device.capture(call)
            except NotCapturedError as error:
                reasons[name] = str(error)
                continue
            checked = self.check(name, replay)
            if isinstance(checked, str):
                reasons[name] = checked
            else:
                found[name] = replay
        return found, reasons


def measure_row(bench: Bench, gradients: Gradients, clipped: bool) -> GpuRow:
    """Check all results, then time those who passed.

    Raises:
        WrongResultError: before anything is timed if a result of fastclip contradicts float64;
            while timing, if a call clips where it must not, or does not where it must.
    """
    row = _Row(bench, gradients, clipped)
    errors, not_timed = row.check_all()
    replays, not_replayed = row.replays()
    host = row.time(row.calls, wall_clock, lambda _: bench.device.synchronize())

    def flush(name: str) -> None:
        bench.device.flush(host[name].high_ms)

    on_device = row.time(row.calls, bench.device.clock, flush)
    replayed = row.time(replays, bench.device.clock, flush)
    gradients.restore()
    entries = {
        name: Entry(
            device=in_milliseconds(on_device[name]),
            host=in_milliseconds(host[name]),
            replay=in_milliseconds(replayed[name]) if name in replayed else None,
            not_replayed=not_replayed.get(name),
            error=errors[name],
            **_rates(bench, gradients, row.entrants[name].passes(clipped), on_device[name]),
            stock_over=median_ratio(on_device[STOCK], on_device[name]),
        )
        for name in errors
    }
    return GpuRow(
        case=gradients.case.name,
        dtype=str(gradients.dtype).removeprefix("torch."),
        clipped=clipped,
        n_tensors=gradients.case.n_tensors,
        gradient_bytes=gradients.n_bytes,
        entries=entries,
        not_timed=not_timed,
    )


class _Rates(TypedDict):
    bytes_read: int
    bytes_written: int
    gb_per_s: float
    fraction_of_copy: float


def _rates(bench: Bench, gradients: Gradients, passes: tuple[int, int], sample: Sample) -> _Rates:
    reads, writes = passes
    moved = (reads + writes) * gradients.n_bytes
    bytes_per_second = moved / sample.median_ms * 1e3
    return _Rates(
        bytes_read=reads * gradients.n_bytes,
        bytes_written=writes * gradients.n_bytes,
        gb_per_s=bytes_per_second / 1e9,
        fraction_of_copy=bytes_per_second / bench.copy_bytes_per_second,
    )


def measure_host(bench: Bench, counts: Sequence[int] = HOST_TENSORS) -> list[HostTime]:
    """Time the host alone on lists of tiny tensors; nothing is clipped, nobody synchronises."""
    found: list[HostTime] = []
    for n in counts:
        case = Case(f"{n}x64", ((64,),) * n, "a list whose cost is the host's alone")
        row = _Row(bench, Gradients(case, "float32", bench.device.type), clipped=False)
        row.check_all()
        samples = row.time(row.calls, wall_clock, lambda _: bench.device.synchronize())
        microseconds = {name: sample.median_ms * 1e3 for name, sample in samples.items()}
        found.append(HostTime(n_tensors=n, microseconds=microseconds))
    return found


def copy_speed(device: Device, n_bytes: int, effort: Effort) -> float:
    """Return the bytes that a copy on the device reads and writes in a second."""
    source, target = (torch.ones(n_bytes, dtype=torch.uint8, device=device.type) for _ in range(2))

    def copy() -> Tensor:
        return target.copy_(source)

    copying = Contender(copy, before=lambda: device.flush(0.0), after=lambda _: None)
    sample = alternate({"copy": copying}, effort, device.clock)["copy"]
    return 2 * n_bytes / sample.median_ms * 1e3
