"""What tests of CUDA sources need, and whether they may be skipped where it is not there."""

import os

from build_program import missing

VARIABLE = "FASTCLIP_REQUIRE_TOOLKIT"
"""CI sets it: then a test that would be skipped because the toolkit is missing fails."""


def may_skip(reason: str | None) -> str | None:
    """Return the reason to skip tests, or None.

    Raises:
        RuntimeError: there is one, and ``VARIABLE`` is set.
    """
    if reason is not None and os.environ.get(VARIABLE):
        raise RuntimeError(f"{reason} (and {VARIABLE} is set)")
    return reason


def why_no_emulator() -> str | None:
    """Return why tests over the emulator are to be skipped, or None. Raises: see ``may_skip``."""
    return may_skip(missing())
