"""Reading what LLVM makes for AMD GPUs: resources, loops and 16-byte accesses in the assembly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from compiled_code import Loop
from control_flow import innermost_loops

LABEL = re.compile(r"(\.LBB\w+):")
CODE = re.compile(r"\t([a-z]\w+)[ \t]*([^;]*)")
NUMBER = re.compile(r"^\s+(?:- )?\.(\w+):\s+(\d+)$", re.MULTILINE)
ACCESS = re.compile(r"(global|buffer|flat|scratch)_(load|store)_(\w+)")
OUTSTANDING = re.compile(r"vmcnt\((\d+)\)")


@dataclass(frozen=True)
class Instruction:
    """A line of assembly."""

    name: str
    operands: str

    @property
    def is_vector_load(self) -> bool:
        """Return whether it reads 16 bytes of global memory."""
        return re.fullmatch(r"(global|buffer)_load_dwordx4", self.name) is not None

    @property
    def is_vector_store(self) -> bool:
        """Return whether it writes 16 bytes of global memory."""
        return re.fullmatch(r"(global|buffer)_store_dwordx4", self.name) is not None


def resources(text: str) -> dict[str, int]:
    """Return the numbers of the kernel's metadata, such as vgpr_count and vgpr_spill_count."""
    return {match[1]: int(match[2]) for match in NUMBER.finditer(text)}


def instructions(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """Return the kernel's instructions, and the index of the one that each label stands before."""
    code, labels = list[Instruction](), dict[str, int]()
    for line in text.partition(".Lfunc_end0:")[0].splitlines():
        label, instruction = LABEL.match(line), CODE.match(line)
        if label is not None:
            labels[label[1]] = len(code)
        elif instruction is not None:
            code.append(Instruction(instruction[1], instruction[2].strip()))
    return code, labels


def hot_loops(text: str) -> list[Loop]:
    """Find the innermost loops with 16-byte loads."""
    code, labels = instructions(text)
    successors = list[list[int]]()
    for index, i in enumerate(code):
        after = [index + 1] if index + 1 < len(code) else []
        if i.name.startswith("s_cbranch"):
            after.append(labels[i.operands])
        elif i.name == "s_branch":
            after = [labels[i.operands]]
        elif i.name == "s_endpgm":
            after = []
        successors.append(after)
    wanted = [index for index, i in enumerate(code) if i.is_vector_load]
    return [_loop([code[k] for k in body]) for body in innermost_loops(successors, wanted)]


def _loop(body: Sequence[Instruction]) -> Loop:
    # Loads and stores complete in order; a wait says how many may be outstanding after it.
    in_flight, outstanding = 0, list[bool]()
    for i in body:
        wait = OUTSTANDING.search(i.operands) if i.name == "s_waitcnt" else None
        if wait is not None:
            outstanding = outstanding[max(0, len(outstanding) - int(wait[1])) :]
        elif ACCESS.match(i.name):
            outstanding.append(i.is_vector_load)
            in_flight = max(in_flight, sum(outstanding))
    loads = sum(i.is_vector_load for i in body)
    stores = sum(i.is_vector_store for i in body)
    narrow = tuple(
        i.name
        for i in body
        if ACCESS.match(i.name) and not i.is_vector_load and not i.is_vector_store
    )
    return Loop(loads, in_flight, stores, narrow)
