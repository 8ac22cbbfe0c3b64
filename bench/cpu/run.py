"""Compare fastclip with stock PyTorch and with this machine's memory on gradients of real models.

    python bench cpu [--cases NAME ...] [--dtypes NAME ...] [--json FILE] [--png FILE] [--quick]

Each result is checked against float64 before it is timed; a wrong one ends the run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import fastclip
from bench.core.gradients import DTYPES, Gradients, WrongResultError
from bench.core.machine import HostLoad, describe
from bench.core.shapes import CASES
from bench.core.timing import QUICK_EFFORT, Effort
from bench.cpu import report, sections
from bench.cpu.chart import draw
from bench.cpu.measure import Bench, Row, measure, row_text, starts_inside_cache
from bench.cpu.other_work import OtherWork
from bench.cpu.streams import Streams

# As large as memory allows beside the largest case, its saved copy and its parameters; larger
# gradients are compared with the speed of this many bytes. No power of two: four streams, a quarter
# of it apart, would then meet in the same banks of the memory, and be slower by up to a third.
LARGEST_BUFFER = 1_000_000_000
EFFORT = Effort(min_repetitions=7, max_repetitions=300, seconds=2.0)
QUICK_CASES = ("resnet-50", "2000x4096", "10000x256", "1000x64")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--sections",
        nargs="*",
        choices=sections.SECTIONS,
        default=list(sections.SECTIONS),
        help="default: all; none when left empty",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report as JSON")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the ratios (matplotlib)")
    parser.add_argument("--quick", action="store_true", help="few repetitions, small cases")
    parser.add_argument("--threads", type=int, help="default: what torch chooses")
    parser.add_argument(
        "--backend", choices=fastclip.backend_report(), help="default: what fastclip chooses"
    )
    options = parser.parse_args(arguments)
    options.cases = options.cases or list(QUICK_CASES if options.quick else CASES)
    return options


def measure_rows(options: argparse.Namespace, bench: Bench) -> list[Row]:
    """Measure every case in every dtype, clipped and not, and say each result as it comes.

    Gradients that fit in the last cache are measured again with other work between the calls:
    larger ones start outside the cache anyway, and take so long that the host counts for little.
    """
    other_work = OtherWork(bench.streams.evict)

    # A function, so that the gradients of one case are gone before the next one's are made.
    def rows_of(name: str, dtype: str) -> Iterator[Row]:
        gradients = Gradients(CASES[name], dtype)
        for between in (None, other_work) if starts_inside_cache(gradients) else (None,):
            for clipped in (False, True):
                row = measure(bench, gradients, clipped, between)
                ms = {what: taken["median"] for what, taken in row["milliseconds"].items()}
                times = (f"{what} {ms[what]:.3f} ms" for what in ("stock", "list", "clipper"))
                print(f"{row_text(row)}: {', '.join(times)}", file=sys.stderr, flush=True)
                yield row

    return [
        row for name in options.cases for dtype in options.dtypes for row in rows_of(name, dtype)
    ]


def run(options: argparse.Namespace) -> report.Report:
    """Measure what the options ask for."""
    load = HostLoad()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    effort = QUICK_EFFORT if options.quick else EFFORT
    item_bytes = max(DTYPES[dtype].itemsize for dtype in options.dtypes)
    largest = item_bytes * max(CASES[name].n_elements for name in options.cases)
    streams = Streams(min(largest, LARGEST_BUFFER))
    not_measured = {"stream.c": streams.note} if streams.note else {}
    bench = Bench(effort, options.backend, streams)
    rows = measure_rows(options, bench)
    findings = sections.memory_speed(rows) + sections.reference(rows)
    for name in options.sections:
        try:
            scale = sections.QUICK if options.quick else sections.FULL
            findings.extend(sections.SECTIONS[name](bench, scale))
        except sections.NotMeasurableError as error:
            not_measured[name] = str(error)
    return report.Report(
        machine=describe(load),
        settings={
            "backend": str(options.backend or "chosen by fastclip"),
            "repetitions": effort.repetitions(),
            "seconds a case": f"{effort.seconds:g}",
        },
        rows=rows,
        targets=report.outcomes(rows),
        findings=findings,
        not_measured=not_measured,
    )


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark and return the exit status: 1 when a result is wrong."""
    options = parse(arguments)
    try:
        found = run(options)
    except WrongResultError as error:
        print(f"wrong result, nothing is reported: {error}", file=sys.stderr)
        return 1
    print(report.text(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.png is not None:
        draw(found, options.png)
    return 0
