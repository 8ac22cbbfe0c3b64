"""Faults planted in the CUDA kernels turn cases of tests/cuda_kernels red."""

import re
import subprocess
import sys

import pytest
from mutants.kernel_faults import FAULTS
from source_tree import ROOT
from toolkit import why_no_emulator

REASON = why_no_emulator()


@pytest.mark.slow
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_every_planted_fault_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, str(ROOT / "tests" / "mutants" / "kernel_run.py")]
    with capsys.disabled():  # the table of what caught which fault is for people
        print()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
    assert done.returncode == 0
    caught = re.search(r"^(\d+) of (\d+) faults were caught", done.stdout, re.MULTILINE)
    assert caught and caught[1] == caught[2]
    assert int(caught[1]) == len(FAULTS)
