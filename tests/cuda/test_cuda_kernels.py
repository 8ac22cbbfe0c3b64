"""The CUDA kernels and their launchers, run on the CPU: tests/cuda_kernels, through tests/emulator.

The program holds the checks. Here it is built three times, and each case is run under all four
schedules with as many seeds as it needs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from build_program import BUILDS, Build, build_program
from source_tree import ROOT
from toolkit import why_no_emulator

REASON = why_no_emulator()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

CASES = Path(__file__).resolve().parents[1] / "cuda_kernels"
CSRC = ROOT / "csrc"
SOURCES = [
    *sorted(CASES.glob("*.cpp"), key=lambda path: (path.name != "main.cpp", path.name)),
    *sorted((CSRC / "cuda").glob("*.cu")),
    CSRC / "cuda" / "launchers.cpp",
]
JOBS = 2
TIMEOUT = 300

# Barriers, heads, tails and chunk boundaries: every list of the program in many orders of threads.
MANY = (
    *("clip_squares", "clip_wide_squares", "clip_magnitudes", "clip_maximum", "clip_cubes"),
    *("clip_roots", "clip_float64", "clip_awkward_lengths", "norm_alone"),
    *("nonfinite_anywhere", "found_inf_anywhere", "count_not_clipped", "count_clipped"),
    *("scale_lists", "scale_per_tensor", "scale_into_targets", "clamp_lists"),
    *("unscale_lists", "unscale_and_clamp_lists", "clip_in_steps"),
)
# Four seeds for four dtypes, or four lists.
FEW = (
    *("norm_of_devices", "partials_in_order", "norm_of_constants", "max_norm_values", "inv_scale"),
    *("rescue_extremes", "rescue_threshold", "scale_sources", "clamp_limits"),
    *("count_clamp", "count_clamp_of_few", "count_scale", "count_rescue"),
    *("table_clip", "capture_and_replay", "clip_close_to_one", "count_backwards"),
    *("unscale_sources", "unscale_and_clamp_limits", "count_unscaled_clamp", "norm_of_a_total"),
)
# Here little depends on the order of threads.
ONCE = (
    *("norm_of_unlucky_vectors", "norm_of_nothing", "norm_outputs_may_be_null"),
    *("nonfinite_error", "found_inf_already"),
    *("found_inf_without_inf", "cooperative_refused", "launch_failures", "other_device"),
    "loaded_before_capture",
    *("machine_errors", "plan_chunk_sizes", "plan_slots", "plan_huge", "offsets_beyond_32_bits"),
    *("table_lengths", "table_targets", "grid_sizes", "unscale_tables", "unscale_after_found_inf"),
)
SEEDS: dict[Build, dict[tuple[str, ...], int]] = {
    "plain": {MANY: 30, FEW: 4, ONCE: 2},
    "address": {MANY: 4, FEW: 2, ONCE: 1},
    # What ThreadSanitizer sees does not depend on the schedule.
    "thread": {MANY: 2, FEW: 1},
}
# By default ThreadSanitizer goes on after a race and waits a second before it ends.
OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=1 atexit_sleep_ms=0",
    "ASAN_OPTIONS": "",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@dataclass(frozen=True)
class CaseRun:
    """A case in one of the builds."""

    build: Build
    case: str
    seeds: int

    def __str__(self) -> str:
        return f"{self.case}-{self.build}"


RUNS = [
    CaseRun(build, case, seeds)
    for build in BUILDS
    for cases, seeds in SEEDS[build].items()
    for case in cases
]


def _run(program: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [str(program), *arguments],
        env={**os.environ, **OPTIONS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout


@dataclass
class Programs:
    """Builds the programs and runs their cases, two at a time, in the background."""

    pool: ThreadPoolExecutor
    builds: dict[Build, Future[Path]] = field(default_factory=dict)
    runs: dict[CaseRun, Future[tuple[int, str]]] = field(default_factory=dict)

    def start_build(self, build: Build) -> None:
        out = ROOT / "build" / "cuda_kernels"
        self.builds[build] = self.pool.submit(
            lambda: build_program(SOURCES, out, build, include=[CSRC], jobs=1)
        )

    def start(self, run: CaseRun) -> None:
        self.runs[run] = self.pool.submit(
            lambda: _run(self.builds[run.build].result(), str(run.seeds), run.case)
        )


@pytest.fixture(scope="module")
def programs(request: pytest.FixtureRequest) -> Iterator[Programs]:
    selected = {item.name.partition("[")[2].rstrip("]") for item in request.session.items}
    runs = [run for run in RUNS if str(run) in selected]
    with ThreadPoolExecutor(JOBS) as pool:
        programs = Programs(pool)
        # Builds come before all runs: a run waits for its program, and must not keep it from being
        # built.
        for build in BUILDS:
            if build == "plain" or any(run.build == build for run in runs):
                programs.start_build(build)
        for run in runs:
            programs.start(run)
        yield programs
        pool.shutdown(cancel_futures=True)


def test_every_case_is_run(programs: Programs) -> None:
    status, output = _run(programs.builds["plain"].result(), "list")
    assert status == 0
    assert sorted(output.split()) == sorted(MANY + FEW + ONCE)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_kernels(programs: Programs, run: CaseRun) -> None:
    status, output = programs.runs[run].result()
    assert status == 0, output or f"ended with status {status}"
