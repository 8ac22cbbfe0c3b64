"""What a report says about where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import TypedDict

import torch

import fastclip

ROOT = Path(__file__).resolve().parents[2]


class Machine(TypedDict):
    """Where and with what a run was measured."""

    cpu: str
    cores: int
    threads: int
    memory_gb: float
    python: str
    torch: str
    fastclip: str
    instruction_set: str | None
    native: bool
    date: str
    commit: str | None
    others_share: float | None


class HostLoad:
    """How much of the processors other processes took since this was made."""

    def __init__(self) -> None:
        self._start = _processor_seconds()

    def share(self) -> float | None:
        """Return the part of all processors' time, or None where the system does not tell."""
        end = _processor_seconds()
        if self._start is None or end is None:
            return None
        everyone, own, total = (b - a for a, b in zip(self._start, end, strict=True))
        # No time has passed where the clock has not ticked.
        return max(0.0, (everyone - own) / total) if total > 0 else None


def _processor_seconds() -> tuple[float, float, float] | None:
    """Return the seconds of all processors in use, of those by this process, and all there were."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    seconds = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
    # The fourth and the fifth are the idle ones, without and with a wait for a disk.
    busy = sum(seconds) - sum(seconds[3:5])
    # The first four: user and system time of this process and of its children.
    return busy, sum(os.times()[:4]), sum(seconds)


def describe(load: HostLoad) -> Machine:
    """Describe this machine, the versions in use, and the commit when there is one."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gb=round(pages / 1e9, 1),
        python=platform.python_version(),
        torch=torch.__version__,
        fastclip=fastclip.__version__,
        instruction_set=fastclip.instruction_set(),
        native=fastclip.build_info()["native"],
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=_commit(),
        others_share=load.share(),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit(root: Path = ROOT) -> str | None:
    """Return the commit of this project, not of another that the sources were unpacked into."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} with changes" if changed else commit
