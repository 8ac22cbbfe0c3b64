"""What tests/mutants/triton_run.py plants is there to plant; ``make test`` plants it."""

from mutants.texts import check_texts
from mutants.triton_faults import FAULTS
from source_tree import ROOT


def test_every_fault_has_a_text_to_replace() -> None:
    check_texts(FAULTS)
    assert all(fault.new != fault.old for fault in FAULTS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_every_fault_names_a_test() -> None:
    for fault in FAULTS:
        file, _, test = fault.test.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {test.partition('[')[0]}(" in text
