"""Compare fastclip with stock PyTorch, apex and TransformerEngine on a GPU, and write a report.

    python bench gpu [--device cuda|cpu] [--cases NAME ...] [--dtypes NAME ...] [--quick]
                     [--out FOLDER] [--junit FILE] [--sanitizer FILE]

Each result is checked against float64 before it is timed; an entrant that gives a wrong one or
raises is left out of that row. The report starts with FAILED, and the exit status is 1, if fastclip
did not run on the GPU, a check failed, or one of its forms was left out. Until the report is
written, FOLDER/partial.jsonl holds the rows so far. On the CPU the program goes the same ways, and
its report says that it is of no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import product
from pathlib import Path

import torch

import fastclip
from bench.core.gradients import DTYPES, Gradients, WrongResultError
from bench.core.machine import HostLoad, describe
from bench.core.shapes import CASES
from bench.core.text import row_title
from bench.core.timing import QUICK_EFFORT, Effort
from bench.gpu import entrants
from bench.gpu.calls import Bench, reason_of
from bench.gpu.chart import draw
from bench.gpu.checks import check_sanitizer, check_tests, missing_backends
from bench.gpu.devices import Device, open_device, why_no_gpu
from bench.gpu.fused_or_split import CAVEAT, choose
from bench.gpu.report import GpuReport, failure_lines, markdown
from bench.gpu.rows import GpuRow, HostTime, copy_speed, measure_host, measure_row

EFFORT = Effort(min_repetitions=7, max_repetitions=100, seconds=1.0)
PARTIAL = "partial.jsonl"
"""The rows so far, one a line: all that is left of a run that does not come to its report."""

QUICK_CASES = ("resnet-50", "2000x4096", "1000x64")

COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 24}
"""What the copy moves: many times the L2 of any GPU."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--quick", action="store_true", help="few repetitions, small cases")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), metavar="FOLDER")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="pytest's report of the tests")
    parser.add_argument(
        "--sanitizer", type=Path, metavar="FILE", help="what `bench sanitize` wrote"
    )
    options = parser.parse_args(arguments)
    # Named twice is measured once.
    options.cases = list(dict.fromkeys(options.cases or (QUICK_CASES if options.quick else CASES)))
    options.dtypes = list(dict.fromkeys(options.dtypes))
    return options


@dataclass
class Found:
    """What was measured, and what was not.

    Attributes:
        skipped: cases in one dtype for which there was too little memory.
        failures: why the run ended early, if it did.
    """

    rows: list[GpuRow] = field(default_factory=list)
    host_times: list[HostTime] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def measure(options: argparse.Namespace, bench: Bench) -> Found:
    """Measure every case in every dtype, clipped and not, and the host; keep each row as it comes.

    Too little memory costs a case alone. Where stock's call or the device fails, the run ends, and
    what was found until then is kept.
    """
    found = Found()

    # A function, so that the gradients of one case are gone before the next one's are made.
    def measure_case(name: str, dtype: str) -> None:
        gradients = Gradients(CASES[name], dtype, bench.device.type)
        for clipped in (False, True):
            row = measure_row(bench, gradients, clipped)
            found.rows.append(row)
            times = (f"{n} {e['device']['median'] * 1e3:.1f} us" for n, e in row["entries"].items())
            print(f"{row_title(row)}: {', '.join(times)}", file=sys.stderr, flush=True)
            with (options.out / PARTIAL).open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(row)}\n")

    where = ""
    try:
        for name, dtype in product(options.cases, options.dtypes):
            where = f"{name} {dtype}"
            try:
                measure_case(name, dtype)
            except torch.OutOfMemoryError as error:
                found.skipped[where] = reason_of(error)
            if where in found.skipped:
                # Not before the error, which holds on to the gradients, is gone.
                bench.device.free_memory()
        where = "the host's times"
        found.host_times += measure_host(bench)
    except (RuntimeError, WrongResultError) as error:
        found.failures.append(f"the run ended at {where}: {reason_of(error)}")
    return found


