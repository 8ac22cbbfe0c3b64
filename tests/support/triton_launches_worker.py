"""Runs calls of the Triton backend with recorded launches and prints what was launched, as JSON.

This needs its own process: Triton's functions are made either for its interpreter or for its
compiler.
"""

import json
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from unittest.mock import patch

import torch
from recorded_triton import Recorder, compilations, record
from samples import gradient, parameters
from triton import JITFunction
from triton.runtime.errors import OutOfResources

import fastclip
from fastclip import backends
from fastclip.backends.base import Reason, ReasonKind, RefusedError
from fastclip.backends.clip_mode import MODES, set_clip_mode
from fastclip.backends.request import PARAMETERS, TENSORS, ClipRequest, Coefficient
from fastclip.backends.triton import answers, call, packing


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
    set_clip_mode("fused")
    clip([5000, 7], torch.float32, torch.bfloat16)
    first = compilations()
    for i in range(50):
        set_clip_mode(MODES[i % len(MODES)])
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
    for mode in MODES:
        set_clip_mode(mode)
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

    for mode in MODES:
        set_clip_mode(mode)
        clip(sizes, torch.float32)  # compiles
        run(mode, lambda: clip(sizes, torch.float32))
    set_clip_mode("fused")
    refusals = (
        RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch"),
        RuntimeError("Triton Error [HIP]:  Code: 720, Messsage: cooperative launch too large"),
        AssertionError("Cooperative launch requested but not supported by device"),
    )
    for number, error in enumerate(refusals):
        recorder.errors.append(error)
        run(f"fused, refused {number}", lambda: clip(sizes, torch.float32))
    run("fused again", lambda: clip(sizes, torch.float32))
    set_clip_mode("auto")
    recorder.errors.append(RuntimeError("Triton Error [CUDA]: out of memory"))
    run("out of memory", lambda: clip(sizes, torch.float32))
    run("memory again", lambda: clip(sizes, torch.float32))
    broken = RuntimeError("Triton Error [CUDA]: invalid device function")
    recorder.errors += [broken, broken]  # nobody asks again
    run("broken", lambda: clip(sizes, torch.float32))
    run("broken before", lambda: clip(sizes, torch.float32))
    found["not raised"] = [{"error": str(error)} for error in recorder.errors]
    recorder.errors.clear()
    answers.ANSWERS.refused.clear()
    with captured():
        for mode in ("auto", "fused"):
            set_clip_mode(mode)
            run(f"{mode}, captured", lambda: clip([33] * 100, torch.float32))
    return found


def captured() -> AbstractContextManager[object]:
    """Let the backend see a graph's capture on every device."""
    stack = ExitStack()
    for module in ("call", "launches"):
        name = f"fastclip.backends.triton.{module}.is_capturing"
        stack.enter_context(patch(name, lambda device: True))
    return stack


def operations(recorder: Recorder) -> object:
    """Run every operation of a list, held and not, and return the kernels that it launched."""
    grads = [gradient(size, torch.float32) for size in (5000, 7)]
    targets = [torch.empty_like(grad) for grad in grads]
    found, another, inv_scale = torch.zeros(()), torch.zeros(()), torch.ones(())
    listed = backends.TRITON.gather(grads, TENSORS)
    held = listed.hold()
    request = ClipRequest(0.5)
    sums = held.reduce(2.0)
    norm = Coefficient(0.5, torch.tensor(2.0))
    taken(recorder)
    kernels: dict[str, list[object]] = {}

    def run(name: str, body: Callable[[], object]) -> None:
        body()
        kernels[name] = [launch["kernel"] for launch in taken(recorder)]

    run("clip", lambda: listed.clip(request))
    run("clip without writes", lambda: listed.clip(request._replace(writes=False)))
    run("reduce", lambda: listed.reduce(2.0))
    run("finish", lambda: listed.finish(sums, request))
    run("scale", lambda: listed.scale(0.5))
    run("scale by each", lambda: listed.scale([torch.ones(2)], inv_scale=inv_scale))
    run("scale by a norm", lambda: listed.scale(norm, inv_scale=inv_scale))
    run("scale into", lambda: listed.scale_into(targets, 0.5, inv_scale=inv_scale))
    run("clamp", lambda: listed.clamp(0.5))
    run("unscale and clamp", lambda: listed.clamp(0.5, inv_scale=inv_scale))
    for name, each in (("held", held), ("not held", listed)):
        each.reduce(2.0, found_inf=found)
        taken(recorder)
        run(f"{name}, scale into", lambda each=each: each.scale_into(targets, 2, found_inf=found))
        run(f"{name}, scale", lambda each=each: each.scale(0.5, found_inf=found))
        run(f"{name}, scale again", lambda each=each: each.scale(0.5, found_inf=found))
        each.clip(request._replace(found_inf=found, writes=False))
        taken(recorder)
        run(f"{name}, another flag", lambda each=each: each.clamp(0.5, found_inf=another))
        each.clip(request._replace(found_inf=found, writes=False))
        taken(recorder)
        run(f"{name}, clamp", lambda each=each: each.clamp(0.5, found_inf=found))
    set_clip_mode("fused")
    run("fused clip", lambda: listed.clip(request))
    run("fused mode, no writes", lambda: listed.clip(request._replace(writes=False)))
    with captured():
        run("captured finish", lambda: listed.finish(sums, request))
        run("captured scale", lambda: listed.scale(0.5, found_inf=found))
    return kernels


def failures(recorder: Recorder) -> object:
    """Clip where a kernel does not compile; return errors, warnings and what was tried."""
    compile_kernel = JITFunction.run
    tried: list[str] = []

    def run(kernel: JITFunction[object], *arguments: object, **options: object) -> object:
        name = kernel.fn.__name__
        tried.append(name)
        if name == "reduce_kernel":
            raise OutOfResources(300, 200, "shared memory")
        return compile_kernel(kernel, *arguments, **options)

    before = gradient(5000, torch.float32)
    grad = before.clone()
    held = parameters([grad])
    errors: list[str] = []
    without_kernels = RefusedError([Reason(ReasonKind.CALL, "no kernels")])
    with (
        patch.object(JITFunction, "run", run),
        patch.object(backends.NATIVE, "gather", side_effect=without_kernels),
        warnings.catch_warnings(record=True) as caught,
    ):
        for _ in range(2):
            try:
                fastclip.clip_grad_norm_(held, 0.5, backend="triton")
            except RuntimeError as error:
                errors.append(str(error))
        unwritten = torch.equal(grad, before) and grad._version == 0
        warnings.simplefilter("always")
        fastclip.clip_grad_norm_(held, 0.5)
    return {
        "errors": errors,
        "tried": tried,
        "unwritten": unwritten,
        "clipped": not torch.equal(grad, before),
        "warnings": [str(warning.message) for warning in caught],
    }


def words(recorder: Recorder) -> object:
    """Return the words that kernels carry in their arguments, and those of the packed list."""
    grads = [gradient(size, torch.float32) for size in range(1, 120)]
    packed = packing.pack_of(parameters(grads), PARAMETERS, True)(True)
    one = call.Call(torch.device("cpu"), packed)
    with captured():
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
    scenarios = {
        "fifty_lists": fifty_lists,
        "forms": forms,
        "failures": failures,
        "operations": operations,
        "words": words,
    }
    print(json.dumps(scenarios[sys.argv[1]](record())))
