"""The option of the pytest-benchmark suite, and the way to the package bench."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# At the end: the root also holds the sources, which would hide the installed fastclip.
sys.path.append(str(Path(__file__).resolve().parents[2]))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --all-cases."""
    text = "benchmark every case in every dtype (minutes) instead of the small ones in two"
    parser.addoption("--all-cases", action="store_true", help=text)
