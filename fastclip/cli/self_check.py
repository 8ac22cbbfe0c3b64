"""Clip awkward gradient lists with every backend and compare with float64."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import fastclip

from .awkward import Awkward, awkward_lists, float64_norm

NORM_TYPES = (1.0, 2.0, 3.0, math.inf)
EPS = 1e-6
"""What every implementation of gradient clipping adds to the norm before it divides."""

CLIPPED, NOT_CLIPPED = 0.5, 2.0
"""max_norm in units of norm + 1e-6, so that the coefficient is far from 1 at any magnitude."""

CLIP_VALUE = 0.5
"""A power of two: every dtype holds it exactly, so clamped gradients compare for equality."""

AUTOMATIC = "automatic"
"""The name under which ``backend=None`` is reported."""

NONFINITE = "is non-finite, so it cannot be clipped"
"""A part of error_if_nonfinite's message, in torch's words."""

FLOAT32_UNIT = 2.0**-24
FLOAT64_UNIT = 2.0**-53
FLOAT32_STEP = 2.0**-149
"""The distance between float32's denormals, to which the smallest norms are rounded."""


Found = tuple[str, str, str]
"""What differs, what was expected, what was got."""


@dataclass(frozen=True)
class Difference:
    """One call whose result is not float64's.

    Attributes:
        call: what was called, on which list, with which arguments.
        what: the value that differs.
        expected: what float64 gives.
        got: what the backend gave.
    """

    call: str
    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.call}: {self.what}: expected {self.expected}, got {self.got}"


@dataclass
class BackendResult:
    """What the self-check found out about one backend.

    Attributes:
        calls: how many calls were compared.
        differences: those whose result was wrong.
    """

    calls: int = 0
    differences: list[Difference] = field(default_factory=list)


@dataclass(frozen=True)
class _Settings:
    """The arguments of one clip."""

    norm_type: float
    max_norm: float
    backend: str | None
    device: str


@dataclass(frozen=True)
class Clip:
    """A public way to clip by norm; it returns total_norm."""

    name: str
    run: Callable[[list[Tensor], _Settings], Tensor]


def check_backends(names: list[str], device: str = "cpu") -> tuple[int, dict[str, BackendResult]]:
    """Clip every awkward list with every backend, and with the automatic choice.

    Args:
        names: the backends that can run here.
        device: where the gradients lie, as torch names it.

    Returns:
        The number of tensors in the lists, and each backend's result by name.
    """
    lists = list(awkward_lists())
    results = {name: BackendResult() for name in [*names, AUTOMATIC]}
    for name, result in results.items():
        for awkward in lists:
            backend = None if name == AUTOMATIC else name
            for call, differences in _check_list(awkward, backend, device):
                result.calls += 1
                result.differences += [Difference(call, *found) for found in differences]
    return sum(len(awkward.values) for awkward in lists), results


def _check_list(
    awkward: Awkward, backend: str | None, device: str
) -> Iterator[tuple[str, list[Found]]]:
    """Yield each call on the list with what was wrong about it."""
    for norm_type in NORM_TYPES:
        total_norm = float64_norm(awkward.flat, norm_type)
        for factor in (CLIPPED, NOT_CLIPPED):
            max_norm = factor * (total_norm + EPS) if math.isfinite(total_norm) else 1.0
            # The other ways share the kernels, so one norm type and one factor are enough for them.
            for clip in CLIPS if (norm_type, factor) == (2.0, CLIPPED) else CLIPS[:1]:
                call = (
                    f'{clip.name} on "{awkward.name}", p = {norm_type:g}, max_norm = {max_norm:g}'
                )
                settings = _Settings(norm_type, max_norm, backend, device)
                yield call, _guarded(awkward, settings, partial(_check_norm, clip, total_norm))
        call = f'GradClipper.parameter_norms on "{awkward.name}", p = {norm_type:g}'
        settings = _Settings(norm_type, 1.0, backend, device)
        yield call, _guarded(awkward, settings, _check_parameter_norms)
    settings = _Settings(2.0, 1.0, backend, device)
    call = f'clip_grad_value_ on "{awkward.name}", clip_value = {CLIP_VALUE}'
    yield call, _guarded(awkward, settings, _check_value)
    if not math.isfinite(float64_norm(awkward.flat, settings.norm_type)):
        call = f'clip_grad_norm_ on "{awkward.name}", error_if_nonfinite = True'
        yield call, _guarded(awkward, settings, _check_raises)


