"""Every planted fault has its text in a source, and names tests that exist."""

import re
from collections.abc import Sequence

import cpu_faults
import cuda_faults
import pytest
import triton_faults
from source_tree import ROOT
from texts import Text, check_texts


@pytest.mark.parametrize("planted", (cpu_faults.FAULTS, cuda_faults.FAULTS, triton_faults.FAULTS))
def test_every_fault_has_a_text_to_replace(planted: Sequence[Text]) -> None:
    check_texts(planted)
    assert all(fault.new != fault.old for fault in planted)
    assert len({fault.name for fault in planted}) == len(planted)


def test_every_fault_names_a_test() -> None:
    named = {test for fault in cpu_faults.FAULTS for test in fault.tests}
    named |= {fault.test for fault in triton_faults.FAULTS}
    for name in named:
        file, _, test = name.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not test or f"def {test.partition('[')[0]}(" in text, name


def test_every_fault_in_a_cuda_kernel_names_a_case() -> None:
    main = (ROOT / "tests" / "cuda_kernels" / "main.cpp").read_text(encoding="utf-8")
    cases = set(re.findall(r'\{"(\w+)", ', main))
    assert cases
    assert {case for fault in cuda_faults.FAULTS for case in fault.cases} <= cases
