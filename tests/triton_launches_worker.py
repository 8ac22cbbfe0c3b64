"""Runs calls of the Triton backend with recorded launches and prints what was launched, as JSON.

A process of its own: Triton's functions are made for its interpreter or for its compiler.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from samples import gradient, parameters

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

from recorded_triton import Recorder, compilations, record

import fastclip
from fastclip.backends.clip_mode import set_clip_mode
from fastclip.backends.triton import call, launches, packing


def clip(sizes: list[int], *dtypes: torch.dtype, norm_type: float = 2.0) -> None:
    """Clip a list of gradients."""
    made = [gradient(size, dtypes[i % len(dtypes)]) for i, size in enumerate(sizes)]
    fastclip.clip_grad_norm_(parameters(made), 0.5, norm_type, backend="triton")


def taken(recorder: Recorder) -> list[dict[str, object]]:
    """Return the launches since the last time."""
    found = [asdict(launch) for launch in recorder.launches]
    recorder.launches.clear()
    return found


def fifty_lists(recorder: Recorder) -> object:
    """Clip 50 different lists of the same dtypes, in every way, then two other mixes."""
    generator = torch.Generator().manual_seed(0)
    clip([5000, 7], torch.float32, torch.bfloat16)
    first = compilations()
    for i in range(50):
        count = 2 + 2 * i
        sizes = torch.randint(1, 30_000, (count,), generator=generator).tolist()
        clip(sizes, torch.float32, torch.bfloat16)
        clipper = fastclip.GradClipper(
            parameters([gradient(size, torch.float32) for size in (sizes[0], 16, 100_000)]
                       + [gradient(i + 1, torch.bfloat16)]),
            float(i), backend="triton",
        )  # fmt: skip
        clipper.clip_()
    after = compilations()
    clip([5000, 7], torch.float16)
    clip([70, 7000], torch.float16)
    return {"first": first, "after": after, "with another mix": compilations()}


def forms(recorder: Recorder) -> object:
    """Clip in each form, refused, and while a graph is captured."""
    sizes = [100_000, 300, 17]
    found: dict[str, object] = {}

    def run(name: str, body: Callable[[], None]) -> None:
        recorder.launches.clear()
        try:
            body()
            found[name] = taken(recorder)
        except RuntimeError as error:
            found[name] = [*taken(recorder), {"error": str(error)}]

    clip(sizes, torch.float32)  # compiles
    run("auto", lambda: clip(sizes, torch.float32))
    refusals = (
        "Triton Error [CUDA]: too many blocks in cooperative launch",
        "Triton Error [CUDA]: operation not supported",
        "Triton Error [HIP]:  Code: 720, Messsage: cooperative launch too large",
        "Triton Error [CUDA]: an illegal memory access was encountered",
    )
    for text in refusals:
        recorder.errors.append(text)
        run(text, lambda: clip(sizes, torch.float32))
    set_clip_mode("fused")
    recorder.errors.append(refusals[0])
    run("fused, refused", lambda: clip(sizes, torch.float32))
    run("fused", lambda: clip(sizes, torch.float32))
    set_clip_mode("split")
    run("split", lambda: clip(sizes, torch.float32))
    set_clip_mode("auto")
    call.is_capturing = launches.is_capturing = lambda device: True
    run("captured", lambda: clip([33] * 100, torch.float32))
    run("compiled", lambda: None)
    return found


def words(recorder: Recorder) -> object:
    """Return the words that kernels carry in their arguments, and those of the packed list."""
    call.is_capturing = launches.is_capturing = lambda device: True
    grads = [gradient(size, torch.float32) for size in range(1, 120)]
    packed = packing.pack_parameters(parameters(grads), True)
    one = call.Call(packed)
    one.upload()
    wanted = torch.empty(one._used, dtype=torch.int64)
    packed.write(wanted, one._fields, [])
    sent: dict[int, int] = {}
    for launch in recorder.launches:
        address, first, *values = launch.arguments
        if address != one.address:
            raise ValueError("words: must be written to the call's memory")
        sent |= {first + i: value for i, value in enumerate(values)}
    return {"wanted": wanted.tolist(), "sent": [sent[i] for i in sorted(sent)]}


if __name__ == "__main__":
    scenario = {"fifty_lists": fifty_lists, "forms": forms, "words": words}[sys.argv[1]]
    print(json.dumps(scenario(record())))
