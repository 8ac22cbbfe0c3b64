"""A driver that records Triton's launches instead of making them: kernels compile, none runs.

For a process of its own with TRITON_INTERPRET=0. CPU tensors stand for tensors on a GPU; their
values stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget

from fastclip.backends.triton import call, loading

MULTIPROCESSORS = 132


@dataclass
class Launch:
    """One launch of a kernel."""

    kernel: str
    programs: int
    is_cooperative: bool
    arguments: tuple[int, ...]


@dataclass
class Recorder:
    """What was launched, and what the next launches are answered.

    Attributes:
        launches: in order.
        errors: what a driver would raise at the next launches, one for each; then nothing.
    """

    launches: list[Launch] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)


def record(capability: int = 90) -> Recorder:
    """Let every launch of this process be recorded from now on."""
    recorder = Recorder()
    driver = _driver(recorder, capability)
    triton.runtime.driver.set_active(driver)  # pyright: ignore[reportArgumentType]
    # The lists of CPU tensors are packed as for the interpreter, whose place the driver takes.
    loading.is_interpreted = lambda: True
    loading.import_reasons = lambda: ()
    properties = SimpleNamespace(warp_size=32, multi_processor_count=MULTIPROCESSORS)
    call._properties = lambda _: properties
    return recorder


def compilations() -> dict[str, int]:
    """Return how often each kernel has been compiled in this process."""
    from fastclip.backends.triton.device import kernels, table

    functions = {**vars(kernels), **vars(table)}
    return {
        name: len(kernel.device_caches[0][0])
        for name, kernel in functions.items()
        if name.endswith("_kernel") and kernel.device_caches
    }


def _driver(recorder: Recorder, capability: int) -> object:
    class Launcher:
        def __init__(self, _: object, metadata: SimpleNamespace) -> None:
            self._name, self._is_cooperative = metadata.name, metadata.launch_cooperative_grid

        def __call__(self, programs: int, *rest: object) -> None:
            if recorder.errors:
                raise recorder.errors.pop(0)
            # Two more dimensions, stream, function, metadata twice and two hooks.
            arguments = tuple(value for value in rest[8:] if isinstance(value, int))
            launch = Launch(self._name, programs, self._is_cooperative, arguments)
            recorder.launches.append(launch)

    utils = SimpleNamespace(
        get_device_properties=lambda _: {"max_shared_mem": 1 << 17},
        load_binary=lambda *_: (1, 1, 128, 0, 1024),
        unload_module=lambda _: None,
    )
    return SimpleNamespace(
        utils=utils,
        launcher_cls=Launcher,
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    )
