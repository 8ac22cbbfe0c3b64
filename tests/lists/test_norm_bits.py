"""Norms, clipped gradients and parameter norms have the bits that an earlier version gave them.

tests/lists/norm_bits/*.txt hold these, recorded on 2026-11-28 before the code between Python
and the kernels was rebuilt. Native's hold for every CPU and instruction set, and the others for
every GPU: docs/kernels.md says why.
"""

from pathlib import Path

import pytest
from norm_bits import rows

RECORDS = Path(__file__).parent / "norm_bits"

MAX_ELEMENTS = {"native": 1 << 30, "emulated": 1 << 30, "triton": 10000}
"""The longest lists that a backend takes: the emulator and the interpreter are slow."""


@pytest.mark.filterwarnings("ignore:GradClipper")
@pytest.mark.parametrize("name", MAX_ELEMENTS)
def test_bits_are_those_of_the_record(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if name == "native":
        pytest.importorskip("fastclip._C")
    else:
        request.getfixturevalue("emulated" if name == "emulated" else "interpreted")
    found = list(rows("native" if name == "emulated" else name, MAX_ELEMENTS[name]))
    new = tmp_path / f"{name}.txt"
    new.write_text("\n".join(found) + "\n", encoding="utf-8")
    recorded = (RECORDS / new.name).read_text(encoding="utf-8").splitlines()
    assert found == recorded, f"if new bits are meant, {new} is the new record"
