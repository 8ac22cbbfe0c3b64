"""Launches and bytes of the CUDA kernels, counted by the emulator: the design's numbers."""

import pytest
from counted_work import (
    CASES,
    DOCUMENT,
    GRID,
    document,
    element_counts,
    other_traffic,
    scaled_counts,
    work_of,
)
from emulated_native import Emulated

MAX_IN_ARGUMENTS = 1630
"""kLongTable of csrc/gpu_work.h."""


@pytest.mark.parametrize("name", list(CASES))
def test_every_list_takes_the_work_that_the_design_says(emulated: Emulated, name: str) -> None:
    counts = scaled_counts(CASES[name])
    # A list beyond the kernel's arguments is written to memory first, as many rows at a time.
    tables = -(-len(counts) // MAX_IN_ARGUMENTS) if len(counts) > MAX_IN_ARGUMENTS else 0
    work = work_of(emulated, counts)
    assert {key: (w.launches - tables, w.read, w.written) for key, w in work.items()} == {
        "not clipped": (2, 1.0, 0.0),
        "clipped": (2, 2.0, 1.0),
        "clamped": (1, 1.0, 1.0),
    }


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].n_tensors <= 1630])
@pytest.mark.parametrize("multiprocessors", (1, 3))
def test_other_traffic_is_as_computed(emulated: Emulated, name: str, multiprocessors: int) -> None:
    counts = scaled_counts(CASES[name])
    work = work_of(emulated, counts, multiprocessors)["not clipped"]
    other = other_traffic(emulated, counts, 2 * multiprocessors)
    assert (work.other_read, work.other_written) == (other.read, other.written)


def test_other_traffic_is_below_two_percent_for_gpt2(emulated: Emulated) -> None:
    counts = element_counts(CASES["gpt2-124m"])
    other = other_traffic(emulated, counts, GRID)
    assert other.read + other.written < 0.02 * 4 * sum(counts)


def test_the_document_says_what_is_counted(emulated: Emulated) -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(emulated)