def _guarded(
    awkward: Awkward, settings: _Settings, check: Callable[[Awkward, _Settings], list[Found]]
) -> list[Found]:
    """Run a check; an exception is a difference, unless it refuses a list with gaps."""
    try:
        return check(awkward, settings)
    except Exception as error:  # noqa: BLE001 - a broken build may raise anything; it is reported
        may_be_refused = awkward.gaps and settings.backend is not None
        if may_be_refused and isinstance(error, fastclip.UnsupportedError):
            return []
        return [("result", "no exception", f"{type(error).__name__}: {error}")]


def _check_norm(
    clip: Clip, total_norm: float, awkward: Awkward, settings: _Settings
) -> list[Found]:
    parameters = _parameters(awkward, settings.device)
    got_norm = clip.run(parameters, settings).item()
    found: list[Found] = []
    if not _close(got_norm, total_norm, _norm_bound(awkward.values, settings.norm_type)):
        found.append(("total_norm", repr(total_norm), repr(got_norm)))
    clip_coef = settings.max_norm / (total_norm + EPS)
    # The bound adds the norm's error and one rounding each for its sum with 1e-6, the quotient,
    # max_norm, their product and the gradient's product.
    relative = _norm_bound(awkward.values, settings.norm_type) + 5 * _unit(awkward.values)
    for position, original in enumerate(awkward.flat):
        parameter = parameters[position]
        if clip_coef >= 1.0:
            found += _compare_gradient(awkward, position, parameter, original, 0.0)
        else:
            rounding = relative + torch.finfo(parameter.dtype).eps / 2
            scaled = original * clip_coef
            found += _compare_gradient(awkward, position, parameter, scaled, rounding)
    return found


def _check_parameter_norms(awkward: Awkward, settings: _Settings) -> list[Found]:
    parameters = _parameters(awkward, settings.device)
    clipper = _clipper(parameters, settings)
    clipper.clip_()
    got = clipper.parameter_norms.tolist()
    expected = [float64_norm([flat], settings.norm_type) for flat in awkward.flat]
    if len(got) != len(expected):
        return [("parameter_norms", f"{len(expected)} norms", f"{len(got)} norms")]
    found: list[Found] = []
    for position, values in enumerate(awkward.values):
        if not _close(got[position], expected[position], _norm_bound([values], settings.norm_type)):
            what = f"norm of {awkward.describe(position)}"
            found.append((what, repr(expected[position]), repr(got[position])))
    return found


def _check_value(awkward: Awkward, settings: _Settings) -> list[Found]:
    parameters = _parameters(awkward, settings.device)
    fastclip.clip_grad_value_(parameters, CLIP_VALUE, backend=settings.backend)
    found: list[Found] = []
    for position, original in enumerate(awkward.flat):
        clamped = original.clamp(-CLIP_VALUE, CLIP_VALUE)
        found += _compare_gradient(awkward, position, parameters[position], clamped, 0.0)
    return found


def _check_raises(awkward: Awkward, settings: _Settings) -> list[Found]:
    parameters = _parameters(awkward, settings.device)
    found: list[Found] = []
    try:
        fastclip.clip_grad_norm_(
            parameters,
            settings.max_norm,
            settings.norm_type,
            error_if_nonfinite=True,
            backend=settings.backend,
        )
        found.append(("result", "RuntimeError", "no exception"))
    except RuntimeError as error:
        if NONFINITE not in str(error):
            raise
    for position, original in enumerate(awkward.flat):
        found += _compare_gradient(awkward, position, parameters[position], original, 0.0)
    return found


