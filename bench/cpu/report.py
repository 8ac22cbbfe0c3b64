"""A run as data, and as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from bench.core.machine import Machine
from bench.core.shapes import CASES
from bench.cpu.measure import Row, ratios, row_name
from bench.cpu.sections import Finding
from bench.cpu.targets import FLOOR, LARGE_BYTES, MEMORY_FRACTION, TARGETS

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
    """Hold the rows against the targets that are set for them."""
    measured = ratios(rows)
    found: list[Outcome] = []
    for target in TARGETS:
        key = (target.case, target.dtype, target.clipped, target.contender)
        if key not in measured:
            continue
        part = measured[key] / target.ratio
        found.append(
            Outcome(
                case=target.case,
                dtype=target.dtype,
                contender=target.contender,
                clipped=target.clipped,
                target=target.ratio,
                measured=measured[key],
                part_of_target=part,
                verdict=_verdict(part),
            )
        )
    return found


def _verdict(part: float) -> str:
    if part >= 1.0:
        return "reached"
    if part >= FLOOR:
        return f"short by {1 - part:.0%}"
    return f"below {FLOOR} of the target"


def text(report: Report) -> str:
    """Return the whole report as plain text."""
    parts = [
        _machine_text(report),
        _rows_text(report["rows"]),
        _outcomes_text(report["targets"]),
        _findings_text(report["findings"]),
        _memory_verdict(report["rows"]),
        "\n".join(f"not measured: {what}: {why}" for what, why in report["not_measured"].items()),
    ]
    return "\n\n".join(part for part in parts if part)


def _machine_text(report: Report) -> str:
    machine = report["machine"]
    built = f"native, {machine['instruction_set']}" if machine["native"] else "no native extension"
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads,"
            f" {machine['memory_gb']:.0f} GB; Python {machine['python']}, torch {machine['torch']}",
            f"fastclip {machine['fastclip']} ({built}), commit {machine['commit'] or 'unknown'},"
            f" {machine['date']}",
            f"settings: {settings}",
            company_text(machine["others_share"]),
        ]
    )


def company_text(share: float | None) -> str:
    """Say what others took of the processors, and whether that is too much."""
    if share is None:
        return "other processes: unknown"
    told = f"other processes and other machines took {share:.1%} of the processors' time"
    return told if share <= QUIET_SHARE else f"NOT A QUIET MACHINE, do not quote: {told}"


def row_line(row: Row) -> list[str]:
    """Return the cells of one row."""
    ms = {name: sample["median"] for name, sample in row["milliseconds"].items()}
    return [
        row_name(row),
        row["dtype"],
        "yes" if row["clipped"] else "no",
        str(row["n_tensors"]),
        f"{row['gradient_bytes'] / 1e6:.1f}",
        _significant(ms["stock"]),
        _significant(ms["list"]),
        _significant(ms["clipper"]),
        _significant(row["stock_over_list"]),
        _significant(row["stock_over_clipper"]),
        _significant(row["stock_over_reference"]),
        f"{row['bytes_read'] / 1e6:.1f}",
        f"{row['bytes_written'] / 1e6:.1f}",
        _significant(row["gb_per_s"]),
        f"{row['fraction_of_ceiling']:.2f}",
        f"{row['stock_error']:.1e}",
        f"{max(row['list_error'], row['clipper_error']):.1e}",
    ]


ROW_HEADER = [
    *("case", "dtype", "clipped", "tensors", "MB", "stock ms", "list ms", "clipper ms"),
    *(
        "stock/list",
        "stock/clipper",
        "stock/reference",
        "MB read",
        "MB written",
        "GB/s",
        "of ceiling",
    ),
    *("stock off by", "fastclip off by"),
]


def _rows_text(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    notes = [f"  {name}: {CASES[name].note}" for name in dict.fromkeys(row["case"] for row in rows)]
    legend = [
        "list: fastclip.clip_grad_norm_(parameters, max_norm); clipper: GradClipper.clip_();"
        " reference: the list call with backend='reference'.",
        "MB read, MB written: one read for the norm; one read and one write for the scale."
        " GB/s and 'of ceiling' are the list call's.",
        "stock/list, stock/clipper: medians of the ratio within a round, in which all take turns.",
        "Ceiling: the fastest of three streaming reads of as many bytes, and of two in-place"
        " updates when the case is clipped.",
        "Gradients larger than a quarter of the last cache start outside it; smaller ones start"
        " inside, each call following five untimed ones of its own that clip nothing.",
        "Other work between: before each call, and outside its time, another model trains one step"
        " and twice the last cache is read, which leaves little of the call's in any cache.",
        "Off by: the norm, relative to float64; it is checked before anything is timed.",
    ]
    return "\n".join([table(ROW_HEADER, [row_line(row) for row in rows]), *legend, *notes])


def _outcomes_text(found: Sequence[Outcome]) -> str:
    if not found:
        return ""
    header = ["target", "dtype", "call", "clipped", "target", "measured", "of target", "verdict"]
    lines = [
        [
            outcome["case"],
            outcome["dtype"],
            outcome["contender"],
            "yes" if outcome["clipped"] else "no",
            f"{outcome['target']:.1f}",
            _significant(outcome["measured"]),
            f"{outcome['part_of_target']:.2f}",
            outcome["verdict"],
        ]
        for outcome in found
    ]
    return table(header, lines)


def _findings_text(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    header = ["promise", "of", "measured", "bound", "verdict", "detail"]
    lines = [
        [
            found["section"],
            found["what"],
            f"{found['value']:.2f} {found['unit']}",
            f"{'at most' if found['at_most'] else 'at least'} {found['bound']:g}",
            "reached" if found["reached"] else "MISSED",
            found["detail"],
        ]
        for found in findings
    ]
    return table(header, lines)


def _memory_verdict(rows: Sequence[Row]) -> str:
    """Say in one line what the largest gradients reach of the speed of memory, at the least."""
    large = [row for row in rows if row["gradient_bytes"] >= LARGE_BYTES]
    parts: list[str] = []
    for clipped, what in ((False, "norm"), (True, "clipped")):
        fractions = [row["fraction_of_ceiling"] for row in large if row["clipped"] is clipped]
        if fractions:
            loops = "read + update" if clipped else "the fastest streaming reader"
            verdict = "reached" if min(fractions) >= MEMORY_FRACTION else "MISSED"
            parts.append(f"{what} at {min(fractions):.2f} of {loops} ({verdict})")
    if not parts:
        return ""
    bound = f"gradients of {LARGE_BYTES / 1e6:.0f} MB and more, at least {MEMORY_FRACTION}"
    return f"{bound}: {', '.join(parts)}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Align cells in columns: words to the left, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *lines, strict=True)]
    numeric = [all(map(_is_number, column)) for column in zip(*lines, strict=True)]

    def aligned(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([aligned(header), rule, *(aligned(line) for line in lines)])


def _is_number(cell: str) -> bool:
    return cell.replace(".", "").replace("e-", "").isdigit()


def _significant(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"
