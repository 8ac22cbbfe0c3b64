"""Check one case against float64, then time stock, fastclip and memory itself on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

import fastclip
from bench.core.gradients import Gradients, check_coefficient, list_call
from bench.core.text import Head, row_title
from bench.core.timing import (
    Clip,
    Contender,
    Effort,
    Milliseconds,
    Rates,
    alternate,
    median_ratio,
    rates,
    summarized,
)
from bench.cpu.streams import Streams, last_cache_bytes
from bench.model.roofline import passes

WARM_UPS = 5
"""Untimed calls before a timed one: 1000 tensors of 64 take 10 % longer after one than after 5."""


class Speeds(Rates):
    """The speed of the list call, beside that of memory itself."""

    ceiling_ms: float
    fraction_of_ceiling: float


class Row(Head, Speeds):
    """One line of the table.

    ``other_work``: whether other work ran between the calls, or nothing that counts.
    """

    other_work: bool
    n_elements: int
    cold: bool
    norm: float
    stock_error: float
    list_error: float
    clipper_error: float
    milliseconds: dict[str, Milliseconds]
    stock_over_list: float
    stock_over_clipper: float
    stock_over_reference: float


@dataclass(frozen=True)
class Bench:
    """What holds for every case of a run."""

    effort: Effort
    backend: str | None
    streams: Streams


def calls(gradients: Gradients, clipped: bool, backend: str | None) -> dict[str, Clip]:
    """Return the calls of stock, of the list, of a GradClipper built once, and of the reference."""
    max_norm = gradients.max_norm(clipped)
    return {
        "stock": partial(torch.nn.utils.clip_grad_norm_, gradients.parameters, max_norm),
        "list": list_call(gradients, max_norm, backend),
        "clipper": fastclip.GradClipper(gradients.parameters, max_norm, backend=backend).clip_,
        "reference": list_call(gradients, max_norm, "reference"),
    }


def starts_inside_cache(gradients: Gradients) -> bool:
    """Return whether calls that only repeat find these gradients in the last cache."""
    return gradients.n_bytes <= last_cache_bytes() // 4


def row_name(row: Row) -> str:
    """Return the name of a row's case, and what ran between its calls."""
    return f"{row['case']}, other work between" if row["other_work"] else row["case"]


def row_text(row: Row) -> str:
    """Name a row, and what ran between its calls."""
    return f"{row_title(row)}, other work between" if row["other_work"] else row_title(row)


def measure(
    bench: Bench,
    gradients: Gradients,
    clipped: bool,
    other_work: Callable[[], object] | None = None,
) -> Row:
    """Check the results, then time every contender in alternation.

    Args:
        bench: What holds for every case.
        gradients: What is clipped.
        clipped: Whether the threshold is one that clips.
        other_work: Runs before each call, outside its time. Without it gradients that fit in the
            last cache are there, and the same call has just been made.

    Raises:
        WrongResultError: before anything is timed if a result of fastclip contradicts float64;
            while timing, if a call clips where it must not, or does not where it must.
    """
    clips = calls(gradients, clipped, bench.backend)
    warm_ups = calls(gradients, False, bench.backend)
    errors = checked_errors(gradients, clips, clipped)
    cold = other_work is not None or not starts_inside_cache(gradients)

    def start(name: str) -> None:
        if clipped:
            gradients.restore()
        if cold:
            (other_work or bench.streams.evict)()
            return
        # By the same call with a threshold that clips nothing: its code, its objects and the
        # gradients are then near, where what ran before would count for more than the call itself.
        for _ in range(WARM_UPS):
            warm_ups[name]()

    max_norm = gradients.max_norm(clipped)
    contenders = {
        name: Contender(
            call, partial(start, name), partial(check_coefficient, name, max_norm, clipped)
        )
        for name, call in clips.items()
    }
    evict = bench.streams.evict if cold else _nothing
    loops = bench.streams.loops(gradients.n_bytes, clipped)
    contenders |= {name: Contender(loop, evict) for name, loop in loops.items()}
    samples = alternate(contenders, bench.effort)
    gradients.restore()
    return Row(
        **gradients.head(clipped),
        other_work=other_work is not None,
        n_elements=gradients.case.n_elements,
        cold=cold,
        norm=gradients.norm,
        stock_error=errors["stock"],
        list_error=errors["list"],
        clipper_error=errors["clipper"],
        milliseconds=samples,
        stock_over_list=median_ratio(samples["stock"], samples["list"]),
        stock_over_clipper=median_ratio(samples["stock"], samples["clipper"]),
        stock_over_reference=median_ratio(samples["stock"], samples["reference"]),
        **_speeds(gradients.n_bytes, clipped, samples, bench.streams),
    )


def _nothing() -> None:
    pass


def checked_errors(
    gradients: Gradients, clips: Mapping[str, Clip], clipped: bool
) -> dict[str, float]:
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


def _speeds(
    n_bytes: int, clipped: bool, samples: Mapping[str, Milliseconds], streams: Streams
) -> Speeds:
    kinds = ("read: ", "update: ") if clipped else ("read: ",)
    fastest = [_fastest(samples, kind) for kind in kinds]
    loops = summarized([sum(taken) for taken in zip(*fastest, strict=True)])
    share = n_bytes / streams.bytes_streamed(n_bytes)
    return Speeds(
        **rates(n_bytes, passes(clipped), samples["list"]),
        ceiling_ms=loops["median"] * share,
        fraction_of_ceiling=median_ratio(loops, samples["list"]) * share,
    )


def _fastest(samples: Mapping[str, Milliseconds], kind: str) -> Sequence[float]:
    named = [sample for name, sample in samples.items() if name.startswith(kind)]
    return min(named, key=lambda sample: sample["median"])["rounds"]
