"""Check one case against float64, then time stock, fastclip and memory itself on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

import fastclip
from bench.core.gradients import Gradients, WrongResultError, coefficient
from bench.core.timing import Contender, Effort, Sample, alternate, median_ratio, together
from bench.cpu.streams import Streams, last_cache_bytes

Clip = Callable[[], Tensor]


class Row(TypedDict):
    """One line of the table: a case in one dtype, clipped or not.

    ``other_work``: whether other work ran between the calls, or nothing that counts.
    """

    case: str
    dtype: str
    clipped: bool
    other_work: bool
    n_tensors: int
    n_elements: int
    gradient_bytes: int
    cold: bool
    norm: float
    stock_error: float
    list_error: float
    clipper_error: float
    milliseconds: dict[str, Milliseconds]
    stock_over_list: float
    stock_over_clipper: float
    stock_over_reference: float
    bytes_read: int
    bytes_written: int
    gb_per_s: float
    ceiling_ms: float
    fraction_of_ceiling: float


class Milliseconds(TypedDict):
    """What a contender took in each round, the median, and the deciles around it."""

    rounds: Sequence[float]
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Settings:
    """What holds for every case of a run."""

    effort: Effort
    backend: str | None


@dataclass(frozen=True)
class _Measured:
    clipped: bool
    other_work: bool
    cold: bool
    errors: dict[str, float]
    samples: dict[str, Sample]


def list_call(gradients: Gradients, max_norm: float, backend: str | None) -> Clip:
    """Return fastclip's drop-in call on a list of parameters."""
    # Looked up at each call, as a training loop does.
    return lambda: fastclip.clip_grad_norm_(gradients.parameters, max_norm, backend=backend)


def calls(gradients: Gradients, clipped: bool, backend: str | None) -> dict[str, Clip]:
    """Return stock's call, fastclip's list call, and the call of a GradClipper built once."""
    max_norm = gradients.max_norm(clipped)
    return {
        "stock": partial(torch.nn.utils.clip_grad_norm_, gradients.parameters, max_norm),
        "list": list_call(gradients, max_norm, backend),
        "clipper": fastclip.GradClipper(gradients.parameters, max_norm, backend=backend).clip_,
    }


def starts_inside_cache(gradients: Gradients) -> bool:
    """Return whether calls that only repeat find these gradients in the last cache."""
    return gradients.n_bytes <= last_cache_bytes() // 4


def row_name(row: Row) -> str:
    """Return the name of a row's case, and what ran between its calls."""
    return f"{row['case']}, other work between" if row["other_work"] else row["case"]


def measure(
    gradients: Gradients,
    clipped: bool,
    streams: Streams,
    settings: Settings,
    other_work: Callable[[], None] | None = None,
) -> Row:
    """Check the results, then time every contender in alternation.

    Args:
        gradients: What is clipped.
        clipped: Whether the threshold is one that clips.
        streams: What evicts the caches, and the loops that show the speed of memory.
        settings: What holds for every case.
        other_work: Runs before each call, outside its time. Without it gradients that fit in the
            last cache are there, and the same call has just been made.

    Raises:
        WrongResultError: before anything is timed if a result of fastclip contradicts float64;
            while timing, if a call clips where it must not, or does not where it must.
    """
    max_norm = gradients.max_norm(clipped)
    clips = calls(gradients, clipped, settings.backend)
    warm_ups = calls(gradients, False, settings.backend)
    clips["reference"] = list_call(gradients, max_norm, "reference")
    warm_ups["reference"] = list_call(gradients, gradients.max_norm(False), "reference")
    errors = checked_errors(gradients, clips, clipped)
    cold = other_work is not None or not starts_inside_cache(gradients)
    restore = gradients.restore if clipped else _nothing
    contenders = {
        name: Contender(
            call,
            before=partial(_start_outside_cache, restore, other_work or streams.evict)
            if cold
            else partial(_start_inside_cache, restore, warm_ups[name]),
            after=partial(check_coefficient, name, max_norm, clipped),
        )
        for name, call in clips.items()
    }
    loops = streams.readers(gradients.n_bytes)
    if clipped:
        loops |= streams.updates(gradients.n_bytes)
    start = streams.evict if cold else _nothing
    contenders |= {name: Contender(loop, start, _ignore) for name, loop in loops.items()}
    samples = alternate(contenders, settings.effort)
    gradients.restore()
    measured = _Measured(clipped, other_work is not None, cold, errors, samples)
    return _row(gradients, measured, streams)


