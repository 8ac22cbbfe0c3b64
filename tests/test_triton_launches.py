"""What the Triton backend launches: recorded, with kernels compiled for a GPU and none run."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from interpreted_triton import why_not_interpreted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not_interpreted() is not None, reason=str(why_not_interpreted())),
]

WORKER = Path(__file__).with_name("triton_launches_worker.py")
FRONT_END = Path(__file__).with_name("triton_front_worker.py")
HOST_TIME = WORKER.parents[1] / "bench" / "triton_host.py"
PROGRAMS = 6
"""400,000 bytes in pieces of 64 KiB."""


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def forms() -> dict[str, list[dict[str, object]]]:
    """Return what each form of a clip launched."""
    return json.loads(run(str(WORKER), "forms"))


def kernels(launches: list[dict[str, object]]) -> list[object]:
    return [launch.get("kernel", launch.get("error")) for launch in launches]


def test_every_variant_passes_tritons_front_end() -> None:
    found = json.loads(run(str(FRONT_END)))
    assert found["refused"] == {}
    assert found["variants"] == 1 + 5 + 5 * (3 + 5 * 5)


def test_nothing_is_compiled_again_for_another_list() -> None:
    counts: dict[str, dict[str, int]] = json.loads(run(str(WORKER), "fifty_lists"))
    once = ["clip_kernel", "reduce_kernel", "finish_and_scale_kernel"]
    assert {name: counts["first"].get(name) for name in once} == dict.fromkeys(once, 1)
    assert counts["after"] == counts["first"]
    another = counts["with another mix"]
    assert {name: another[name] for name in once} == dict.fromkeys(once, 2)


def test_a_clip_is_one_cooperative_launch() -> None:
    (launch,) = forms()["auto"]
    assert (launch["kernel"], launch["is_cooperative"]) == ("clip_kernel", True)
    assert launch["programs"] == PROGRAMS
    (fused,) = forms()["fused"]
    assert fused["kernel"] == "clip_kernel"


def test_a_refused_launch_is_two() -> None:
    found = forms()
    split = ["reduce_kernel", "finish_and_scale_kernel"]
    refusals = [name for name in found if name.startswith("refused")]
    assert len(refusals) == 4
    for name in ["split", "out of memory", *refusals]:
        assert kernels(found[name]) == split, name
        assert not any(launch["is_cooperative"] for launch in found[name])


def test_a_refusal_is_remembered_and_a_lack_of_memory_is_not() -> None:
    found = forms()
    assert len(found["not raised"]) == 1
    assert kernels(found["fewer programs"]) == ["clip_kernel"]
    assert kernels(found["memory again"]) == ["clip_kernel"]


def test_a_refusal_of_the_form_that_was_asked_for_raises() -> None:
    (text,) = kernels(forms()["fused, refused"])
    assert text == (
        "fastclip: the clip mode is fused: Triton cannot launch clip_kernel on device cpu: "
        "RuntimeError: Triton Error [CUDA]: too many blocks in cooperative launch"
    )


def test_a_kernel_that_does_not_compile_is_tried_once_and_torch_clips() -> None:
    found = json.loads(run(str(WORKER), "failures"))
    reason = (
        "Triton cannot launch reduce_kernel on device cpu: OutOfResources: out of resource: "
        "shared memory, Required: 300, Hardware limit: 200"
    )
    for error in found["errors"]:
        assert error.startswith(f'clip_grad_norm_: backend "triton" cannot run this: {reason}')
    assert len(found["errors"]) == 2
    assert found["tried"] == ["reduce_kernel"]
    assert found["unwritten"] and found["clipped"]
    (warning,) = found["warnings"]
    assert warning.startswith(
        f"fastclip: CUDA gradients are clipped with torch operations: {reason}"
    )


def test_a_captured_clip_carries_its_words_in_arguments() -> None:
    names = kernels(forms()["captured"])
    # 18 fields and three words for each of 100 tensors, 64 in a launch.
    assert names == [*["write_words_kernel"] * 5, "reduce_kernel", "finish_and_scale_kernel"]


def test_the_words_in_arguments_are_those_of_the_list() -> None:
    found: dict[str, list[int]] = json.loads(run(str(WORKER), "words"))
    wanted = found["wanted"]
    assert found["sent"][: len(wanted)] == wanted
    assert len(found["sent"]) % 64 == 0 and not any(found["sent"][len(wanted) :])


def test_host_time_is_measured_for_each_list(tmp_path: Path) -> None:
    run(str(HOST_TIME), "--rounds", "10", "--json", str(tmp_path / "host.json"))
    rows = json.loads((tmp_path / "host.json").read_text(encoding="utf-8"))
    assert [row["tensors"] for row in rows] == [10, 100, 1000]
    assert all(value > 0 for row in rows for value in row.values())
    assert all("clipper, packed by torch, us" in row for row in rows)
