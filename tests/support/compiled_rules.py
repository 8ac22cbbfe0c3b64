"""Faults in compiled text: arithmetic that the source does not ask for, gaps of a grid barrier."""

from __future__ import annotations

import re
from collections.abc import Sequence

import amdgcn

# These belong to libdevice's log2 and exp2 in float64.
APPROXIMATIONS = ("abs.ftz.f32", "rcp.approx.ftz.f64")
ARRIVAL = "atom.global.gpu.acq_rel.add.u32"
POLL = re.compile(r"ld\.global\.gpu\.acquire\.b32|atom\.global\.gpu\.(acquire|acq_rel)\.add\.u32")
# What triton 3.6 polls with; later ones add 0.
COHERENT_LOAD = "coherent load"
COHERENT = re.compile(r"global_load_dword .*\b(glc|sc1)\b")
ORDERED = re.compile(r"bar\.sync|(ld|st|atom|red)\.global|bra\b")


def ptx_lines(ptx: str) -> list[str]:
    """Return the instructions, without guards, comments and directives."""
    lines = [re.sub(r"^@!?%\w+\s+", "", line.split("//")[0].strip()) for line in ptx.splitlines()]
    return [line for line in lines if re.match(r"[a-z]", line)]


def arithmetic_faults(ptx: str, has_powers: bool) -> list[str]:
    """Return the instructions that flush, fuse or read past the coherent cache unasked."""
    lines = ptx_lines(ptx)
    negated = _negated(lines)
    faults = []
    for line in lines:
        name, _, rest = re.sub(r"\s+", " ", line).partition(" ")
        operands = [operand.strip(" ;") for operand in rest.split(",")]
        # What rounding dropped of a square: a * a - (a * a rounded).
        is_dropped = (
            name in ("fma.rn.f32", "fma.rn.f32x2")
            and operands[1] == operands[2]
            and operands[3] in negated
        )
        is_fault = (
            (".ftz" in name and not (has_powers and name in APPROXIMATIONS))
            or ("approx" in name and name not in APPROXIMATIONS)
            or (name.startswith(("fma", "mad.rn", "mad.f")) and not is_dropped and not has_powers)
            or name.startswith("ld.global.nc")
        )
        if is_fault:
            faults.append(line)
    return faults


def _negated(lines: Sequence[str]) -> set[str]:
    """Return the registers that hold a negated float32, or a pair of them as sm_100 computes."""
    zeros = {m[1] for line in lines if (m := re.match(r"mov\.b32\s+(%\w+), 0f[08]0000000;", line))}
    zeros |= _pairs_of(zeros, lines)
    negated = {m[1] for line in lines if (m := re.match(r"neg\.f32\s+(%\w+),", line))}
    negated |= _pairs_of(negated, lines)
    # This is how triton 3.6 writes it.
    differences = (re.match(r"sub\.rn\.f32(?:x2)?\s+(%\w+), (%\w+),", line) for line in lines)
    return negated | {m[1] for m in differences if m is not None and m[2] in zeros}


def _pairs_of(registers: set[str], lines: Sequence[str]) -> set[str]:
    """Return the registers that hold two of these."""
    pairs = (re.match(r"mov\.b64\s+(%\w+), \{(%\w+), (%\w+)\}", line) for line in lines)
    return {pair[1] for pair in pairs if pair is not None and {pair[2], pair[3]} <= registers}


def barrier_faults(ptx: str) -> list[str]:
    """Return what keeps a grid barrier from ordering memory: arrival, poll, block barriers."""
    ordered = [m[0] for line in ptx_lines(ptx) if (m := re.match(r"\S+", line))]
    ordered = [name for name in ordered if ORDERED.match(name)]
    arrivals = [k for k, name in enumerate(ordered) if name == ARRIVAL]
    if not arrivals:
        return [f"no {ARRIVAL}"]
    faults = []
    at = arrivals[0]
    if at == 0 or not ordered[at - 1].startswith("bar.sync"):
        faults.append("no bar.sync before the arrival")
    polls = [k for k in range(at + 1, len(ordered)) if POLL.fullmatch(ordered[k])]
    if not polls:
        return [*faults, "no acquiring poll"]
    between = [name for name in ordered[at + 1 : polls[0]] if not name.startswith("bra")]
    if between == [] or any(not name.startswith("bar.sync") for name in between):
        faults.append("no bar.sync between arrival and poll")
    after = [name for name in ordered[polls[0] + 1 :] if not name.startswith("bra")]
    if not after or not after[0].startswith("bar.sync"):
        faults.append("no bar.sync after the poll")
    return faults


def amd_barrier_faults(text: str, needs_write_back: bool) -> list[str]:
    """Return the same of AMD's assembly: s_barrier, waits, write-back and invalidation."""
    code = amdgcn.instructions(text)[0]
    pattern = re.compile(r"s_barrier|buffer_(wbl2|inv|wbinvl1_vol)|global_atomic_\w+")
    ordered = [
        COHERENT_LOAD if COHERENT.search(f"{i.name} {i.operands}") else i.name
        for i in code
        if pattern.fullmatch(i.name)
        or amdgcn.ACCESS.match(i.name)
        or (i.name == "s_waitcnt" and "vmcnt(0)" in i.operands)
    ]
    if "global_atomic_add" not in ordered:
        return ["no global_atomic_add"]
    before = ["s_barrier", *(["buffer_wbl2"] if needs_write_back else []), "s_waitcnt"]
    faults = []
    at = ordered.index("global_atomic_add")
    if ordered[max(0, at - len(before)) : at] != before:
        faults.append("arrival without " + ", ".join(before))
    reads = ("global_atomic", COHERENT_LOAD)
    polls = [k for k, name in enumerate(ordered) if name.startswith(reads) and k > at]
    if not polls:
        faults.append("no poll")
    faults += [
        f"{ordered[k]} without a wait and an invalidation"
        for k in (at, *polls)
        if not _acquires(ordered[k + 1 : k + 3])
    ]
    return faults


def _acquires(after: Sequence[str]) -> bool:
    return len(after) == 2 and after[0] == "s_waitcnt" and after[1].startswith("buffer_")
