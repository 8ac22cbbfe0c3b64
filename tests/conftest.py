"""The backends that the tests of the public functions run on."""

import os
from collections.abc import Iterator

import emulated_native
import interpreted_triton
import pytest
from toolkit import why_no_emulator

import fastclip
from fastclip.backends import NATIVE, REFERENCE, TRITON
from fastclip.backends.base import Backend

LONGEST = (
    "triton/test_compiled_triton.py",
    "cuda/test_compiled_code.py",
    "cuda/test_cuda_kernels.py",
    "distributed/test_dtensor.py",
)
"""Files that take longest: they run first, so that no process is left with one of them alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(LONGEST)))


def _require(name: str | None) -> None:
    reasons = fastclip.backend_report()[name] if name else []
    if not reasons:
        return
    _refuse(f"the backend {name} cannot run here: {'; '.join(reasons)}")


def _refuse(because: str) -> None:
    if os.environ.get("FASTCLIP_REQUIRE_NATIVE"):
        pytest.fail(f"{because} (and FASTCLIP_REQUIRE_NATIVE is set)")
    pytest.skip(because)


def _require_emulator() -> None:
    because = why_no_emulator()
    if because is not None:
        pytest.skip(because)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[emulated_native.Emulated]:
    """Let the backend "native" run its CUDA kernels on CPU tensors, over the emulator."""
    _require_emulator()
    with emulated_native.in_use(monkeypatch) as in_use:
        yield in_use


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the backend "triton" run its kernels on CPU tensors, in Triton's interpreter."""
    because = interpreted_triton.why_not_interpreted()
    if because is not None:
        _refuse(because)
    with interpreted_triton.in_use(monkeypatch):
        yield


@pytest.fixture(
    params=[None, "reference", "native", "emulated", "triton"], ids=lambda name: name or "default"
)
def backend(request: pytest.FixtureRequest) -> str | None:
    """Return what to pass as ``backend=``: each backend by name, and None for fastclip's choice.

    "emulated" is native with its CUDA kernels, over the emulator; "triton" is interpreted.
    """
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "native"
    if request.param == "triton":
        request.getfixturevalue("interpreted")
        return "triton"
    _require(request.param)
    return request.param


@pytest.fixture(params=["reference", "native", "emulated", "triton"])
def engine(request: pytest.FixtureRequest) -> Backend:
    """Return each backend; "emulated" is native with its CUDA kernels, "triton" is interpreted."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return NATIVE
    if request.param == "triton":
        request.getfixturevalue("interpreted")
        return TRITON
    _require(request.param)
    return NATIVE if request.param == "native" else REFERENCE


@pytest.fixture(params=[None, "reference"], ids=lambda name: name or "default")
def any_tensor_backend(request: pytest.FixtureRequest) -> str | None:
    """Return the values of ``backend=`` that take every kind of tensor."""
    return request.param
