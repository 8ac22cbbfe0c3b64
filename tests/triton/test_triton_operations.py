"""Every operation of a Triton list, with inv_scale and found_inf, against the float64 oracle.

Kernels run in Triton's interpreter. tests/triton/test_triton.py has norms, forms and accesses; here
is what is written and what is not, for both kinds of sources, held and not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import oracle
import pytest
import torch
from samples import copies, gradient, parameters, versions
from torch import Tensor

from fastclip.backends import TRITON
from fastclip.backends.base import GradList
from fastclip.backends.request import (
    PARAMETERS,
    TENSORS,
    ClipRequest,
    Coefficient,
    Factor,
    Kind,
    Norms,
    Sums,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("interpreted")]

# Sizes around vectors, small tensors, batches and chunks; the last is two chunks.
SIZES = (0, 1, 5, 33, 1023, 1025, 4099, 16500)

MIXES = {
    "float32": (torch.float32,),
    "float64": (torch.float64,),
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
    "all": (torch.float32, torch.bfloat16, torch.float64, torch.float16),
}
by_mix = pytest.mark.parametrize("mix", MIXES)
# These are for tests in which the factor matters, not what is multiplied.
by_few_mixes = pytest.mark.parametrize("mix", ("float32", "all"))

INVERSES = (None, 1.0, 0.3, -0.25)

# What found_inf holds before, None where it is not given, and what a gradient holds.
FLAGS = (
    (None, None),
    (None, math.inf),
    (0.0, None),
    (1.0, None),
    (0.0, -math.inf),
    (0.0, math.nan),
)
FORMS = tuple(itertools.product((PARAMETERS, TENSORS), (False, True)))


@dataclass
class Case:
    """A list, and what comes with an operation on it.

    Attributes:
        grads: the gradients before the operation.
        used: those that it works on.
        listed: their list.
        inv_scale: as for the operation.
        found_inf: as for the operation.
        is_stopped: whether found_inf is or will be set.
    """

    grads: list[Tensor]
    used: list[Tensor]
    listed: GradList
    inv_scale: Tensor | None
    found_inf: Tensor | None
    is_stopped: bool

    def __post_init__(self) -> None:
        self._versions = versions(self.used)

    @property
    def inverse(self) -> float:
        """The value of inv_scale."""
        return 1.0 if self.inv_scale is None else self.inv_scale.item()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the list's norm."""
        is_wide = any(grad.dtype == torch.float64 for grad in self.grads)
        return torch.float64 if is_wide else torch.float32

    def check_products(self, bys: Sequence[float], dtype: torch.dtype) -> None:
        """Check what a scale in place by these numbers of a dtype has written, and all else."""
        for used, grad, by in zip(self.used, self.grads, bys, strict=True):
            is_written = not (by >= 1 and self.inverse == 1) and not self.is_stopped
            factor = product(by, self.inverse, dtype)
            wanted = oracle.scaled(grad, factor) if is_written else oracle.values_of(grad)
            assert oracle.equal(used, wanted)
        self.check_rest(times=1)

    def check_rest(self, times: int) -> None:
        """Check the flag, and how many times every version has gone up."""
        assert self.found_inf is None or self.found_inf.item() == float(self.is_stopped)
        assert versions(self.used) == [version + times for version in self._versions]


