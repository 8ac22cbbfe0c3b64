"""Options of the pytest-benchmark suite, and the way to the modules beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# This folder alone: the one above holds the sources, which would hide the installed fastclip.
sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --all-cases."""
    parser.addoption(
        "--all-cases",
        action="store_true",
        help="benchmark every case in every dtype (minutes) instead of the small ones in two",
    )
