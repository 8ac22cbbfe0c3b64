"""The texts that planted faults replace."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]


class Text(Protocol):
    """What is replaced: ``old``, which stands in ``file`` exactly once, by ``new``."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def old(self) -> str: ...
    @property
    def new(self) -> str: ...


def plant_text(fault: Text, tree: Path) -> Path:
    """Replace a fault's text in a copy of the sources; return the file."""
    path = tree / fault.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(fault.old, fault.new), encoding="utf-8")
    return path


def check_texts(faults: Sequence[Text]) -> None:
    """Exit if a fault's text does not stand in its source exactly once."""
    for fault in faults:
        found = (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old)
        if found != 1:
            raise SystemExit(f'"{fault.name}": its text stands {found} times in {fault.file}')
