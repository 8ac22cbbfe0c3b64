"""Compare fastclip with stock PyTorch, apex and TransformerEngine on a GPU, and write a report.

    python bench/gpu.py [--device cuda|cpu] [--cases NAME ...] [--dtypes NAME ...] [--quick]
                        [--out FOLDER] [--junit FILE] [--sanitizer FILE]

Each result is checked against float64 before it is timed; a wrong one ends the run, and nothing is
reported. On the CPU the program goes the same ways, and its report says that it is of no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import entrants
import torch
from devices import Device, open_device, why_no_gpu
from fused_or_split import choose
from gpu_chart import draw
from gpu_report import GpuReport, markdown
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
    parser.add_argument("--sanitizer", type=Path, metavar="FILE", help="one line about its run")
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


def tests_told(file: Path | None) -> str:
    """Say of pytest's report how many tests passed, failed and were skipped, and why."""
    if file is None:
        return "not run by this command"
    cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    failed = sum(
        case.find("failure") is not None or case.find("error") is not None for case in cases
    )
    skips = [skip for case in cases if (skip := case.find("skipped")) is not None]
    told = f"{len(cases) - failed - len(skips)} passed, {failed} failed, {len(skips)} SKIPPED"
    reasons = dict.fromkeys(str(skip.get("message")) for skip in skips)
    return f"{told} ({'; '.join(reasons)})" if reasons else told


def sanitizer_told(file: Path | None, native_absent: str | None) -> str:
    """Return the line that the sanitizer's run left, unless every test in it was skipped."""
    if file is None:
        return "not run by this command"
    if native_absent is not None:
        return f"SKIPPED, as the native backend cannot run here: {native_absent}"
    return file.read_text(encoding="utf-8").strip()


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
    effort = QUICK_EFFORT if options.quick else EFFORT
    speed = copy_speed(device, COPIED_BYTES[device.type], effort)
    bench = Bench(device, field.entrants, effort, speed)
    rows = measure_rows(options, bench)
    absent = {
        backend: field.absent.get(f"fastclip {backend}")
        or field.absent.get(entrants.form_name(backend, "fused"))
        for backend in entrants.BACKENDS
    }
    return GpuReport(
        is_gpu=device.is_gpu,
        device_name=device.name,
        host_times=measure_host(bench),
        machine=describe(company),
        facts=facts,
        versions=versions(facts),
        checks={
            "tests marked gpu": tests_told(options.junit),
            "compute-sanitizer": sanitizer_told(
                options.sanitizer, field.absent.get("fastclip native")
            ),
        },
        settings={
            "repetitions": f"{effort.min_repetitions} to {effort.max_repetitions}",
            "seconds for each of three kinds of time": f"{effort.seconds:g}",
        },
        copy_gb_per_s=speed / 1e9,
        absent=field.absent,
        choices=[choose(rows, name, device.is_gpu, told) for name, told in absent.items()],
        rows=rows,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and write report.md, report.png and report.json; 1 without a GPU or a right result."""
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
