"""The form that fastclip's CUDA clips take: fused into one launch, split, or its own choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

FORMS = ("auto", "fused", "split")

_MODULE = "fastclip.backends.clip_mode"


def why_no_choice() -> str | None:
    """Say why this fastclip's clips take no other form than the automatic one; None if they do."""
    return None if _chooser() else f"this fastclip has no {_MODULE}"


@contextmanager
def in_form(form: str) -> Iterator[None]:
    """Let clips take this form, and give the choice back to fastclip afterwards.

    "auto" is asked for as well: FASTCLIP_CLIP_MODE may have set another form.
    """
    chooser = _chooser()
    if chooser is None:
        if form != "auto":
            raise ValueError(f"in_form: form must be auto (got {form!r}): {why_no_choice()}")
        yield
        return
    before = chooser.clip_mode()
    chooser.set_clip_mode(form)
    try:
        yield
    finally:
        chooser.set_clip_mode(before)


def _chooser() -> ModuleType | None:
    # A benchmark compares versions; one before the forms could be chosen is measured, too.
    try:
        return import_module(_MODULE)
    except ModuleNotFoundError:
        return None
