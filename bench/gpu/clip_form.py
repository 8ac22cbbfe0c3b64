"""The form that fastclip's GPU clips take: fused into one launch, split, or its choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastclip.backends.clip_mode import clip_mode, set_clip_mode


@contextmanager
def in_form(form: str) -> Iterator[None]:
    """Let clips take this form, and give the choice back afterwards.

    "auto" is asked for as well: FASTCLIP_CLIP_MODE may have set another form.
    """
    before = clip_mode()
    set_clip_mode(form)
    try:
        yield
    finally:
        set_clip_mode(before)
