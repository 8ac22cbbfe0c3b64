"""A run of `bench gpu` as data and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from bench.core.machine import Machine
from bench.core.shapes import CASES
from bench.core.text import clipped_text, row_title, significant, table
from bench.gpu.entrants import STOCK
from bench.gpu.fused_or_split import CAVEAT, Choice
from bench.gpu.predictions import predictions, predictions_note
from bench.gpu.rows import Entry, GpuRow, HostTime

NOT_A_GPU = "NOT a GPU measurement"
NO_TIME = "-"


class GpuReport(TypedDict):
    """Everything that a run found out; without failures it is a run to quote.

    ``cuda`` is the version that torch is built with, None for ROCm.
    """

    failures: list[str]
    is_gpu: bool
    cuda: str | None
    device_name: str
    machine: Machine
    facts: dict[str, str]
    versions: dict[str, str]
    checks: dict[str, str]
    settings: dict[str, str]
    copy_gb_per_s: float
    absent: dict[str, str]
    skipped: dict[str, str]
    choices: list[Choice]
    rows: list[GpuRow]
    host_times: list[HostTime]


def title(report: GpuReport) -> str:
    """Return the report's first line."""
    if report["is_gpu"]:
        return f"fastclip on {report['device_name']}"
    return f"{NOT_A_GPU}: `bench gpu` tried on a CPU"


def provenance(report: GpuReport) -> str:
    """Return in one line what was measured with what, when, and from which sources."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    machine = report["machine"]
    return f"{versions}, {machine['date']}, commit {machine['commit'] or 'unknown'}"


def failure_lines(report: GpuReport) -> list[str]:
    """Return a line for each reason why the run failed."""
    return [f"FAILED: {reason}" for reason in report["failures"]]


def markdown(report: GpuReport) -> str:
    """Return the whole report."""
    rows = report["rows"]
    device = (report["device_name"], report["copy_gb_per_s"], report["cuda"])
    header = ["case", "dtype", "", "entrant", "measured us", "predicted us", "ratio"]
    parts = [
        *failure_lines(report),
        f"# {title(report)}",
        f"{report['device_name']}; {provenance(report)}.",
        _facts(report),
        "## Fused or split",
        *(f"- **{choice['backend']}**: {choice['summary']}." for choice in report["choices"]),
        f"{CAVEAT}.",
        "## What was checked before",
        *(f"- {what}: {result}" for what, result in report["checks"].items()),
        RESULTS,
        "## What is not here",
        *(_absent(report) or ["All entrants could run."]),
        "## Stock's time over each entrant's",
        _ratios(report),
        "## Measured beside predicted",
        predictions_note(*device),
        _table(report, header, predictions(rows, *device)),
        "## The host's time for lists of tiny tensors",
        _host_times(report),
        "## All times",
        *(part for case in _unique(row["case"] for row in rows) for part in _case(report, case)),
        "## How it was measured",
        HOW,
    ]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


RESULTS = """\
- results: every call and replay of fastclip's below was held to float64, within the roundings of
  float32, before it was timed; apex's and TransformerEngine's had to come near it; the tables say
  how far off each norm is"""

HOW = """\
- device: between two events around one call. Before it the gradients are restored where the call
  clips, a buffer larger than L2 is written and then read, which leaves nothing to write back, and
  the GPU is kept busy until the host has surely launched the whole call, so that it waits for
  nothing except what the call itself makes it wait for. Where the host was late all the same, a
  line under the case's table says in how many rounds.
- replay: the same for a CUDA graph of the call, after all other times of its row. A capture that
  fails is the run's last. host: the processor's clock around the call on an idle device; nothing
  synchronises.
- All take turns, in another order each round, and the first round is not counted. Numbers are
  medians; ratios are medians of the ratio within a round.
- GB/s: counted bytes over the device's time. The norm reads every gradient byte once; a scale reads
  it once more and writes it; "written" shows what scales when nothing is clipped.
