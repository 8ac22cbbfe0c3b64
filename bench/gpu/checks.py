"""What was checked before the times, and all that makes a run of `bench gpu` a failed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from bench.gpu.sanitize import BAD_WORDS, LEFT_OUT, SKIPPED

NOT_RUN = "not run by this command"
NO_REPORT = "no report that can be read"


class Check(NamedTuple):
    """What a check came to, in words, and why it counts as failed, if it does."""

    summary: str
    failures: Sequence[str] = ()


def check_tests(file: Path | None) -> Check:
    """Count in pytest's report the tests that passed, failed and were skipped, and say why."""
    if file is None:
        return Check(NOT_RUN)
    try:
        cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        summary = f"{NO_REPORT}: {error}"
        return Check(summary, [f"tests marked gpu: {summary}"])
    failed = sum(any(case.find(tag) is not None for tag in ("failure", "error")) for case in cases)
    skips = [skip for case in cases if (skip := case.find("skipped")) is not None]
    passed = len(cases) - failed - len(skips)
    summary = f"{passed} passed, {failed} failed, {len(skips)} SKIPPED"
    reasons = dict.fromkeys(str(skip.get("message")) for skip in skips)
    summary += f" ({'; '.join(reasons)})" if reasons else ""
    return Check(summary, [] if passed and not failed else [f"tests marked gpu: {summary}"])


def check_sanitizer(file: Path | None, absent: Mapping[str, str | None]) -> Check:
    """Return what compute-sanitizer's tools found, unless no test had a backend to run.

    Args:
        file: what `bench sanitize` wrote, a line for each tool.
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
    summary = "; ".join(lines)
    if lines != [SKIPPED] and not summary.startswith(NO_REPORT):
        summary += f". {LEFT_OUT}"
        if reasons:
            summary += f". Without {'; '.join(reasons)}"
    return Check(summary, [f"compute-sanitizer: {line}" for line in bad])


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