def versions(facts: dict[str, str]) -> dict[str, str]:
    """Return the versions of everything that a time may depend on."""
    info = fastclip.build_info()
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "not installed"
    hip = {} if torch.version.hip is None else {"HIP (torch's)": torch.version.hip}
    return {
        "driver": facts.get("driver", "none"),
        **hip,
        "CUDA (torch's)": str(torch.version.cuda),
        "CUDA (fastclip's)": " ".join([str(info["cuda"]), *info["cuda_architectures"]]),
        "torch": torch.__version__,
        "triton": triton,
        "fastclip": fastclip.__version__,
    }


def run(options: argparse.Namespace, device: Device) -> GpuReport:
    """Measure what the options ask for."""
    load, facts, before = HostLoad(), device.facts(), device.state()
    chosen = entrants.find(device.type)
    absent = {backend: chosen.absent.get(f"fastclip {backend}") for backend in entrants.BACKENDS}
    checks = {
        "tests marked gpu": check_tests(options.junit),
        "compute-sanitizer": check_sanitizer(options.sanitizer, absent),
    }
    effort = QUICK_EFFORT if options.quick else EFFORT
    speed = copy_speed(device, COPIED_BYTES[device.type], effort)
    found = measure(options, Bench(device, chosen.present, effort, speed))
    for when, state in (("before", before), ("right after", device.state())):
        facts |= {f"{what}, {when}": value for what, value in state.items()}
    failures = missing_backends(absent, device.is_gpu, torch.version.cuda is not None)
    timed = {name for row in found.rows for name in row["entries"]}
    if not any(entrant.is_ours and entrant.name in timed for entrant in chosen.present):
        failures.append("no form of fastclip was timed")
    failures += found.failures
    failures += [reason for part in (*found.rows, *found.host_times) for reason in part["failures"]]
    failures += [failure for check in checks.values() for failure in check.failures]
    return GpuReport(
        failures=failures,
        is_gpu=device.is_gpu,
        cuda=torch.version.cuda,
        device_name=device.name,
        host_times=found.host_times,
        machine=describe(load),
        facts=facts,
        versions=versions(facts),
        checks={what: check.summary for what, check in checks.items()},
        settings={
            "repetitions": effort.repetitions(),
            "seconds for each of three kinds of time": f"{effort.seconds:g}",
        },
        copy_gb_per_s=speed / 1e9,
        absent=chosen.absent,
        skipped=found.skipped,
        choices=[
            choose(found.rows, backend, device.is_gpu, reason) for backend, reason in absent.items()
        ],
        rows=found.rows,
    )


def why_not_ready(options: argparse.Namespace) -> str | None:
    """Say what would fail after hours of measuring; None if nothing, with old files out of the way.

    Matplotlib draws report.png, and the folder is written to from the first row on.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        return f"nothing was measured: matplotlib is needed to draw report.png: {error}"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", "report.md", "report.png"):
            (options.out / name).unlink(missing_ok=True)
        (options.out / PARTIAL).write_text("", encoding="utf-8")
    except OSError as error:
        return f"nothing was measured: --out must be a folder to write to: {error}"
    return None


def main(arguments: Sequence[str]) -> int:
    """Run and write report.md, report.png and report.json; 1 without a GPU or if the run failed."""
    options = parse(arguments)
    reason = (why_no_gpu() if options.device == "cuda" else None) or why_not_ready(options)
    if reason is not None:
        print(f"bench gpu: {reason}", file=sys.stderr)
        return 1
    report = run(options, open_device(options.device))
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "report.md").write_text(markdown(report), encoding="utf-8")
    draw(report, options.out / "report.png")
    (options.out / PARTIAL).unlink(missing_ok=True)
    print("\n".join(f"{choice['backend']}: {choice['summary']}" for choice in report["choices"]))
    print(f"{CAVEAT}\nwrote {options.out}/report.md, report.png and report.json")
    for line in failure_lines(report):
        print(line, file=sys.stderr)
    return int(bool(report["failures"]))