def gradients(dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    made = [gradient(size, dtypes[i % len(dtypes)], seed=i) for i, size in enumerate(SIZES)]
    return [*made, gradient((37, 41), dtypes[-1], seed=99).t()]


def list_of(grads: list[Tensor], kind: Kind, is_held: bool) -> GradList:
    listed = TRITON.gather(parameters(grads) if kind is PARAMETERS else grads, kind)
    return listed.hold() if is_held else listed


def cases(mix: str) -> Iterator[Case]:
    """Yield every inv_scale with every found_inf, over lists of all forms in turn."""
    combinations = itertools.product(INVERSES, FLAGS)
    # There are seven, so that none always meets the same combinations.
    forms = itertools.cycle([*FORMS, *FORMS[:3]])
    for (inverse, (before, bad)), form in zip(combinations, forms, strict=False):
        grads = gradients(MIXES[mix])
        if bad is not None:
            grads[-2][11] = bad
        used = copies(grads)
        inv_scale = None if inverse is None else torch.tensor([inverse])
        found_inf = None if before is None else torch.tensor(before)
        is_stopped = before == 1 or (before is not None and bad is not None)
        yield Case(grads, used, list_of(used, *form), inv_scale, found_inf, is_stopped)


def product(by: float, inverse: float, dtype: torch.dtype) -> float:
    """Return by * inv_scale as the dtype multiplies."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    with np.errstate(all="ignore"):
        return float(kind(by) * kind(np.float32(inverse)))


def is_same(actual: float, wanted: float) -> bool:
    return actual == wanted or (math.isnan(actual) and math.isnan(wanted))


def check_norms(case: Case, norms: Norms, max_norm: float) -> Tensor:
    """Check what a clip found; return the norm."""
    norm = norms.total_norm
    assert norm is not None and norm.dim() == 0
    assert norm.dtype == norms.clip_coef.dtype == norms.sums.dtype == case.dtype
    wanted = abs(case.inverse) * oracle.total_norm(case.grads, 2.0)
    assert oracle.is_norm(norm.item(), wanted, case.dtype)
    assert is_same(norms.clip_coef.item(), oracle.clip_coef(max_norm, norm))
    for actual, grad in zip(norms.parameter_norms().tolist(), case.grads, strict=True):
        wanted = abs(case.inverse) * oracle.tensor_norm(grad, 2.0)
        assert oracle.is_norm(actual, wanted, case.dtype)
    check_sums(case, norms.sums)
    return norm


def check_sums(case: Case, sums: Sums) -> None:
    """Check what was summed up: the gradients as they were, before inv_scale."""
    (part,) = sums.parts
    for actual, grad in zip(part.sqrt().tolist(), case.grads, strict=True):
        assert oracle.is_norm(actual, oracle.tensor_norm(grad, 2.0), case.dtype)
    wanted = oracle.total_norm(case.grads, 2.0)
    assert oracle.is_norm(sums.total.sqrt().item(), wanted, torch.float32)


@by_mix
@pytest.mark.parametrize("max_norm", (0.7, 1e30))
def test_clip(mix: str, max_norm: float) -> None:
    for case in cases(mix):
        request = ClipRequest(
            max_norm, inv_scale=case.inv_scale, found_inf=case.found_inf, keeps_norms=True
        )
        norm = check_norms(case, case.listed.clip(request), max_norm)
        case.check_products([oracle.clip_coef(max_norm, norm)] * len(case.used), case.dtype)


@by_few_mixes
def test_a_norm_without_a_rescale_and_its_two_halves(mix: str) -> None:
    for case in cases(mix):
        request = ClipRequest(
            0.7,
            inv_scale=case.inv_scale,
            found_inf=case.found_inf,
            writes=False,
            keeps_norms=True,
        )
        norms = case.listed.clip(request)
        norm = check_norms(case, norms, 0.7)
        sums = case.listed.reduce(2.0, found_inf=case.found_inf)
        check_sums(case, sums)
        finished = case.listed.finish(sums, request)
        assert check_norms(case, finished, 0.7).equal(norm) or norm.isnan()
        assert all(map(oracle.equal, case.used, map(oracle.values_of, case.grads)))
        case.check_rest(times=0)


NUMBERS = (0.37, 1.0, 1.7, math.nan, -0.5)


@by_mix
def test_scale_by_a_number_is_a_float64_product(mix: str) -> None:
    for case, by in zip(cases(mix), itertools.cycle(NUMBERS)):
        assert case.listed.scale(by, inv_scale=case.inv_scale, found_inf=case.found_inf)
        case.check_products([by] * len(case.used), torch.float64)


@by_few_mixes
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_scale_by_a_tensor_is_a_product_of_its_dtype(mix: str, dtype: torch.dtype) -> None:
    for case, number in zip(cases(mix), itertools.cycle(NUMBERS)):
        by = torch.tensor(number, dtype=dtype, requires_grad=True)
        assert case.listed.scale(by, inv_scale=case.inv_scale, found_inf=case.found_inf)
        case.check_products([by.item()] * len(case.used), dtype)


@by_few_mixes
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_scale_by_a_coefficient_for_each(mix: str, dtype: torch.dtype) -> None:
    for case in cases(mix):
        bys = torch.tensor([0.37, 1.0, 0.11, math.nan, 0.3, 1.7, 0.1, 0.9, -0.7], dtype=dtype)
        assert case.listed.scale([bys], inv_scale=case.inv_scale, found_inf=case.found_inf)
        case.check_products(bys.tolist(), dtype)


@by_few_mixes
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_scale_by_the_coefficient_of_a_norm(mix: str, dtype: torch.dtype) -> None:
    for case, value in zip(cases(mix), itertools.cycle((3.1, 0.2, math.nan, 0.7, 1e9))):
        norm = torch.tensor(value, dtype=dtype)
        by = Coefficient(0.7, norm)
        assert case.listed.scale(by, inv_scale=case.inv_scale, found_inf=case.found_inf)
        wide = norm.to(torch.promote_types(dtype, torch.float32))
        case.check_products([oracle.clip_coef(0.7, wide)] * len(case.used), wide.dtype)


@by_few_mixes
@pytest.mark.parametrize("is_tensor", (False, True))
def test_scale_into_writes_whatever_is_found(mix: str, is_tensor: bool) -> None:
    for case, number in zip(cases(mix), itertools.cycle(NUMBERS)):
        targets = [torch.full_like(grad, -77.0) for grad in case.used]
        before = versions(targets)
        by: Factor = torch.tensor(number) if is_tensor else number
        case.listed.scale_into(targets, by, inv_scale=case.inv_scale, found_inf=case.found_inf)
        dtype = torch.float32 if is_tensor else torch.float64
        rounded = torch.tensor(number, dtype=dtype).item()
        factor = product(rounded, case.inverse, dtype)
        for target, used, grad in zip(targets, case.used, case.grads, strict=True):
            assert oracle.equal(target, oracle.scaled(grad, factor))
            assert oracle.equal(used, oracle.values_of(grad))
        assert versions(targets) == [version + 1 for version in before]
        case.check_rest(times=0)


@by_mix
def test_clamp_is_one_of_products(mix: str) -> None:
    for case, clip_value in zip(cases(mix), itertools.cycle((0.3, 0.0, math.inf, 1.0, 0.11))):
        assert case.listed.clamp(clip_value, inv_scale=case.inv_scale, found_inf=case.found_inf)
        for used, grad in zip(case.used, case.grads, strict=True):
            wanted = oracle.values_of(grad)
            if not case.is_stopped:
                scaled = torch.from_numpy(oracle.scaled(grad, case.inverse)).to(grad.dtype)
                wanted = oracle.clamped(scaled, clip_value)
            assert oracle.equal(used, wanted, any_zero=clip_value == 0)
        case.check_rest(times=1)