- of copy: those GB/s over what a large copy on this device reads and writes in a second.
- off by: the error of the norm, relative to float64.
- apex has kernels for float32 and float16 alone: its clip of bfloat16 gradients is torch's
  operations, tensor by tensor (apex/contrib/clip_grad/clip_grad.py)."""


def _facts(report: GpuReport) -> str:
    machine, share = report["machine"], report["machine"]["others_share"]
    # Without a verdict on a busy host: the GPU's times do not depend on it.
    load = "unknown" if share is None else f"{share:.1%} of the processors' time"
    facts = {
        **report["facts"],
        "copy on the device, read + written": f"{report['copy_gb_per_s']:.0f} GB/s",
        **report["versions"],
        **report["settings"],
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "others on it (of the host: for host times alone)": load,
        "date": machine["date"],
        "commit": machine["commit"] or "unknown",
    }
    return _table(report, ["what", "value"], list(map(list, facts.items())))


def _absent(report: GpuReport) -> list[str]:
    return [
        *(f"- {name}: {reason}" for name, reason in report["absent"].items()),
        *(
            f"- {name} at {row_title(row)}: {reason}"
            for row in report["rows"]
            for name, reason in row["not_timed"].items()
        ),
        *(f"- everything at {where}: {reason}" for where, reason in report["skipped"].items()),
    ]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _ratios(report: GpuReport) -> str:
    names = _unique(name for row in report["rows"] for name in row["entries"])
    lines = [
        [row["case"], row["dtype"], clipped_text(row["clipped"])]
        + [
            f"{row['entries'][name]['stock_over']:.2f}" if name in row["entries"] else NO_TIME
            for name in names
            if name != STOCK
        ]
        for row in report["rows"]
    ]
    header = ["case", "dtype", "", *(name for name in names if name != STOCK)]
    return _table(report, header, lines)


def _host_times(report: GpuReport) -> str:
    times = [(found["n_tensors"], found["microseconds"]) for found in report["host_times"]]
    names = _unique(name for _, microseconds in times for name in microseconds)
    lines = [
        [str(n), *(significant(us[name]) if name in us else NO_TIME for name in names)]
        for n, us in times
    ]
    return _table(report, ["tensors of 64", *(f"{name}, us" for name in names)], lines)


def _case(report: GpuReport, case: str) -> list[str]:
    rows = [row for row in report["rows"] if row["case"] == case]
    entries = [(row, name, entry) for row in rows for name, entry in row["entries"].items()]
    lines = [
        {"dtype": row["dtype"], "": clipped_text(row["clipped"]), "entrant": name, **_cells(entry)}
        for row, name, entry in entries
    ]
    reasons = _unique(
        f"- {name} is not replayed: {entry['not_replayed']}"
        for _, name, entry in entries
        if entry["not_replayed"] is not None
    )
    late = [
        f"- {name} {row['dtype']}, {clipped_text(row['clipped'])}: {text}"
        for row, name, entry in entries
        for text in _not_ahead(entry)
    ]
    head = f"{CASES[case].note}: {rows[0]['n_tensors']:,} tensors."
    times = _table(report, list(lines[0]), [list(line.values()) for line in lines])
    return [f"### {case}", head, times, *reasons, *late]


def _not_ahead(entry: Entry) -> list[str]:
    times = [("device", entry["device"], entry["rounds_not_ahead"])]
    if entry["replay"] is not None:
        times.append(("replay", entry["replay"], entry["replay_rounds_not_ahead"]))
    return [
        f"host not ahead in {late} of {len(time['rounds'])} rounds:"
        f" the {kind} times include the host's"
        for kind, time, late in times
        if late
    ]


def _cells(entry: Entry) -> dict[str, str]:
    replay = entry["replay"]
    return {
        "device us": significant(entry["device"]["median"] * 1e3),
        "read": f"{entry['bytes_read'] / 1e6:.1f} MB",
        "written": f"{entry['bytes_written'] / 1e6:.1f} MB",
        "GB/s": significant(entry["gb_per_s"]),
        "of copy": f"{entry['fraction_of_copy']:.0%}",
        "replay us": NO_TIME if replay is None else significant(replay["median"] * 1e3),
        "host us": significant(entry["host"]["median"] * 1e3),
        "stock / it": f"{entry['stock_over']:.2f}",
        "off by": f"{entry['error']:.1e}",
    }


def _table(report: GpuReport, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table that says of itself, wherever it is copied to, if it is of no GPU."""
    first = header[0] if report["is_gpu"] else f"{header[0]} ({NOT_A_GPU})"
    return table([first, *header[1:]], lines)
