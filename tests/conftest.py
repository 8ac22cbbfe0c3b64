"""The backends that the tests of the public functions run on."""

import os

import pytest

import fastclip


def _require(name: str | None) -> None:
    reasons = fastclip.backend_report()[name] if name else []
    if not reasons:
        return
    because = f"the backend {name} cannot run here: {'; '.join(reasons)}"
    if os.environ.get("FASTCLIP_REQUIRE_NATIVE"):
        pytest.fail(f"{because} (and FASTCLIP_REQUIRE_NATIVE is set)")
    pytest.skip(because)


@pytest.fixture(params=[None, "reference", "native"], ids=lambda name: name or "default")
def backend(request: pytest.FixtureRequest) -> str | None:
    """Return what to pass as ``backend=``: each backend by name, and None for fastclip's choice."""
    _require(request.param)
    return request.param


@pytest.fixture(params=[None, "reference"], ids=lambda name: name or "default")
def any_tensor_backend(request: pytest.FixtureRequest) -> str | None:
    """Return the values of ``backend=`` that take every kind of tensor."""
    return request.param
