"""The arguments of operations on Triton's lists: which tensors kernels read, and which not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import oracle
import pytest
import torch
from samples import copies, gradient, versions
from torch import Tensor

from fastclip.backends import TRITON
from fastclip.backends.base import GradList, ReasonKind, RefusedError
from fastclip.backends.request import TENSORS, ClipRequest, Coefficient, Factor
from fastclip.backends.triton.arguments import Multiplier, Scalars, multiplier_for
from fastclip.backends.triton.packing import PackedList, pack_of

pytestmark = pytest.mark.usefixtures("interpreted")

ON_GPU = cast(PackedList, SimpleNamespace(size=3, device=0, holds=lambda _: False))
"""What a list on a GPU says of itself: enough to resolve factors that lie on the CPU."""


def gradients(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [gradient(size, dtype, seed=size) for size in (7, 5000, 33)]


NUMBERS: dict[str, tuple[Factor, float, bool]] = {
    "number": (0.1, 0.1, True),
    "integer": (2, 2.0, True),
    "float64": (torch.tensor(0.1, dtype=torch.float64), 0.1, True),
    "float32": (torch.tensor(0.1), torch.tensor(0.1).item(), False),
    "norm": (Coefficient(0.5, torch.tensor(3.0)), oracle.clip_coef(0.5, torch.tensor(3.0)), False),
    "bfloat16": (
        Coefficient(0.5, torch.tensor(3.0, dtype=torch.bfloat16)),
        oracle.clip_coef(0.5, torch.tensor(3.0)),
        False,
    ),
    "float64 norm": (
        Coefficient(0.5, torch.tensor(3.0, dtype=torch.float64)),
        oracle.clip_coef(0.5, torch.tensor(3.0, dtype=torch.float64)),
        True,
    ),
}


@pytest.mark.parametrize("case", NUMBERS)
@pytest.mark.parametrize("inverse", (None, 0.3))
def test_what_lies_on_the_cpu_is_a_number_for_a_gpu(case: str, inverse: float | None) -> None:
    from fastclip.backends.triton.launches import Launches

    by, number, is_float64 = NUMBERS[case]
    multiplier = multiplier_for(ON_GPU, by)
    assert multiplier == Multiplier(number=number, is_float64=is_float64)
    # A kernel on the GPU would multiply by this.
    grads = gradients(torch.float64)
    used = copies(grads)
    scalars = Scalars(None if inverse is None else torch.tensor(inverse), None)
    packed = pack_of(used, TENSORS, True)(True)
    Launches(torch.device("cpu")).scale(packed, multiplier, scalars, is_checked=False)
    dtype = torch.float64 if is_float64 else torch.float32
    factor = torch.tensor(number, dtype=dtype)
    if inverse is not None:
        factor = factor * torch.tensor(inverse, dtype=torch.float32).to(dtype)
    for result, grad in zip(used, grads, strict=True):
        is_written = factor.item() < 1 or inverse is not None
        wanted = oracle.scaled(grad, factor.item()) if is_written else oracle.values_of(grad)
        assert oracle.equal(result, wanted)


@pytest.mark.parametrize("place", (0, 19_999))
def test_scalars_within_a_gradient_are_read_before_that_is_written(place: int) -> None:
    operations: tuple[tuple[Callable[[GradList, Tensor], object], float], ...] = (
        (lambda listed, x: listed.scale(x), 0.25),
        (lambda listed, x: listed.scale(0.5, inv_scale=x), 0.125),
        (lambda listed, x: listed.clamp(9.0, inv_scale=x), 0.25),
        (lambda listed, x: listed.clip(ClipRequest(1e9, inv_scale=x)), 0.25),
    )
    for operation, factor in operations:
        grads = [torch.full((20_000,), 0.25) for _ in range(3)]
        operation(TRITON.gather(grads, TENSORS), grads[1][place])
        assert all(grad.eq(0.25 * factor).all() for grad in grads)


class Subclass(Tensor):
    """A tensor that may be anything."""


BAD_SCALARS = {
    "float64": (torch.tensor(1.0, dtype=torch.float64), ValueError, "must be a float32 tensor"),
    "two": (torch.ones(2), ValueError, "must be a float32 tensor of one element"),
    "number": (1.0, ValueError, "must be a plain tensor or None"),
    "elsewhere": (torch.ones((), device="meta"), RefusedError, "is on device meta"),
    "subclass": (torch.ones(()).as_subclass(Subclass), RefusedError, "is on device cpu"),
    "zero": (
        torch._efficientzerotensor(()),  # pyright: ignore[reportPrivateImportUsage]
        RefusedError,
        "is on device cpu",
    ),
}


@pytest.mark.parametrize("name", ("inv_scale", "found_inf"))
@pytest.mark.parametrize("case", BAD_SCALARS)
def test_scalars_that_kernels_cannot_read_are_refused(case: str, name: str) -> None:
    scalar, error, text = BAD_SCALARS[case]
    given = {name: scalar}
    grads = gradients()
    used = copies(grads)
    before, listed = versions(used), TRITON.gather(used, TENSORS)
    targets = [torch.zeros_like(grad) for grad in used]
    calls: list[Callable[[], object]] = [
        lambda: listed.clip(ClipRequest(0.5, **given)),
        lambda: listed.scale(0.5, **given),
        lambda: listed.scale_into(targets, 0.5, **given),
        lambda: listed.clamp(0.5, **given),
    ]
    if name == "found_inf":
        calls.append(lambda: listed.reduce(2.0, found_inf=scalar))
    else:
        calls.append(lambda: listed.finish(listed.reduce(2.0), ClipRequest(0.5, inv_scale=scalar)))
    for call in calls:
        with pytest.raises(error, match=f"{name} {text}") as caught:
            call()
        if isinstance(caught.value, RefusedError):
            assert [reason.kind for reason in caught.value.reasons] == [ReasonKind.CALL]
    assert versions(used) == before and not any(target.any() for target in targets)
    assert all(map(oracle.equal, used, map(oracle.values_of, grads)))


BAD_FACTORS: dict[str, tuple[object, type[Exception], str]] = {
    "vector": (torch.ones(3), ValueError, "must be 0-dim, float32 or float64"),
    "integer": (torch.tensor(1), ValueError, "must be 0-dim, float32 or float64"),
    "bfloat16": (torch.tensor(1.0, dtype=torch.bfloat16), ValueError, "float32 or float64"),
    "meta": (torch.ones((), device="meta"), RefusedError, "a coefficient is on device meta"),
    "no tensors": ([], ValueError, r"must be one tensor .* \(got 0\)"),
    "parts": ([torch.ones(3)] * 2, ValueError, r"must be one tensor .* \(got 2\)"),
    "count": ([torch.ones(4)], ValueError, "must be a contiguous vector of 3"),
    "gaps": ([torch.ones(6)[::2]], ValueError, "must be a contiguous vector of 3"),
    "integers": ([torch.ones(3, dtype=torch.int64)], ValueError, "float32 or float64"),
    "meta each": ([torch.ones(3, device="meta")], RefusedError, "coefficient is on device meta"),
    "norm": (Coefficient(1.0, torch.ones(1)), RefusedError, "total_norm must be a plain 0-dim"),
    "no norm": (Coefficient(1.0, 3.0), RefusedError, "total_norm must be a plain 0-dim"),  # pyright: ignore[reportArgumentType]
    "limit": (
        Coefficient(torch.ones((), device="meta"), torch.ones(())),
        RefusedError,
        "max_norm is on device meta",
    ),
}


@pytest.mark.parametrize("case", BAD_FACTORS)
def test_factors_that_kernels_cannot_read_are_refused(case: str) -> None:
    by, error, text = BAD_FACTORS[case]
    grads = gradients()
    used = copies(grads)
    before, listed = versions(used), TRITON.gather(used, TENSORS)
    targets = [torch.zeros_like(grad) for grad in used]
    for call in (lambda: listed.scale(by), lambda: listed.scale_into(targets, by)):  # pyright: ignore[reportArgumentType]
        with pytest.raises(error, match=text):
            call()
    assert versions(used) == before and not any(target.any() for target in targets)
    assert all(map(oracle.equal, used, map(oracle.values_of, grads)))
