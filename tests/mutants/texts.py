"""The texts that planted faults replace."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]


class Text(Protocol):
    """What is replaced: ``old``, which stands in ``file`` exactly once."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def old(self) -> str: ...


def check_texts(faults: Sequence[Text]) -> None:
    """Exit if a fault's text does not stand in its source exactly once."""
    for fault in faults:
        found = (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old)
        if found != 1:
            raise SystemExit(f'"{fault.name}": its text stands {found} times in {fault.file}')
