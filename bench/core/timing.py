"""Time several calls in alternation, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import truediv
from random import Random
from statistics import median, quantiles
from time import monotonic, perf_counter_ns
from typing import TypedDict

from torch import Tensor

Clip = Callable[[], Tensor]
"""Clips and returns the total norm."""

Clock = Callable[[Callable[[], object]], tuple[object, float]]
"""Runs a call and returns its result and the nanoseconds that it took."""


@dataclass(frozen=True)
class Effort:
    """How long to measure one case: until both the repetitions and the seconds are spent."""

    min_repetitions: int
    max_repetitions: int
    seconds: float

    def repetitions(self) -> str:
        """Return the bounds of the repetitions in words."""
        return f"{self.min_repetitions} to {self.max_repetitions}"


QUICK_EFFORT = Effort(min_repetitions=3, max_repetitions=10, seconds=0.1)


@dataclass(frozen=True)
class Contender:
    """A call to time, with what has to happen around it and outside its time."""

    call: Callable[[], object]
    before: Callable[[], object] = lambda: None
    after: Callable[[object], object] = lambda _: None
    within: Callable[[], AbstractContextManager[object]] = nullcontext


class Milliseconds(TypedDict):
    """What a contender took in each round, the median, and the deciles around it."""

    rounds: Sequence[float]
    median: float
    low: float
    high: float


def median_ratio(over: Milliseconds, under: Milliseconds) -> float:
    """Return the median over the rounds of what ``over`` took, divided by what ``under`` took.

    Within a round both ran on the same machine: one that is slower for a second, because it shares
    its cores with others, slows both, where a ratio of medians may set its fast seconds against
    its slow ones.
    """
    return median(map(truediv, over["rounds"], under["rounds"]))


class Rates(TypedDict):
    """The bytes that a call reads and writes, as counted, and how many a second."""

    bytes_read: int
    bytes_written: int
    gb_per_s: float


def rates(n_bytes: int, passes: tuple[int, int], taken: Milliseconds) -> Rates:
    """Return the rates of a call that reads and writes every one of these bytes so many times."""
    read, written = (n * n_bytes for n in passes)
    gb_per_s = (read + written) / taken["median"] / 1e6
    return Rates(bytes_read=read, bytes_written=written, gb_per_s=gb_per_s)


def summarized(rounds: Sequence[float]) -> Milliseconds:
    """Return what a contender took, given each round in milliseconds."""
    low, *_, high = quantiles(rounds, n=10, method="inclusive")
    return Milliseconds(rounds=rounds, median=median(rounds), low=low, high=high)


def wall_clock(call: Callable[[], object]) -> tuple[object, float]:
    """Time a call by the processor's clock; what it leaves to others to do is not waited for."""
    start = perf_counter_ns()
    result = call()
    return result, perf_counter_ns() - start


def alternate(
    contenders: Mapping[str, Contender], effort: Effort, clock: Clock = wall_clock
) -> dict[str, Milliseconds]:
    """Run all contenders in turn, again and again, and return what each took.

    The order changes with each round, so that none always follows the same other one. The first
    round is not counted: it pays for page faults, thread pools and caches of every kind.
    """
    names = list(contenders)
    taken: dict[str, list[float]] = {name: [] for name in names}
    order = Random(22)
    gc.collect()
    gc.disable()
    try:
        for name in names:
            _time(contenders[name], clock)
        end = monotonic() + effort.seconds
        for turn in range(effort.max_repetitions):
            if turn >= effort.min_repetitions and monotonic() >= end:
                break
            order.shuffle(names)
            for name in names:
                taken[name].append(_time(contenders[name], clock) / 1e6)
    finally:
        gc.enable()
    return {name: summarized(rounds) for name, rounds in taken.items()}


def _time(contender: Contender, clock: Clock) -> float:
    with contender.within():
        contender.before()
        result, nanoseconds = clock(contender.call)
    contender.after(result)
    return nanoseconds