def checked_errors(gradients: Gradients, clips: dict[str, Clip], clipped: bool) -> dict[str, float]:
    """Return each call's error of the norm; raise if it is fastclip's and wrong."""
    errors: dict[str, float] = {}
    for name, call in clips.items():
        gradients.restore()
        total_norm = call()
        errors[name] = gradients.norm_error(total_norm)
        if name != "stock":
            gradients.check(name, total_norm, clipped)
    gradients.restore()
    return errors


def _nothing() -> None:
    pass


def _ignore(_: object) -> None:
    pass


def _start_outside_cache(restore: Callable[[], None], evict: Callable[[], None]) -> None:
    restore()
    evict()


def _start_inside_cache(restore: Callable[[], None], warm_up: Clip) -> None:
    # By the same call with a threshold that clips nothing: its code, its objects and the gradients
    # are then near, where what ran before would count for more than the call itself. 1000 tensors
    # of 64 take 10 % longer after one warm-up than after five.
    restore()
    for _ in range(5):
        warm_up()


def check_coefficient(who: str, max_norm: float, clipped: bool, total_norm: object) -> None:
    """Raise WrongResultError for a call that clips where it must not, or the other way round."""
    if not isinstance(total_norm, Tensor):
        raise WrongResultError(f"{who}: must return a tensor (got {type(total_norm).__name__})")
    norm = float(total_norm)
    if math.isnan(norm):
        raise WrongResultError(f"{who}: must return a number (got nan)")
    clip_coef = coefficient(max_norm, norm)
    if (clip_coef < 1.0) is not clipped:
        wanted = "below 1" if clipped else "1"
        raise WrongResultError(f"{who}: clip_coef must be {wanted} (got {clip_coef!r})")


def fastest(samples: dict[str, Sample], kind: str) -> Sample:
    """Return the sample of the smallest median among those whose name starts with ``kind``."""
    named = [sample for name, sample in samples.items() if name.startswith(kind)]
    return min(named, key=lambda sample: sample.median_ms)


def _row(gradients: Gradients, measured: _Measured, streams: Streams) -> Row:
    clipped, errors, samples = measured.clipped, measured.errors, measured.samples
    n_bytes = gradients.n_bytes
    kinds = ("read", "update") if clipped else ("read",)
    loops = together(*(fastest(samples, kind) for kind in kinds))
    loops_share = n_bytes / streams.bytes_streamed(n_bytes)
    bytes_read, bytes_written = (2 * n_bytes, n_bytes) if clipped else (n_bytes, 0)
    return Row(
        case=gradients.case.name,
        dtype=str(gradients.dtype).removeprefix("torch."),
        clipped=clipped,
        other_work=measured.other_work,
        n_tensors=gradients.case.n_tensors,
        n_elements=gradients.case.n_elements,
        gradient_bytes=n_bytes,
        cold=measured.cold,
        norm=gradients.norm,
        stock_error=errors["stock"],
        list_error=errors["list"],
        clipper_error=errors["clipper"],
        milliseconds={name: in_milliseconds(sample) for name, sample in samples.items()},
        stock_over_list=median_ratio(samples["stock"], samples["list"]),
        stock_over_clipper=median_ratio(samples["stock"], samples["clipper"]),
        stock_over_reference=median_ratio(samples["stock"], samples["reference"]),
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        gb_per_s=(bytes_read + bytes_written) / samples["list"].median_ms / 1e6,
        ceiling_ms=loops.median_ms * loops_share,
        fraction_of_ceiling=median_ratio(loops, samples["list"]) * loops_share,
    )


def in_milliseconds(sample: Sample) -> Milliseconds:
    """Return a sample as a report holds it."""
    return Milliseconds(
        rounds=sample.rounds_ms,
        median=sample.median_ms,
        low=sample.low_ms,
        high=sample.high_ms,
    )


def ratios(rows: Sequence[Row]) -> dict[tuple[str, str, bool, str], float]:
    """Return stock's time over fastclip's, by name of the row, dtype, clipped or not, contender."""
    return {
        (row_name(row), row["dtype"], row["clipped"], contender): value
        for row in rows
        for contender, value in (
            ("list", row["stock_over_list"]),
            ("clipper", row["stock_over_clipper"]),
        )
    }
