"""Print how many tests passed for each backend, from a JUnit report: count_backends.py REPORT.

A test belongs to a backend that its file, its name or its parameters name.
"""

import re
import sys
from collections import Counter
from xml.etree import ElementTree

BACKENDS = ("native", "reference", "emulated", "triton", "gpu")


def count(report: ElementTree.Element) -> tuple[Counter[str], Counter[str]]:
    """Count the tests that passed and those that were skipped, by backend.

    Tests that name no backend count under "other", those that name two count for both.
    """
    passed: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for case in report.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            continue
        module = str(case.get("classname")).rpartition(".")[2]
        words = re.split(r"[\W_]+", f"{case.get('classname')} {case.get('name')}")
        words = ["gpu"] if module == "test_gpu" else [word for word in words if word != "gpu"]
        named = [backend for backend in BACKENDS if backend in words] or ["other"]
        (passed if case.find("skipped") is None else skipped).update(named)
    return passed, skipped


def main() -> None:
    """Print the table of the report that the command line names."""
    passed, skipped = count(ElementTree.parse(sys.argv[1]).getroot())
    for backend in (*BACKENDS, "other"):
        print(f"backend {backend}: {passed[backend]} tests passed, {skipped[backend]} skipped")


if __name__ == "__main__":
    main()
