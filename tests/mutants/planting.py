"""What the three programs share that plant faults: each fault must turn a test red.

Exit status 1 if a fault goes unnoticed, if its text does not stand in the source exactly once, if
the tests fail without any fault, or if nothing is planted.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parents[2]
HARNESS_FAILED = "the mutants could not be judged"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what goes wrong, in words.
        file: the source, from the root of the tree.
        old: the text to replace; it must stand in the file exactly once.
        new: what replaces it.
    """

    name: str
    file: str
    old: str
    new: str


class Verdict(NamedTuple):
    """What became of a fault: whether it was caught, and which test said what."""

    is_caught: bool
    said: str


AnyFault = TypeVar("AnyFault", bound=Fault)


class Planter(ABC, Generic[AnyFault]):
    """What one of the programs knows: how its sources are built, and what is to notice a fault."""

    def why_not(self, fault: AnyFault) -> str | None:
        """Say why a fault cannot show on this machine; None if it can."""

    @abstractmethod
    def prepare(
        self, faults: Sequence[AnyFault], scratch: Path, pool: Executor, /
    ) -> Sequence[Callable[[], None]]:
        """Build what the faults share, in ``scratch``.

        Returns:
            Checks that run beside the faults: each exits where what notices faults fails without.
        """

    @abstractmethod
    def plant(self, fault: AnyFault, tree: Path) -> Verdict:
        """Build a copy of the sources with one fault in ``tree``; run what must notice it."""


def plant_text(fault: Fault, tree: Path) -> Path:
    """Replace a fault's text in a copy of the sources; return the file."""
    path = tree / fault.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(fault.old, fault.new), encoding="utf-8")
    return path


def check_texts(faults: Sequence[Fault]) -> None:
    """Exit if a fault's text does not stand in its source exactly once."""
    for fault in faults:
        found = (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old)
        if found != 1:
            raise SystemExit(f'"{fault.name}": its text stands {found} times in {fault.file}')


def run(
    planter: Planter[AnyFault], faults: Sequence[AnyFault], arguments: Sequence[str] | None = None
) -> int:
    """Run the command line of a program that plants faults; return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="only faults whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time; default 2")
    options = parser.parse_args(arguments)
    wanted = [fault for fault in faults if options.only in fault.name]
    check_texts(wanted)
    reasons = {fault.name: planter.why_not(fault) for fault in wanted}
    planted = [fault for fault in wanted if reasons[fault.name] is None]
    for fault in wanted:
        if fault not in planted:
            print(f"not planted: {fault.name} ({reasons[fault.name]})")
    if not planted:
        raise SystemExit(f'nothing is planted: of {len(wanted)} faults with "{options.only}" none')
    began = time.monotonic()
    caught = sum(verdict.is_caught for verdict in _plant_all(planter, planted, options.jobs))
    print(f"{caught} of {len(planted)} faults were caught, in {time.monotonic() - began:.0f} s")
    return 0 if caught == len(planted) else 1


def _plant_all(
    planter: Planter[AnyFault], faults: Sequence[AnyFault], jobs: int
) -> Sequence[Verdict]:
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:
        scratch = Path(directory).resolve()
        try:
            checks = [pool.submit(check) for check in planter.prepare(faults, scratch, pool)]
            verdicts = [
                pool.submit(_plant_one, planter, fault, scratch / str(i))
                for i, fault in enumerate(faults)
            ]
            for check in checks:
                check.result()
            return [verdict.result() for verdict in verdicts]
        finally:
            # Where a check fails, the faults that are not planted yet judge nothing.
            pool.shutdown(cancel_futures=True)


def _plant_one(planter: Planter[AnyFault], fault: AnyFault, tree: Path) -> Verdict:
    began = time.monotonic()
    tree.mkdir()
    verdict = planter.plant(fault, tree)
    shutil.rmtree(tree)
    head = f"{'caught' if verdict.is_caught else 'MISSED'}  {fault.name:61}"
    said = verdict.said if len(verdict.said) <= 110 else verdict.said[:107] + "..."
    seconds = time.monotonic() - began
    print(f"{head}  {Path(fault.file).name:15}  {seconds:3.0f} s  {said}", flush=True)
    return verdict