def _compare_gradient(
    awkward: Awkward, position: int, parameter: Tensor, expected: Tensor, relative: float
) -> list[Found]:
    """Compare one clipped gradient with float64; the bound is 0 if ``relative`` is."""
    assert parameter.grad is not None
    got = parameter.grad.detach().cpu().flatten().double()
    info = torch.finfo(parameter.dtype)
    if torch.equal(got, expected):
        return []
    # Below the normal range rounding is off by a fixed amount: one step of the denormals.
    bound = relative * expected.abs() + (info.smallest_normal * info.eps if relative else 0.0)
    near = (got - expected).abs() <= bound
    if bool(near.all()):
        return []
    wrong = ~(near | (got == expected) | (got.isnan() & expected.isnan()))
    if not bool(wrong.any()):
        return []
    first = int(wrong.nonzero()[0])
    count = int(wrong.sum())
    what = f"{awkward.describe(position)}: element {first}, first of {count} that differ"
    return [(what, repr(expected[first].item()), repr(got[first].item()))]


def _parameters(awkward: Awkward, device: str) -> list[Tensor]:
    """Return one parameter for each gradient."""
    parameters = []
    for gradient in awkward.gradients(device):
        parameter = torch.zeros_like(gradient)
        parameter.grad = gradient
        parameters.append(parameter)
    return parameters


def _unit(values: Sequence[Tensor]) -> float:
    """Return the arithmetic's rounding unit: float64's if all gradients are float64."""
    only_float64 = all(tensor.dtype == torch.float64 for tensor in values)
    return FLOAT64_UNIT if only_float64 else FLOAT32_UNIT


def _norm_bound(values: Sequence[Tensor], norm_type: float) -> float:
    """Return the relative error that a norm may have.

    2 x 2^-24 is what fastclip promises for 16- and 32-bit gradients. For float64 it is the bound
    for n additions in any order, plus 8 for the powers and the root; if 1 / p is rounded, the root
    is off by that rounding times the logarithm of the sum, which is at most 710.
    """
    if _unit(values) == FLOAT32_UNIT:
        return 2 * FLOAT32_UNIT
    root = 8 if norm_type in (1.0, 2.0, math.inf) else 8 + math.log(sys.float_info.max)
    return (sum(tensor.numel() for tensor in values) + root) * FLOAT64_UNIT


def _close(got: float, expected: float, relative: float) -> bool:
    if math.isnan(expected) or math.isnan(got):
        return math.isnan(expected) and math.isnan(got)
    return got == expected or abs(got - expected) <= relative * expected + FLOAT32_STEP


def _clip_in_one(parameters: list[Tensor], settings: _Settings) -> Tensor:
    return fastclip.clip_grad_norm_(
        parameters, settings.max_norm, settings.norm_type, backend=settings.backend
    )


def _clip_in_two(parameters: list[Tensor], settings: _Settings) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    total_norm = fastclip.get_total_norm(gradients, settings.norm_type, backend=settings.backend)
    fastclip.clip_grads_with_norm_(
        parameters, settings.max_norm, total_norm, backend=settings.backend
    )
    return total_norm


def _clip_prepared(parameters: list[Tensor], settings: _Settings) -> Tensor:
    return _clipper(parameters, settings).clip_()


def _clipper(parameters: list[Tensor], settings: _Settings) -> fastclip.GradClipper:
    return fastclip.GradClipper(
        parameters, settings.max_norm, settings.norm_type, backend=settings.backend
    )


CLIPS = (
    Clip("clip_grad_norm_", _clip_in_one),
    Clip("get_total_norm and clip_grads_with_norm_", _clip_in_two),
    Clip("GradClipper.clip_", _clip_prepared),
)
