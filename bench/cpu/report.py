"""A run as data, and as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from bench.core.machine import Machine
from bench.core.shapes import CASES
from bench.core.text import significant, table
from bench.cpu.measure import Row, row_name
from bench.cpu.sections import Finding
from bench.cpu.targets import FLOOR, TARGETS

# Two threads that wait for each other are slowed down by far more than what others take.
QUIET_SHARE = 0.03


class Outcome(TypedDict):
    """A target, what was measured, and what that is worth."""

    case: str
    dtype: str
    contender: str
    clipped: bool
    target: float
    measured: float
    part_of_target: float
    verdict: str


class Report(TypedDict):
    """Everything that a run found out."""

    machine: Machine
    settings: dict[str, str]
    rows: list[Row]
    targets: list[Outcome]
    findings: list[Finding]
    not_measured: dict[str, str]


def outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """Hold the rows against the targets, which are of calls that only repeat."""
    repeated = {
        (row["case"], row["dtype"], row["clipped"]): row for row in rows if not row["other_work"]
    }
    found: list[Outcome] = []
    for target in TARGETS:
        row = repeated.get((target.case, target.dtype, target.clipped))
        if row is None:
            continue
        over = {"list": row["stock_over_list"], "clipper": row["stock_over_clipper"]}
        part = over[target.contender] / target.ratio
        found.append(
            Outcome(
                case=target.case,
                dtype=target.dtype,
                contender=target.contender,
                clipped=target.clipped,
                target=target.ratio,
                measured=over[target.contender],
                part_of_target=part,
                verdict=_verdict(part),
            )
        )
    return found


def _verdict(part: float) -> str:
    if part >= 1.0:
        return "reached"
    return f"short by {1 - part:.0%}" if part >= FLOOR else f"below {FLOOR} of the target"


def text(report: Report) -> str:
    """Return the whole report as plain text."""
    parts = [
        _machine_text(report),
        _rows_text(report["rows"]),
        _outcomes_text(report["targets"]),
        _findings_text(report["findings"]),
        "\n".join(f"not measured: {what}: {why}" for what, why in report["not_measured"].items()),
    ]
    return "\n\n".join(part for part in parts if part)


def _machine_text(report: Report) -> str:
    machine = report["machine"]
    built = f"native, {machine['instruction_set']}" if machine["native"] else "no native extension"
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads,"
        f" {machine['memory_gb']:.0f} GB; Python {machine['python']}, torch {machine['torch']}\n"
        f"fastclip {machine['fastclip']} ({built}), commit {machine['commit'] or 'unknown'},"
        f" {machine['date']}\nsettings: {settings}\n{load_text(machine['others_share'])}"
    )


def load_text(share: float | None) -> str:
    """Say what others took of the processors, and whether that is too much."""
    if share is None:
        return "other processes: unknown"
    text = f"other processes and CPU steal took {share:.1%} of the processors' time"
    return text if share <= QUIET_SHARE else f"NOT A QUIET MACHINE, do not quote: {text}"


def _cells(row: Row) -> dict[str, str]:
    """Return the cells of one row by the heads of their columns."""
    ms = {name: sample["median"] for name, sample in row["milliseconds"].items()}
    return {
        "case": row_name(row),
        "dtype": row["dtype"],
        "clipped": _yes_or_no(row["clipped"]),
        "tensors": str(row["n_tensors"]),
        "MB": f"{row['gradient_bytes'] / 1e6:.1f}",
        **{f"{name} ms": significant(ms[name]) for name in ("stock", "list", "clipper")},
        "stock/list": significant(row["stock_over_list"]),
        "stock/clipper": significant(row["stock_over_clipper"]),
        "stock/reference": significant(row["stock_over_reference"]),
        "MB read": f"{row['bytes_read'] / 1e6:.1f}",
        "MB written": f"{row['bytes_written'] / 1e6:.1f}",
        "GB/s": significant(row["gb_per_s"]),
        "of ceiling": f"{row['fraction_of_ceiling']:.2f}",
        "stock off by": f"{row['stock_error']:.1e}",
        "fastclip off by": f"{max(row['list_error'], row['clipper_error']):.1e}",
    }


LEGEND = """\
list: fastclip.clip_grad_norm_(parameters, max_norm); clipper: GradClipper.clip_(); reference: the
list call with backend='reference'.
MB read, MB written: one read for the norm; one read and one write for the scale. GB/s and 'of
ceiling' are the list call's.
stock/list, stock/clipper: medians of the ratio within a round, in which all take turns.
Ceiling: the fastest of three streaming reads of as many bytes, and of two in-place updates when the
case is clipped.
Gradients larger than a quarter of the last cache start outside it; smaller ones start inside, each
call after five untimed ones that clip nothing.
Other work between: before each call, and outside its time, another model trains one step and twice
the last cache is read, which leaves little of the call's in any cache.
Off by: the norm, relative to float64; it is checked before anything is timed."""


def _rows_text(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    notes = [f"  {name}: {CASES[name].note}" for name in dict.fromkeys(row["case"] for row in rows)]
    return "\n".join([_aligned([_cells(row) for row in rows]), LEGEND, *notes])


def _outcomes_text(found: Sequence[Outcome]) -> str:
    return _aligned(
        [
            {
                "target of": outcome["case"],
                "dtype": outcome["dtype"],
                "call": outcome["contender"],
                "clipped": _yes_or_no(outcome["clipped"]),
                "target": f"{outcome['target']:.1f}",
                "measured": significant(outcome["measured"]),
                "of target": f"{outcome['part_of_target']:.2f}",
                "verdict": outcome["verdict"],
            }
            for outcome in found
        ]
    )


def _findings_text(findings: Sequence[Finding]) -> str:
    return _aligned(
        [
            {
                "promise": found["section"],
                "of": found["what"],
                "measured": f"{found['value']:.2f} {found['unit']}",
                "bound": f"{'at most' if found['at_most'] else 'at least'} {found['bound']:g}",
                "verdict": "reached" if found["reached"] else "MISSED",
                "detail": found["detail"],
            }
            for found in findings
        ]
    )


def _aligned(lines: Sequence[dict[str, str]]) -> str:
    if not lines:
        return ""
    return table(list(lines[0]), [list(line.values()) for line in lines], is_aligned=True)


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
