"""What the vendor's tools say of a GPU: its driver, its clocks, and what else works on it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence

HIGHEST = {
    "clock of the multiprocessors, highest": "clocks.max.sm",
    "clock of the memory, highest": "clocks.max.mem",
    "power limit": "power.limit",
}
CURRENT = {"clock of the multiprocessors": "clocks.sm", "clock of the memory": "clocks.mem"}

REASONS = {
    0x1: "idle",
    0x2: "clocks set by applications",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "temperature, by software",
    0x40: "temperature, by hardware",
    0x80: "power brake",
    0x100: "clocks set for the display",
}
"""The bits of nvidia-smi's reasons why clocks are not the highest: NVML's ClocksEventReasons."""

# The newer name, then the one that it had before.
_REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")

_AMD_TOOLS = (("amd-smi", "version"), ("rocm-smi", "--showdriverversion"))
_AMD_DRIVER = re.compile(r"(?:amdgpu|driver)\s+version\s*:\s*([\w.+-]+)", re.IGNORECASE)


def driver(is_hip: bool) -> str:
    """Return the version of the GPU's driver, or say that no tool tells it."""
    version = _query({"driver": "driver_version"}, "")
    if version:
        return version["driver"]
    if not is_hip:
        return "unknown: nvidia-smi does not tell it"
    for command in _AMD_TOOLS:
        found = _AMD_DRIVER.search(output(command) or "")
        if found is not None:
            return f"amdgpu {found[1]}"
    return "unknown: neither amd-smi nor rocm-smi tells it"


def highest_clocks(uuid: str) -> dict[str, str]:
    """Return the highest clocks and the power limit, where nvidia-smi tells them."""
    return _query(HIGHEST, uuid)


def state(uuid: str) -> dict[str, str]:
    """Return the clocks of this moment, why they are not the highest, and what else is on the GPU.

    Nothing of it is there where nvidia-smi does not tell it, as on AMD's GPUs.
    """
    found = _query(CURRENT, uuid)
    for name in _REASON_FIELDS:
        limits = _query({"limited by": name}, uuid)
        if limits:
            found["clocks limited by"] = _reasons(limits["limited by"])
            break
    listed = output(_nvidia("compute-apps", ["pid", "process_name", "used_memory"], uuid))
    if listed is not None:
        lines = [line.strip() for line in listed.splitlines()]
        others = [line for line in lines if line and not line.startswith(f"{os.getpid()},")]
        found["other processes on the GPU"] = "; ".join(others) or "none seen"
    return found


def output(command: Sequence[str]) -> str | None:
    """Return what a tool prints; None if it is not there or does not end well."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _nvidia(what: str, names: Sequence[str], uuid: str) -> list[str]:
    command = ["nvidia-smi", f"--query-{what}={','.join(names)}", "--format=csv,noheader"]
    return [*command, f"--id=GPU-{uuid.removeprefix('GPU-')}"] if uuid else command


def _query(names: Mapping[str, str], uuid: str) -> dict[str, str]:
    first = (output(_nvidia("gpu", list(names.values()), uuid)) or "").strip().partition("\n")[0]
    values = [value.strip() for value in first.split(",")]
    is_whole = bool(first) and len(values) == len(names)
    return dict(zip(names, values, strict=True)) if is_whole else {}


def _reasons(text: str) -> str:
    try:
        bits = int(text, 16)
    except ValueError:
        return text
    return ", ".join(reason for bit, reason in REASONS.items() if bits & bit) or "nothing"
