"""The counts of passed tests per backend that CI prints."""

from xml.etree import ElementTree

from count_backends import count

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_clip_grad" name="test_scale[native-float32]" />
<testcase classname="tests.test_clip_grad" name="test_scale[reference-float32]" />
<testcase classname="tests.test_clip_grad" name="test_scale[native-bfloat16]"><failure /></testcase>
<testcase classname="tests.test_clip_grad" name="test_scale[native-2d]"><skipped /></testcase>
<testcase classname="tests.test_clip_grad" name="test_both[native-reference]" />
<testcase classname="tests.test_reference" name="test_empty" />
<testcase classname="tests.test_gpu" name="test_native_norm"><skipped /></testcase>
<testcase classname="tests.test_demo" name="test_a_limit_on_the_gpu" />
<testcase classname="tests.test_clip_grad" name="test_scale[triton-float32]" />
<testcase classname="tests.test_house" name="test_alternative_imports"><error /></testcase>
<testcase classname="tests.test_house" name="test_alternative_includes" />
</testsuite></testsuites>"""


def test_passed_and_skipped_tests_are_counted_by_backend() -> None:
    passed, skipped = count(ElementTree.fromstring(REPORT))
    assert passed == {"native": 2, "reference": 3, "triton": 1, "other": 2}
    assert skipped == {"native": 1, "gpu": 1}
