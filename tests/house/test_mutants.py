"""Every planted fault has its text in a source, names tests that exist, and is judged."""

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cpu_faults
import cuda_faults
import pytest
import triton_faults
from planting import Fault, Planter, Verdict, check_texts, plant_text, run
from pytest_runs import PytestRuns, judge
from source_tree import ROOT


@pytest.mark.parametrize("planted", (cpu_faults.FAULTS, cuda_faults.FAULTS, triton_faults.FAULTS))
def test_every_fault_has_a_text_to_replace(planted: Sequence[Fault]) -> None:
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


class Sums(Planter[Fault]):
    """Plants faults in a source of this file's tests, whose value is to be 5."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def prepare(self, *_: object) -> Sequence[Callable[[], None]]:
        return [self.check_without_faults]

    def check_without_faults(self) -> None:
        if eval(self.source.read_text()) != 5:
            raise SystemExit("not 5 without a fault")

    def plant(self, fault: Fault, tree: Path) -> Verdict:
        copy = tree / "source"
        copy.write_text(self.source.read_text())
        value = eval(
            plant_text(Fault(fault.name, "source", fault.old, fault.new), tree).read_text()
        )
        return Verdict(value != 5, f"value {value}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "sum.txt"
    path.write_text("2 + 1 + 2")
    return path


def test_faults_that_are_caught_end_in_status_0(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [Fault(f"one is {new}", str(source), "1", new) for new in ("7", "8", "9")]
    assert run(Sums(source), faults, []) == 0
    said = capsys.readouterr().out
    assert said.count("caught  ") == 3
    assert "value 11" in said
    assert "3 of 3 faults were caught" in said


def test_a_fault_that_no_test_notices_ends_in_status_1(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [
        Fault("one is seven", str(source), "1", "7"),
        Fault("one is one", str(source), "1", "1 * 1"),
    ]
    assert run(Sums(source), faults, []) == 1
    said = capsys.readouterr().out
    assert re.search(r"^caught  one is seven ", said, re.MULTILINE)
    assert re.search(r"^MISSED  one is one ", said, re.MULTILINE)
    assert "1 of 2 faults were caught" in said
    assert run(Sums(source), faults, ["--only", "seven", "--jobs", "1"]) == 0


@pytest.mark.parametrize(("old", "found"), (("2", 2), ("3", 0)))
def test_a_text_that_does_not_stand_exactly_once_stops_the_run(
    source: Path, old: str, found: int
) -> None:
    faults = [Fault("a fault", str(source), old, "7")]
    with pytest.raises(SystemExit, match=f"its text stands {found} times in"):
        run(Sums(source), faults, [])


@pytest.mark.parametrize("count", (0, 1))
def test_a_run_that_plants_nothing_is_an_error(source: Path, count: int) -> None:
    faults = [Fault("one is seven", str(source), "1", "7")] * count
    with pytest.raises(SystemExit, match="nothing is planted"):
        run(Sums(source), faults, ["--only", "eleven"])


def test_faults_that_cannot_show_here_are_told_and_not_counted(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [Fault(f"one is {new}", str(source), "1", new) for new in ("7", "8")]
    monkeypatch.setattr(Sums, "why_not", lambda _, fault: "odd" if "7" in fault.name else None)
    assert run(Sums(source), faults, []) == 0
    said = capsys.readouterr().out
    assert "not planted: one is 7 (odd)" in said
    assert "1 of 1 faults were caught" in said
    with pytest.raises(SystemExit, match="nothing is planted"):
        run(Sums(source), faults, ["--only", "7"])


def test_a_check_that_fails_without_a_fault_stops_the_run(source: Path) -> None:
    source.write_text("2 + 1 + 3")
    with pytest.raises(SystemExit, match="not 5 without a fault"):
        run(Sums(source), [Fault("one is seven", str(source), "1", "7")], [])


@pytest.fixture(scope="module")
def tests() -> Iterator[PytestRuns]:
    with PytestRuns() as started:
        yield started


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "fastclip").mkdir()
    (tmp_path / "fastclip" / "__init__.py").write_text("PLANTED = 7\n")
    return tmp_path


def _write_test(site: Path, body: str) -> str:
    test = site / "test_body.py"
    test.write_text(
        f"import os\nimport time\n\nimport fastclip\n\n\ndef test_body():\n    {body}\n"
    )
    return str(test)


@pytest.mark.parametrize(("value", "status"), ((7, 0), (8, 1)))
def test_tests_run_against_the_package_of_their_site(
    tests: PytestRuns, site: Path, value: int, status: int
) -> None:
    test = _write_test(site, f"assert fastclip.PLANTED == {value}")
    found, output = tests.run(site, [test])
    assert found == status, output
    assert ("assert 7 == 8" in output) == (status == 1)


def test_a_run_is_judged_by_the_tests_that_failed() -> None:
    assert judge(0, "1 passed") == (False, "no test failed")
    output = "FAILED tests/lists/test_lists.py::test_a_list[2.0] - assert 1 == 2\n1 failed\n"
    assert judge(1, output) == (True, "test_lists.py::test_a_list")
    for status in (1, 2, 3, 4, 5, -signal.SIGKILL):
        with pytest.raises(SystemExit, match=f"ended with status {status}"):
            judge(status, "no tests ran")


def test_tests_do_not_run_against_another_package(tests: PytestRuns, tmp_path: Path) -> None:
    status, output = tests.run(tmp_path, [_write_test(tmp_path, "pass")])
    assert "the tests would run against" in output
    with pytest.raises(SystemExit, match="pytest ended with status 1"):
        judge(status, output)


def test_a_crash_is_caught_and_says_where(tests: PytestRuns, site: Path) -> None:
    status, output = tests.run(site, [_write_test(site, "os.abort()")])
    assert judge(status, output) == (True, "crash (SIGABRT) in test_body.py::test_body")


def test_a_run_that_hangs_is_killed_with_its_children_and_judges_nothing(
    tests: PytestRuns, site: Path
) -> None:
    body = f"open({str(site / 'pid')!r}, 'w').write(str(os.fork() or 0)); time.sleep(600)"
    status, output = tests.run(site, [_write_test(site, body)], timeout=3)
    assert status == -signal.SIGALRM
    with pytest.raises(SystemExit, match="no end after 3 s"):
        judge(status, output)
