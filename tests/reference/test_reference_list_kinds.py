"""Lists of the reference backend that hold tensors of every kind, or are being traced."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import oracle
import pytest
import torch
from list_cases import Marked, flag, gathered, scalar, unreadable
from reference_calls import REFERENCE
from samples import copies, gradient, parameters, sparse_gradient, versions
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from fastclip.backends.base import GradList
from fastclip.backends.request import Coefficient, Kind, Norms, clip_request


def rows() -> list[Tensor]:
    return [gradient((size, 3), torch.float32, size) for size in (2, 0, 5)]


def ragged(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor(rows(), layout=layout)


def sparse() -> Tensor:
    """Return an uncoalesced sparse gradient whose sums are exact in float32."""
    grad = sparse_gradient()
    grad._values().mul_(64).round_().div_(64)
    return grad


KINDS: dict[str, Callable[[], Tensor]] = {
    "sparse": sparse,
    "coalesced": lambda: sparse().coalesce(),
    "csr": lambda: gradient((6, 8), torch.float32).relu().to_sparse_csr(),
    "bsr": lambda: gradient((6, 8), torch.float32).relu().to_sparse_bsr((2, 2)),
    "nested": lambda: ragged(torch.strided),
    "jagged": lambda: ragged(torch.jagged),
    "gaps": lambda: gradient((30, 40), torch.float32)[::2, ::3],
    "conj": lambda: gradient((5, 4), torch.complex64).conj(),
    "neg": lambda: gradient((5, 4), torch.complex64).conj().imag,
    "subclass": lambda: gradient((5, 4), torch.float32).as_subclass(Marked),
    "wrapper": lambda: TwoTensor(gradient(9, torch.float32), gradient(9, torch.float32)),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support is in beta",
    "ignore:Sparse BSR tensor support is in beta",
    "ignore:The PyTorch API of nested tensors is in prototype stage",
)


def values_of(tensor: Tensor) -> Tensor:
    """Return the elements of a tensor of any kind as one real or complex vector: a copy."""
    tensor = tensor.detach()
    if isinstance(tensor, TwoTensor):
        tensor = tensor.a
    if tensor.is_nested:
        return torch.cat([part.reshape(-1) for part in tensor.unbind()])
    dense = tensor.clone() if tensor.layout is torch.strided else tensor.to_dense()
    return dense.as_subclass(Tensor).resolve_conj().resolve_neg().reshape(-1).clone()


def set_value(tensor: Tensor, value: float) -> None:
    """Replace one element of a tensor of any kind."""
    if isinstance(tensor, TwoTensor):
        set_value(tensor.a, value)
        set_value(tensor.b, value)
    elif tensor.is_nested:
        set_value(tensor.unbind()[2], value)
    elif tensor.layout is torch.sparse_coo:
        tensor._values()[0, 0] = value
    elif tensor.layout is not torch.strided:
        tensor.values().view(-1)[0] = value
    elif tensor.dim() > 1:
        tensor[1, 1] = value
    else:
        tensor[1] = value


def with_others(grad: Tensor) -> list[Tensor]:
    """Return a list; what multiplies a wrapper's two tensors is two factors for any other."""
    return [grad] if isinstance(grad, TwoTensor) else [gradient(7, torch.float32), grad]


