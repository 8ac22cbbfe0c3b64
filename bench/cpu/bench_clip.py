"""The benchmark's cases for pytest-benchmark: pytest bench/cpu/bench_clip.py [--all-cases].

`python bench cpu` alternates the contenders and is the one to quote; this suite is for comparing a
change with what --benchmark-autosave kept of the state before it.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.core.gradients import DTYPES, Gradients
from bench.core.shapes import CASES
from bench.core.text import clipped_text, row_title
from bench.cpu.measure import calls, checked_errors

SMALL_CASES = ("resnet-50", "2000x4096", "1000x64")
SMALL_DTYPES = ("float32", "bfloat16")
ROUNDS = 9


@lru_cache(maxsize=1)
def gradients_of(case: str, dtype: str) -> Gradients:
    """Build the gradients, once for all tests of a case: parametrization keeps those together."""
    return Gradients(CASES[case], dtype)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the cases that the command line asks for."""
    everything = metafunc.config.getoption("--all-cases")
    cases, dtypes = (CASES, DTYPES) if everything else (SMALL_CASES, SMALL_DTYPES)
    chosen = [
        pytest.param(*row, id="-".join([*row[:2], clipped_text(row[2]).replace(" ", "_")]))
        for row in product(cases, dtypes, (False, True))
    ]
    metafunc.parametrize(("case", "dtype", "clipped"), chosen, scope="module")
    metafunc.parametrize("contender", ["stock", "list", "clipper"])


def test_clip(
    benchmark: BenchmarkFixture, case: str, dtype: str, clipped: bool, contender: str
) -> None:
    """Check one contender's result, then time it on gradients that are restored in between."""
    gradients = gradients_of(case, dtype)
    call = calls(gradients, clipped, backend=None)[contender]
    checked_errors(gradients, {contender: call}, clipped)
    benchmark.group = row_title(gradients.head(clipped))
    benchmark.pedantic(
        call, setup=gradients.restore if clipped else None, rounds=ROUNDS, warmup_rounds=1
    )
