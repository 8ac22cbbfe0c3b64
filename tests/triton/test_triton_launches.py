"""What the Triton backend launches: recorded, with kernels compiled for a GPU and none run."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from interpreted_triton import why_not_interpreted
from source_tree import ROOT, SUPPORT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not_interpreted() is not None, reason=str(why_not_interpreted())),
]

WORKER = SUPPORT / "triton_launches_worker.py"
FRONT_END = SUPPORT / "triton_front_worker.py"
SPLIT = ["reduce_kernel", "finish_and_scale_kernel"]
PROGRAMS = 8
"""Seven chunks of 100,000 elements, and a group of two small tensors."""


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
    assert found["variants"] == 1 + 5 + 5 * (4 + 5 * 5)


def test_nothing_is_compiled_again_for_another_list() -> None:
    counts: dict[str, dict[str, int]] = json.loads(run(str(WORKER), "fifty_lists"))
    once = ["clip_kernel", *SPLIT]
    assert {name: counts["first"].get(name) for name in once} == dict.fromkeys(once, 1)
    assert counts["after"] == counts["first"]
    another = counts["with another mix"]
    assert {name: another[name] for name in once} == dict.fromkeys(once, 2)


def test_a_clip_is_two_launches() -> None:
    for mode in ("auto", "split"):
        launches = forms()[mode]
        assert kernels(launches) == SPLIT
        assert not any(launch["is_cooperative"] for launch in launches)
        assert [launch["programs"] for launch in launches] == [PROGRAMS] * 2


def test_a_fused_clip_is_one_cooperative_launch() -> None:
    (launch,) = forms()["fused"]
    assert (launch["kernel"], launch["is_cooperative"]) == ("clip_kernel", True)
    assert launch["programs"] == PROGRAMS


def test_a_fused_clip_that_is_refused_raises_and_is_tried_again() -> None:
    found = forms()
    errors = [kernels(found[f"fused, refused {number}"]) for number in range(3)]
    assert all(len(texts) == 1 for texts in errors)
    assert errors[0] == [
        "fastclip: the clip mode is fused: Triton cannot launch clip_kernel on device cpu: "
        "RuntimeError: Triton Error [CUDA]: too many blocks in cooperative launch"
    ]
    assert kernels(found["fused again"]) == ["clip_kernel"]


def test_a_refusal_is_remembered_and_a_lack_of_memory_is_not() -> None:
    found = forms()
    for name, why in (("out of memory", "out of memory"), ("broken", "invalid device function")):
        (text,) = kernels(found[name])
        assert str(text).startswith(
            'clip_grad_norm_: backend "triton" cannot run this: Triton cannot launch reduce_kernel '
            f"on device cpu: RuntimeError: Triton Error [CUDA]: {why}"
        )
    assert kernels(found["memory again"]) == SPLIT
    assert kernels(found["broken before"]) == kernels(found["broken"])
    assert len(found["not raised"]) == 1


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
    # 18 fields and three words for each of 100 tensors, 64 in a launch.
    writes = ["write_words_kernel"] * 5
    assert kernels(forms()["auto, captured"]) == [*writes, *SPLIT]
    assert kernels(forms()["fused, captured"]) == [*writes, "clip_kernel"]


def test_what_each_operation_launches() -> None:
    found: dict[str, list[str]] = json.loads(run(str(WORKER), "operations"))
    check = "reduce_kernel"  # of maxima, for found_inf
    writes = "write_words_kernel"
    assert found == {
        "clip": SPLIT,
        "clip without writes": ["reduce_kernel", "finish_kernel"],
        "reduce": ["reduce_kernel", "finish_kernel"],
        "finish": ["finish_kernel"],
        "scale": ["scale_kernel"],
        "scale by each": ["scale_kernel"],
        "scale by a norm": ["scale_kernel"],
        "scale into": ["scale_into_kernel"],
        "clamp": ["clamp_kernel"],
        "unscale and clamp": ["clamp_kernel"],
        "held, scale into": ["scale_into_kernel"],
        "held, scale": ["scale_kernel"],
        "held, scale again": [check, "scale_kernel"],
        "held, another flag": [check, "clamp_kernel"],
        "held, clamp": ["clamp_kernel"],
        "not held, scale into": [check, "scale_into_kernel"],
        "not held, scale": [check, "scale_kernel"],
        "not held, scale again": [check, "scale_kernel"],
        "not held, another flag": [check, "clamp_kernel"],
        "not held, clamp": [check, "clamp_kernel"],
        "fused clip": ["clip_kernel"],
        "fused mode, no writes": ["reduce_kernel", "finish_kernel"],
        "captured finish": [writes, "finish_kernel"],
        "captured scale": [writes, check, "scale_kernel"],
    }


def test_the_words_in_arguments_are_those_of_the_list() -> None:
    found: dict[str, list[int]] = json.loads(run(str(WORKER), "words"))
    wanted = found["wanted"]
    assert found["sent"][: len(wanted)] == wanted
    assert len(found["sent"]) % 64 == 0 and not any(found["sent"][len(wanted) :])


def test_host_time_is_measured_for_each_list(tmp_path: Path) -> None:
    run(str(ROOT / "bench"), "triton_host", "--rounds", "10", "--json", str(tmp_path / "host.json"))
    rows = json.loads((tmp_path / "host.json").read_text(encoding="utf-8"))
    assert [row["tensors"] for row in rows] == [10, 100, 1000]
    assert all(value > 0 for row in rows for value in row.values())
    assert all("clipper, packed by torch, us" in row for row in rows)
