"""The words, numbers and tables of every report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


def clipped_text(clipped: bool) -> str:
    """Say whether a call clips."""
    return "clipped" if clipped else "not clipped"


class Head(TypedDict):
    """What a row of a report is about: a case in one dtype, clipped or not."""

    case: str
    dtype: str
    clipped: bool
    n_tensors: int
    gradient_bytes: int


def row_title(row: Head) -> str:
    """Name a row of a report."""
    return f"{row['case']} {row['dtype']}, {clipped_text(row['clipped'])}"


def significant(value: float) -> str:
    """Write three significant digits, or all of a larger number's whole ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, is_aligned: bool = False
) -> str:
    """Return a Markdown table, for a terminal with columns aligned; nothing without lines."""
    if not lines:
        return ""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines]
    rows = [[*header], ["---"] * len(header), *cells]
    if is_aligned:
        columns = list(zip(header, *cells, strict=True))
        widths = [max(map(len, column)) for column in columns]
        numeric = [all(map(_is_number, column[1:])) for column in columns]
        rows[1] = ["-" * width for width in widths]
        rows = [
            [
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, numeric, strict=True)
            ]
            for row in rows
        ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").replace("e-", "").isdigit()
