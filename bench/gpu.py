"""Compare fastclip with stock PyTorch, apex and TransformerEngine on a GPU, and write a report.

    python bench/gpu.py [--device cuda|cpu] [--cases NAME ...] [--dtypes NAME ...] [--quick]
                        [--out FOLDER] [--junit FILE] [--sanitizer FILE]

Each result is checked against float64 before it is timed; a wrong one ends the run, and nothing is
reported. A run that shows nothing of fastclip on the GPU, or in which a check failed, says so at
the beginning of the report and ends with status 1. On the CPU the program goes the same ways, and
its report says that it is of no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import entrants
import torch
from devices import Device, open_device, why_no_gpu
from fused_or_split import choose
from gpu_chart import draw
from gpu_checks import check_sanitizer, check_tests, missing_backends, nothing_timed
from gpu_report import GpuReport, failure_lines, markdown
from gpu_rows import Bench, GpuRow, copy_speed, measure_host, measure_row
from gradients import DTYPES, Gradients, WrongResultError
from machine import Company, describe
from shapes import CASES
from timing import QUICK_EFFORT, Effort

import fastclip

EFFORT = Effort(min_repetitions=7, max_repetitions=100, seconds=1.0)
QUICK_CASES = ("resnet-50", "2000x4096", "1000x64")

COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 24}
"""What the copy moves: many times the L2 of any GPU."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
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
        "--sanitizer", type=Path, metavar="FILE", help="what bench/sanitize.py wrote"
    )
    options = parser.parse_args(arguments)
    if options.cases is None:
        options.cases = list(QUICK_CASES if options.quick else CASES)
    return options


def measure_rows(options: argparse.Namespace, bench: Bench) -> list[GpuRow]:
    """Measure every case in every dtype, clipped and not, and say each as it comes."""

    # A function of its own, so that one case's gradients are gone before the next one's are made.
    def both(name: str, dtype: str) -> Iterator[GpuRow]:
        gradients = Gradients(CASES[name], dtype, bench.device.type)
        for clipped in (False, True):
            row = measure_row(bench, gradients, clipped)
            _progress(row)
            yield row

    return [row for name in options.cases for dtype in options.dtypes for row in both(name, dtype)]


def _progress(row: GpuRow) -> None:
    times = (f"{name} {e['device']['median'] * 1e3:.1f} us" for name, e in row["entries"].items())
    clipped = "clipped" if row["clipped"] else "not clipped"
    told = f"{row['case']} {row['dtype']} {clipped}: {', '.join(times)}"
    print(told, file=sys.stderr, flush=True)


def versions(facts: dict[str, str]) -> dict[str, str]:
    """Return the versions of everything that a time may depend on."""
    info = fastclip.build_info()
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "not installed"
    return {
        "driver": facts.get("driver", "none"),
        "CUDA (torch's)": str(torch.version.cuda),
        "CUDA (fastclip's)": " ".join([str(info["cuda"]), *info["cuda_architectures"]]),
        "torch": torch.__version__,
        "triton": triton,
        "fastclip": fastclip.__version__,
    }


def run(options: argparse.Namespace, device: Device) -> GpuReport:
    """Measure what the options ask for."""
    company, facts = Company(), device.facts()
    field = entrants.find(device.type)
    absent = {backend: field.absent.get(f"fastclip {backend}") for backend in entrants.BACKENDS}
    checks = {
        "tests marked gpu": check_tests(options.junit),
        "compute-sanitizer": check_sanitizer(options.sanitizer, absent),
    }
    effort = QUICK_EFFORT if options.quick else EFFORT
    speed = copy_speed(device, COPIED_BYTES[device.type], effort)
    bench = Bench(device, field.entrants, effort, speed)
    rows = measure_rows(options, bench)
    ours = {entrant.name for entrant in field.entrants if entrant.is_ours}
    failures = missing_backends(absent, device.is_gpu, torch.version.cuda is not None)
    failures += nothing_timed([name for row in rows for name in row["entries"] if name in ours])
    failures += [failure for check in checks.values() for failure in check.failures]
    return GpuReport(
        failures=failures,
        is_gpu=device.is_gpu,
        device_name=device.name,
        host_times=measure_host(bench),
        machine=describe(company),
        facts=facts,
        versions=versions(facts),
        checks={what: check.told for what, check in checks.items()},
        settings={
            "repetitions": f"{effort.min_repetitions} to {effort.max_repetitions}",
            "seconds for each of three kinds of time": f"{effort.seconds:g}",
        },
        copy_gb_per_s=speed / 1e9,
        absent=field.absent,
        choices=[
            choose(
                rows,
                backend,
                device.is_gpu,
                reason or field.absent.get(entrants.form_name(backend, "fused")),
            )
            for backend, reason in absent.items()
        ],
        rows=rows,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and write report.md, report.png and report.json; 1 without a GPU or if the run failed."""
    options = parse(arguments)
    reason = why_no_gpu() if options.device == "cuda" else None
    if reason is not None:
        print(f"bench/gpu.py: {reason}", file=sys.stderr)
        return 1
    try:
        report = run(options, open_device(options.device))
    except WrongResultError as error:
        print(f"wrong result, nothing is reported: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "report.md").write_text(markdown(report), encoding="utf-8")
    draw(report, options.out / "report.png")
    print("\n".join(f"{choice['backend']}: {choice['told']}" for choice in report["choices"]))
    print(f"wrote {options.out}/report.md, report.png and report.json")
    for line in failure_lines(report):
        print(line, file=sys.stderr)
    return int(bool(report["failures"]))


if __name__ == "__main__":
    sys.exit(main())
