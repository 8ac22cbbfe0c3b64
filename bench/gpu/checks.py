"""What was checked before the times, and all that makes a run of bench gpu a failed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from bench.gpu.sanitize import BAD_WORDS, LEFT_OUT, SKIPPED

NOT_RUN = "not run by this command"
NO_REPORT = "no report that can be read"


@dataclass(frozen=True)
class Check:
    """What a check came to, in words, and why it counts as failed, if it does."""

    told: str
    failures: list[str] = field(default_factory=list)


def check_tests(file: Path | None) -> Check:
    """Count in pytest's report the tests that passed, failed and were skipped, and say why."""
    if file is None:
        return Check(NOT_RUN)
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        told = f"{NO_REPORT}: {error}"
        return Check(told, [f"tests marked gpu: {told}"])
    cases = list(root.iter("testcase"))
    failed = sum(
        case.find("failure") is not None or case.find("error") is not None for case in cases
    )
    skips = [skip for case in cases if (skip := case.find("skipped")) is not None]
    passed = len(cases) - failed - len(skips)
    told = f"{passed} passed, {failed} failed, {len(skips)} SKIPPED"
    reasons = dict.fromkeys(str(skip.get("message")) for skip in skips)
    if reasons:
        told += f" ({'; '.join(reasons)})"
    return Check(told, [] if passed and not failed else [f"tests marked gpu: {told}"])


def check_sanitizer(file: Path | None, absent: Mapping[str, str | None]) -> Check:
    """Return what compute-sanitizer's tools found, unless no test had a backend to run.

    Args:
        file: what bench sanitize wrote, a line for each tool.
        absent: the backends with GPU kernels, and why each cannot run; None for one that can.
    """
    if file is None:
        return Check(NOT_RUN)
    reasons = [f"{backend}: {reason}" for backend, reason in absent.items() if reason is not None]
    if len(reasons) == len(absent):
        return Check(f"SKIPPED, as no backend with GPU kernels can run here: {'; '.join(reasons)}")
    try:
        lines = file.read_text(encoding="utf-8").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        lines = [f"{NO_REPORT}: {error}"]
    lines = lines or [NO_REPORT]
    bad = [line for line in lines if any(word in line for word in (*BAD_WORDS, NO_REPORT))]
    told = "; ".join(lines)
    if lines != [SKIPPED] and not told.startswith(NO_REPORT):
        told += f". {LEFT_OUT}"
        if reasons:
            told += f". Without {'; '.join(reasons)}"
    return Check(told, [f"compute-sanitizer: {line}" for line in bad])


def missing_backends(
    absent: Mapping[str, str | None], is_gpu: bool, has_cuda_torch: bool
) -> list[str]:
    """Say which backends had to run on this GPU and cannot: native needs a torch with CUDA."""
    if not is_gpu:
        return []
    return [
        f"the backend {backend} cannot run here: {reason}"
        for backend, reason in absent.items()
        if reason is not None and (backend != "native" or has_cuda_torch)
    ]


def nothing_timed(names: Sequence[str]) -> list[str]:
    """Say so if none of fastclip's entrants was timed, given the names of those that were."""
    return [] if names else ["no form of fastclip was timed"]
