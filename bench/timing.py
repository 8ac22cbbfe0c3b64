"""Time several calls in alternation, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from time import monotonic, perf_counter_ns


@dataclass(frozen=True)
class Effort:
    """How long to measure one case: until both the repetitions and the seconds are spent."""

    min_repetitions: int
    max_repetitions: int
    seconds: float


DEFAULT_EFFORT = Effort(min_repetitions=7, max_repetitions=300, seconds=2.0)
QUICK_EFFORT = Effort(min_repetitions=3, max_repetitions=10, seconds=0.1)


@dataclass(frozen=True)
class Contender:
    """A call to time, with what has to happen around it and outside its time."""

    call: Callable[[], object]
    before: Callable[[], None]
    after: Callable[[object], None]


@dataclass(frozen=True)
class Sample:
    """The repetitions of one contender, in milliseconds."""

    median_ms: float
    low_ms: float
    high_ms: float
    repetitions: int


def alternate(contenders: Mapping[str, Contender], effort: Effort) -> dict[str, Sample]:
    """Run all contenders in turn, again and again, and return what each took.

    The order changes with each round, so that none always follows the same other one. The first
    round is not counted: it pays for page faults, thread pools and caches of every kind.
    """
    names = list(contenders)
    taken: dict[str, list[int]] = {name: [] for name in names}
    order = Random(22)
    gc.collect()
    gc.disable()
    try:
        for name in names:
            _time(contenders[name])
        end = monotonic() + effort.seconds
        for turn in range(effort.max_repetitions):
            if turn >= effort.min_repetitions and monotonic() >= end:
                break
            order.shuffle(names)
            for name in names:
                taken[name].append(_time(contenders[name]))
    finally:
        gc.enable()
    return {name: _sample(nanoseconds) for name, nanoseconds in taken.items()}


def _time(contender: Contender) -> int:
    contender.before()
    start = perf_counter_ns()
    result = contender.call()
    nanoseconds = perf_counter_ns() - start
    contender.after(result)
    return nanoseconds


def _sample(nanoseconds: list[int]) -> Sample:
    low, *_, high = quantiles(nanoseconds, n=10, method="inclusive")
    return Sample(median(nanoseconds) / 1e6, low / 1e6, high / 1e6, len(nanoseconds))