def is_close(actual: Tensor, expected: Tensor) -> bool:
    """Compare with a product: the terms of one index are rounded one by one, others once."""
    return torch.allclose(actual, expected, rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("norm_type", (2.0, 1.0, math.inf, 0.0, -1.0))
@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_every_kind(kind: str, norm_type: float) -> None:
    grads = with_others(KINDS[kind]())
    plain = [values_of(grad) for grad in grads]
    found_inf = flag()
    sums = gathered(grads).reduce(norm_type, dtype=torch.float64, found_inf=found_inf)
    norms = values_of(sums.norms()[0])
    if kind in ("csr", "bsr", "sparse", "coalesced") and norm_type < 0:
        return  # of the values that are stored, not of the zeros between them
    for value, grad in zip(norms.tolist(), plain, strict=True):
        assert oracle.is_norm(value, oracle.tensor_norm(grad, norm_type), torch.float64)
    assert found_inf.item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_clip_of_every_kind(kind: str) -> None:
    grads = with_others(KINDS[kind]())
    plain = [values_of(grad) for grad in grads]
    [old_version] = versions(grads[-1:])
    found_inf = flag()
    request = clip_request(0.5, inv_scale=scalar(0.25), found_inf=found_inf)
    norm = gathered(grads).clip(request).total_norm
    assert norm is not None
    [norm] = values_of(norm)
    assert oracle.is_norm(norm.item(), 0.25 * oracle.total_norm(plain, 2.0), torch.float32)
    coef = float(np.float32(oracle.clip_coef(0.5, norm)) * np.float32(0.25))
    for grad, old in zip(grads, plain, strict=True):
        assert is_close(values_of(grad), old * coef)
    assert type(grads[-1]) is type(KINDS[kind]())
    assert grads[-1].layout is KINDS[kind]().layout
    assert grads[-1]._version > old_version
    assert found_inf.item() == 0


OPERATIONS: dict[str, Callable[[GradList, Tensor], object]] = {
    "clip": lambda grads, found_inf: grads.clip(clip_request(0.01, found_inf=found_inf)),
    "scale": lambda grads, found_inf: grads.scale(
        torch.tensor(0.5), inv_scale=scalar(0.5), found_inf=found_inf
    ),
    "clamp": lambda grads, found_inf: grads.clamp(0.1, found_inf=found_inf),
    "clamp by a scale": lambda grads, found_inf: grads.clamp(
        0.1, inv_scale=scalar(0.5), found_inf=found_inf
    ),
}


@pytest.mark.parametrize("value", (math.nan, -math.inf))
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_flag_keeps_every_kind_as_it_is(kind: str, name: str, value: float) -> None:
    if kind == "conj" and name.startswith("clamp"):
        return
    for is_set, is_readable in itertools.product((False, True), (False, True)):
        if kind == "wrapper" and not is_readable:
            continue  # it takes no other subclass
        grads = with_others(KINDS[kind]())
        if not is_set:
            set_value(grads[-1], value)
        plain = [values_of(grad) for grad in grads]
        assert is_set or not torch.isfinite(plain[-1]).all()
        [old_version] = versions(grads[-1:])
        found_inf = flag(float(is_set)) if is_readable else unreadable(flag(float(is_set)))
        OPERATIONS[name](gathered(grads), found_inf)
        assert found_inf.item() == 1
        for grad, old in zip(grads, plain, strict=True):
            torch.testing.assert_close(values_of(grad), old, rtol=0, atol=0, equal_nan=True)
        assert grads[-1]._version > old_version


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "conj"])
def test_clamp_of_every_kind(kind: str) -> None:
    grads = with_others(KINDS[kind]())
    plain = [values_of(grad) for grad in grads]
    found_inf = flag() if kind == "wrapper" else unreadable(flag())
    gathered(grads).clamp(0.3, inv_scale=scalar(0.5), found_inf=found_inf)
    for grad, old in zip(grads, plain, strict=True):
        assert torch.equal(values_of(grad), (old * 0.5).clamp(-0.3, 0.3))
    assert found_inf.item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_every_kind_has_its_own_coefficient(kind: str) -> None:
    grads = [*with_others(KINDS[kind]()), gradient(3, torch.bfloat16)]
    plain = [values_of(grad) for grad in grads]
    coefs = torch.tensor([0.5, 0.25, 3.0])[-len(grads) :]
    gathered(grads).scale([coefs], found_inf=flag())
    for grad, old, coef in zip(grads, plain, coefs.clamp(max=1.0), strict=True):
        assert torch.equal(values_of(grad), old * coef)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "neg"])
def test_products_of_every_kind_into_other_tensors(kind: str) -> None:
    grad = KINDS[kind]()
    plain = values_of(grad)
    target = torch.zeros_like(grad) if grad.layout is torch.sparse_coo else KINDS[kind]()
    gathered([grad]).scale_into([target], 3.0, inv_scale=scalar(0.25), found_inf=flag(1.0))
    assert torch.equal(values_of(target), plain * 0.75)
    assert torch.equal(values_of(grad), plain)
    with pytest.raises(ValueError, match="target 0 must have"):
        gathered([grad]).scale_into([torch.zeros(3)], 2.0)


@pytest.mark.parametrize("layout", (torch.strided, torch.jagged))
def test_the_version_of_a_nested_gradient_goes_up_by_one(layout: torch.layout) -> None:
    grad = ragged(layout)
    for act in OPERATIONS.values():
        [before] = versions([grad])
        act(gathered([grad]), flag())
        assert versions([grad]) == [before + 1]


def test_a_scale_of_terms_may_overflow_only_in_their_sum() -> None:
    values = torch.full((2,), 40000.0, dtype=torch.float16)
    grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), values, (3,), check_invariants=True)
    found_inf = flag()
    gathered([grad]).scale(0.25, found_inf=found_inf)
    assert found_inf.item() == 0
    assert grad.to_dense().tolist() == [0, 20000, 0]


