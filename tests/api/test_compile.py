"""Clipping inside torch.compile: one graph, the eager result."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
from samples import gradient, parameters
from torch import Tensor

import fastclip
from fastclip.backends import base, extension

NOT_BUILT = (base.Reason(base.ReasonKind.CALL, "fastclip._C is not built"),)

OUTSIDE = 0
"""The number of nodes in the graphs if nothing of a clip is traced."""

Clip = Callable[[list[Tensor]], Tensor | None]


def some_parameters() -> list[Tensor]:
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float32)
    sizes = (4, 700, 3, 0)
    return parameters([gradient(n, dtype, n) for n, dtype in zip(sizes, dtypes, strict=True)])


def assert_same(actual: object, expected: object) -> None:
    """Compare float64 as closely as sums in another order allow; nothing else may differ."""
    rtol = oracle.TOLERANCE[torch.float64]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)


def gradients(held: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in held if p.grad is not None]


CALLS: dict[str, Clip] = {
    "default": lambda held: fastclip.clip_grad_norm_(held, 1.0),
    "foreach_false": lambda held: fastclip.clip_grad_norm_(held, 1.0, foreach=False),
    "generator": lambda held: fastclip.clip_grad_norm_((p for p in held), 1.0),
    "one_tensor": lambda held: fastclip.clip_grad_norm_(held[0], 1.0),
    "inf": lambda held: fastclip.clip_grad_norm_(held, 1.0, math.inf),
    "two_level": lambda held: fastclip.clip_grad_norm_(held, 1.0, 0.0),
    "not_clipped": lambda held: fastclip.clip_grad_norm_(held, 1e9),
    "shared": lambda held: fastclip.clip_grad_norm_([held[0], held[1], held[0]], 1.0),
    "reference": lambda held: fastclip.clip_grad_norm_(held, 1.0, backend="reference"),
    "total_norm": lambda held: fastclip.get_total_norm(gradients(held)),
    "with_norm": lambda held: fastclip.clip_grads_with_norm_(held, 1.0, torch.tensor(7.0)),
    "value": lambda held: fastclip.clip_grad_value_(held, 0.5),
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("compiler", ("eager", "aot_eager"))
@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_graph_with_the_eager_result(name: str, compiler: str) -> None:
    compiled, eager = some_parameters(), some_parameters()
    norm = torch.compile(CALLS[name], fullgraph=True, backend=compiler)(compiled)
    assert_same(norm, CALLS[name](eager))
    for a, b in zip(compiled, eager, strict=True):
        assert_same(a.grad, b.grad)


# inductor compiles what it makes with a C++ compiler: one call, because each takes seconds.
@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_gives_the_eager_result() -> None:
    compiled, eager = some_parameters(), some_parameters()
    norm = torch.compile(CALLS["default"], fullgraph=True)(compiled)
    assert_same(norm, CALLS["default"](eager))
    for a, b in zip(compiled, eager, strict=True):
        assert_same(a.grad, b.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_graph_is_reused_for_new_values() -> None:
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(1)
        return graph.forward

    clip = torch.compile(CALLS["default"], fullgraph=True, backend=count)
    for scale in (1.0, 1e-3, 100.0):
        compiled, eager = some_parameters(), some_parameters()
        for p in (*compiled, *eager):
            assert p.grad is not None
            p.grad.mul_(scale)
        assert_same(clip(compiled), CALLS["default"](eager))
    assert len(graphs) == 1


def test_nonfinite_error_is_the_eager_one() -> None:
    held = parameters([torch.tensor([1.0, math.nan])])

    def clip(held: list[Tensor]) -> Tensor:
        return fastclip.clip_grad_norm_(held, 1.0, error_if_nonfinite=True)

    with pytest.raises(RuntimeError, match=r"non-finite gradients: 0 \(2,\)"):
        torch.compile(clip, backend="eager")(held)
    assert oracle.equal(gradients(held)[0], oracle.scaled(torch.tensor([1.0, math.nan]), 1.0))


def test_unknown_backend_is_a_value_error() -> None:
    held = parameters([torch.ones(3)])

    def clip(held: list[Tensor]) -> Tensor:
        return fastclip.clip_grad_norm_(held, 1.0, backend="nonsense")

    with pytest.raises(ValueError, match="backend must be one of"):
        torch.compile(clip, backend="eager")(held)


@pytest.mark.parametrize("name", ("native", "triton", "triton without fastclip._C"))
@pytest.mark.filterwarnings("ignore")  # torch warns of what it cannot trace
def test_kernels_break_the_graph_and_run_outside_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = name.partition(" ")[0]
    if fastclip.backend_report()[backend]:
        pytest.skip(f"needs the backend {backend}")
    if backend != name:
        monkeypatch.setattr(extension, "load", lambda: NOT_BUILT)
    graphs: list[int] = []

    def count(module: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(len(module.graph.nodes))
        return module.forward

    def clip(held: list[Tensor]) -> list[Tensor | None]:
        grads = gradients(held)
        return [
            fastclip.clip_grad_norm_(held, 1.0, backend=backend),
            fastclip.get_total_norm(grads, backend=backend),
            fastclip.clip_grads_with_norm_(held, 1.0, torch.tensor(7.0), backend=backend),
            fastclip.clip_grad_value_(held, 0.1, backend=backend),
        ]

    compiled, eager = some_parameters(), some_parameters()
    assert_same(torch.compile(clip, backend=count)(compiled), clip(eager))
    assert_same(gradients(compiled), gradients(eager))
    assert sum(graphs) <= OUTSIDE, "a backend was traced"
