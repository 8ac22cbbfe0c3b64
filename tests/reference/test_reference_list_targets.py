"""Lists of the reference backend: products that are written to other tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from list_cases import (
    DTYPES,
    FACTORS,
    INV_SCALES,
    WAYS,
    are_products,
    bits_of,
    factor_of,
    flag,
    gathered,
    mixed_gradients,
    scalar,
    some_gradients,
)
from reference_calls import REFERENCE
from samples import copies, versions
from torch import Tensor

from fastclip.backends.request import Factor, Kind

ELSEWHERE: dict[str, tuple[Factor, float, torch.dtype]] = {
    **FACTORS,
    "one": (1.0, 1.0, torch.float64),
    "above": (2, 2.0, torch.float64),
    "above as a tensor": (torch.tensor(2.5), 2.5, torch.float32),
}


@pytest.mark.parametrize("way", [*WAYS, "read only"])
@pytest.mark.parametrize("inv_scale", INV_SCALES)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_products_into_other_tensors(name: str, inv_scale: float | None, way: str) -> None:
    by, value, dtype = ELSEWHERE[name]
    grads = mixed_gradients()
    kept, old_versions = bits_of(grads), versions(grads)
    targets = [torch.full_like(grad, math.nan) for grad in grads]
    found = REFERENCE.gather(grads, Kind.READ_ONLY) if way == "read only" else gathered(grads, way)
    found.scale_into(targets, by, inv_scale=scalar(inv_scale), found_inf=flag())
    scale = None if inv_scale is None else float(torch.tensor(inv_scale))
    assert are_products(targets, grads, factor_of(value, scale, dtype))
    assert bits_of(grads) == kept
    assert versions(grads) == old_versions


def test_products_are_written_elsewhere_whatever_the_flag() -> None:
    grads, found_inf = [torch.tensor([1.0, math.inf]), torch.ones(2)], flag()
    for coefs in ([torch.tensor([0.5, 3.0])], [torch.tensor([0.5, 3.0]).double()]):
        targets = [torch.empty(2), torch.empty(2)]
        gathered(grads).scale_into(targets, coefs, inv_scale=scalar(0.5), found_inf=found_inf)
        assert found_inf.item() == 1
        assert [t.tolist() for t in targets] == [[0.25, math.inf], [1.5, 1.5]]


def test_products_of_awkward_shapes_into_other_tensors() -> None:
    for dtype in DTYPES:
        grads = some_gradients(dtype)
        targets = copies(grads)
        gathered(grads).scale_into(targets, 0.123456789)
        assert are_products(targets, grads, 0.123456789)


def bad_targets() -> dict[str, Sequence[Tensor]]:
    base = torch.zeros(8)
    return {
        "too few": [torch.zeros(2, 3)],
        "shape": [torch.zeros(3, 2), torch.zeros(2)],
        "strides": [torch.zeros(3, 2).t(), torch.zeros(2)],
        "dtype": [torch.zeros(2, 3).double(), torch.zeros(2)],
        "device": [torch.zeros(2, 3, device="meta"), torch.zeros(2)],
        "layout": [torch.zeros(2, 3).to_sparse(), torch.zeros(2)],
        "shared": [base[:6].view(2, 3), base[5:7]],
        "no tensor": [0.0, torch.zeros(2)],  # pyright: ignore[reportReturnType]
    }


@pytest.mark.parametrize("name", bad_targets())
def test_targets_of_another_kind_are_refused(name: str) -> None:
    targets = bad_targets()[name]
    grads = [torch.full((2, 3), math.inf), torch.ones(2)]
    found_inf = flag()
    with pytest.raises(ValueError, match="target"):
        gathered(grads).scale_into(targets, 0.5, found_inf=found_inf)
    assert found_inf.item() == 0
    strided = [t for t in targets if isinstance(t, Tensor) and t.is_cpu]
    assert not any(t.to_dense().any() for t in strided)


def test_targets_may_touch_but_not_overlap_gradients() -> None:
    base = torch.arange(10.0)
    gathered([base[2:5]]).scale_into([base[5:8]], 2.0)
    assert base.tolist() == [0, 1, 2, 3, 4, 4, 6, 8, 8, 9]
    with pytest.raises(ValueError, match="share no memory"):
        gathered([base[2:5]]).scale_into([base[4:7]], 2.0)
    with pytest.raises(RuntimeError, match="more than one element"):
        found = REFERENCE.gather([torch.ones(1).expand(3)], Kind.READ_ONLY)
        found.scale_into([torch.ones(1).expand(3)], 2.0)


def test_gradients_may_overlap_each_other_where_targets_do_not() -> None:
    base, targets = torch.arange(6.0), [torch.empty(4), torch.empty(4)]
    gathered([base[:4], base[2:]]).scale_into(targets, 0.5)
    assert [target.tolist() for target in targets] == [[0, 0.5, 1, 1.5], [1, 1.5, 2, 2.5]]
    room = torch.empty(8)
    gathered([base[:4], base[2:]]).scale_into([room[4:], room[:4]], 0.5)
    assert room.tolist() == [1, 1.5, 2, 2.5, 0, 0.5, 1, 1.5]