def test_meta_and_fake_tensors_are_never_read() -> None:
    def act(device: str) -> Norms:
        grads = [torch.ones(3, device=device), torch.ones(2, 2, device=device).bfloat16()]
        found_inf = torch.zeros((), device=device)
        inv_scale = torch.ones((), device=device)
        found = gathered(grads, "held tensors")
        sums = found.reduce(3.0, found_inf=found_inf)
        found.scale(torch.ones((), device=device), inv_scale=inv_scale, found_inf=found_inf)
        found.scale(0.5, inv_scale=inv_scale)
        found.scale([torch.ones(2, device=device)])
        found.scale(Coefficient(1.0, sums.total.float()))
        found.clamp(0.5, inv_scale=inv_scale, found_inf=found_inf)
        found.scale_into([torch.empty_like(grad) for grad in grads], 0.5, found_inf=found_inf)
        request = clip_request(1.0, inv_scale=inv_scale, found_inf=found_inf, keeps_norms=True)
        assert found.clip(request).parameter_norms().shape == (2,)
        return found.finish(sums.with_total(sums.total + sums.total), request)

    for norms in (act("meta"), None):
        if norms is None:
            with FakeTensorMode():
                norms = act("cpu")  # noqa: PLW2901
        assert norms.total_norm is not None
        assert (norms.total_norm.shape, norms.total_norm.dtype) == ((), torch.float32)


def in_two_steps(grads: GradList, inv_scale: Tensor, found_inf: Tensor) -> Tensor | None:
    held = grads.hold()
    sums = held.reduce(3.0, found_inf=found_inf)
    norms = held.finish(sums, clip_request(0.5, inv_scale=inv_scale))
    held.scale(norms.clip_coef, inv_scale=inv_scale, found_inf=found_inf)
    return norms.total_norm


TRACED: dict[str, Callable[[GradList, Tensor, Tensor], object]] = {
    "clip": lambda grads, inv_scale, found_inf: (
        grads.clip(clip_request(0.5, inv_scale=inv_scale, found_inf=found_inf)).total_norm
    ),
    "clip by the maximum": lambda grads, inv_scale, found_inf: (
        grads.clip(clip_request(0.5, math.inf, inv_scale=inv_scale, found_inf=found_inf)).total_norm
    ),
    "two levels": lambda grads, inv_scale, found_inf: (
        grads.clip(clip_request(0.5, 0.0, inv_scale=inv_scale, found_inf=found_inf)).total_norm
    ),
    "clip by a scale": lambda grads, inv_scale, _: (
        grads.clip(clip_request(0.5, inv_scale=inv_scale)).total_norm
    ),
    "scale": lambda grads, inv_scale, found_inf: grads.scale(
        0.5, inv_scale=inv_scale, found_inf=found_inf
    ),
    "left": lambda grads, _, found_inf: grads.scale(torch.tensor(2.0), found_inf=found_inf),
    "scale by a norm": lambda grads, inv_scale, found_inf: grads.scale(
        Coefficient(0.5, torch.tensor(2.0)), inv_scale=inv_scale, found_inf=found_inf
    ),
    "clamp": lambda grads, inv_scale, found_inf: grads.clamp(
        0.5, inv_scale=inv_scale, found_inf=found_inf
    ),
    "in two steps": in_two_steps,
}


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("compiler", ("eager", "aot_eager"))
@pytest.mark.parametrize("name", TRACED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_operations_are_traced_as_one_graph(name: str, compiler: str) -> None:
    def run(held: list[Tensor], inv_scale: Tensor, found_inf: Tensor) -> object:
        return TRACED[name](REFERENCE.gather(held, Kind.PARAMETERS), inv_scale, found_inf)

    compiled = torch.compile(run, fullgraph=True, backend=compiler)
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.float32)
    made = [gradient(size, dtype, size) for size, dtype in zip((0, 70, 3, 4), dtypes, strict=True)]
    if name != "clamp":
        made.append(gradient(5, torch.complex64))
    for value, inv_scale, is_set in (
        (1.0, 0.25, 0.0),
        (1.0, 1.0, 0.0),
        (1.0, 0.25, 1.0),
        (math.nan, 0.25, 0.0),
        (-math.inf, 1.0, 0.0),
    ):
        made[1][3] = value
        made[-1].view(-1)[0] = value
        ours, theirs = copies(made), copies(made)
        flags = flag(is_set), flag(is_set)
        scale = torch.tensor(inv_scale)
        norm = compiled(parameters(ours), scale, flags[0])
        expected = run(parameters(theirs), scale, flags[1])
        assert flags[0].item() == flags[1].item() or "scale" in name
        rtol = oracle.TOLERANCE[torch.float64]
        torch.testing.assert_close(norm, expected, rtol=rtol, atol=0, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=rtol, atol=0, equal_nan=True)
