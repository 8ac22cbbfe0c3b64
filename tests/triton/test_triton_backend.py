"""The backend "triton": when it runs, when it says no, and in which words."""

import builtins
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import oracle
import pytest
import torch
from interpreted_triton import pack_by_torch
from samples import assert_clipped, assert_scaled, copies, gradient, parameter, parameters
from torch import Tensor

import fastclip
from fastclip import backends
from fastclip.backends import base
from fastclip.backends.base import Reason, ReasonKind, RefusedError
from fastclip.backends.request import NOT_KEPT, Norms
from fastclip.backends.triton import TritonBackend, loading
from fastclip.backends.triton.answers import Answers, LaunchError

GPU = torch.device("cuda", 0)


@pytest.fixture
def not_interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the backend see no interpreter, as for users."""
    monkeypatch.delenv("TRITON_INTERPRET")
    loading._import_reasons.cache_clear()
    yield
    loading._import_reasons.cache_clear()


def has_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.usefixtures("not_interpreted")
def test_cpu_gradients_are_refused_before_triton_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "import_reasons", lambda: pytest.fail("triton was imported"))
    assert TritonBackend().unavailable_reasons("cpu") == ["device cpu (supported: cuda)"]
    held = parameters([torch.ones(3)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked for a GPU"))
    refusal = r'"triton" cannot run this: device cpu \(supported: cuda\)'
    with pytest.raises(RuntimeError, match=refusal):
        fastclip.clip_grad_norm_(held, 1.0, backend="triton")
    assert fastclip.clip_grad_norm_(parameters([torch.ones(4)[::2]]), 9.0) == math.sqrt(2)


@pytest.mark.usefixtures("not_interpreted")
@pytest.mark.parametrize("grad", (torch.ones(4, dtype=torch.complex64), torch.ones(2).to_sparse()))
def test_parameters_that_are_no_tensors(monkeypatch: pytest.MonkeyPatch, grad: Tensor) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked for a GPU"))
    held = cast("list[Tensor]", [SimpleNamespace(grad=grad.clone())])
    wanted = math.sqrt(grad._nnz() if grad.is_sparse else grad.numel())
    for has_extension in (True, False):
        if not has_extension:
            pack_by_torch(monkeypatch)
        assert fastclip.clip_grad_norm_(held, 9.0).item() == pytest.approx(wanted)
        with pytest.raises(RuntimeError, match='backend "triton" cannot run this'):
            fastclip.clip_grad_norm_(held, 9.0, backend="triton")


@pytest.mark.usefixtures("not_interpreted")
def test_without_triton_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpu(monkeypatch)
    original = builtins.__import__

    def without_triton(name: str, *rest: object) -> object:
        if name == "triton":
            raise ImportError("No module named 'triton'")
        return original(name, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(builtins, "__import__", without_triton)
    reasons = TritonBackend().unavailable_reasons("cuda")
    assert reasons == ["triton cannot be imported: No module named 'triton'"]


@pytest.mark.usefixtures("not_interpreted")
@pytest.mark.parametrize("version", ("3.5.1", "2.3", "3.5.0+git1234"))
def test_an_old_triton_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    has_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    reasons = TritonBackend().unavailable_reasons("cuda")
    assert reasons == [f"triton {version} is too old (supported: 3.6 and later)"]


@pytest.mark.usefixtures("interpreted")
def test_a_triton_imported_before_the_variable_is_set_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert TritonBackend().unavailable_reasons("cpu") == []
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    has_gpu(monkeypatch)
    reasons = TritonBackend().unavailable_reasons("cuda")
    assert reasons == ["TRITON_INTERPRET was unset after triton was imported"]


@pytest.mark.usefixtures("not_interpreted")
@pytest.mark.parametrize("found", (SimpleNamespace(), SimpleNamespace(__version__=None)))
def test_something_else_named_triton_is_told(
    monkeypatch: pytest.MonkeyPatch, found: SimpleNamespace
) -> None:
    has_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, "triton", found)
    (reason,) = TritonBackend().unavailable_reasons("cuda")
    assert reason.startswith("triton cannot be imported: ")


@pytest.mark.usefixtures("not_interpreted")
def test_a_missing_triton_makes_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="2.3"))
    with pytest.raises(RefusedError) as caught:
        loading.launches_on(GPU)
    assert [reason.kind for reason in caught.value.reasons] == [ReasonKind.DEVICE]
    instead = "CUDA gradients are clipped with torch operations"
    reason = "triton 2.3 is too old (supported: 3.6 and later)"
    assert caught.value.warning == f"fastclip: {instead}: {reason}"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """Let checks of a GPU end like this, one after another, after forgetting what was known."""
    outcomes: list[Exception | None] = []

    def check(_: int) -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr("fastclip.backends.triton.launches.check", check)
    monkeypatch.setattr(loading, "import_reasons", lambda: ())
    monkeypatch.setattr(loading, "is_capturing", lambda _: False)
    monkeypatch.setattr(loading, "ANSWERS", Answers())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    has_gpu(monkeypatch)
    return outcomes


NO_COMPILER = RuntimeError("Failed to find C compiler. Please specify via CC\nmore")
CANNOT_RUN = (
    "Triton cannot run on device cuda:0: RuntimeError: Failed to find C compiler. "
    "Please specify via CC"
)


def test_a_gpu_that_triton_cannot_run_on_is_asked_once(checks: list[Exception | None]) -> None:
    checks.append(NO_COMPILER)
    for _ in range(2):
        assert TritonBackend().unavailable_reasons("cuda") == [CANNOT_RUN]
    assert checks == []


def test_a_gpu_that_triton_can_run_on_is_asked_once(checks: list[Exception | None]) -> None:
    checks.append(None)
    for _ in range(2):
        assert TritonBackend().unavailable_reasons("cuda") == []
    assert checks == []


def refused(error: Exception) -> LaunchError:
    """Return what a launch raises that failed in this way."""
    refusal = LaunchError("Triton cannot launch finish_kernel")
    refusal.__cause__ = error
    return refusal


def test_a_gpu_whose_launches_are_refused_is_asked_once(checks: list[Exception | None]) -> None:
    checks.append(refused(NO_COMPILER))
    for _ in range(2):
        reasons = TritonBackend().unavailable_reasons("cuda")
        assert reasons == ["Triton cannot launch finish_kernel"]


def test_a_gpu_whose_launches_may_pass_is_asked_again(checks: list[Exception | None]) -> None:
    checks += [refused(OSError("No space left on device")), None]
    assert TritonBackend().unavailable_reasons("cuda") != []
    assert TritonBackend().unavailable_reasons("cuda") == []


@pytest.mark.parametrize(
    "error",
    (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("Triton Error [CUDA]: operation not permitted when stream is capturing"),
        OSError("No space left on device"),
    ),
)
def test_a_gpu_that_may_run_later_is_asked_again(
    checks: list[Exception | None], error: Exception
) -> None:
    checks += [error, None]
    (reason,) = TritonBackend().unavailable_reasons("cuda")
    assert reason == f"Triton cannot run on device cuda:0: {type(error).__name__}: {error}"
    assert TritonBackend().unavailable_reasons("cuda") == []


def test_a_gpu_that_triton_cannot_run_on_makes_a_warning(checks: list[Exception | None]) -> None:
    checks.append(NO_COMPILER)
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            loading.launches_on(GPU)
        assert caught.value.reasons == [Reason(ReasonKind.DEVICE, CANNOT_RUN)]
        warning = f"fastclip: CUDA gradients are clipped with torch operations: {CANNOT_RUN}"
        assert caught.value.warning == warning


def test_a_gpu_is_not_asked_while_a_graph_is_captured(
    checks: list[Exception | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.append(None)
    monkeypatch.setattr(loading, "is_capturing", lambda device: device == GPU)
    with pytest.raises(RuntimeError, match="must be called once before a CUDA graph is captured"):
        loading.launches_on(GPU)
    loading.gpu_reasons()
    assert loading.launches_on(GPU).is_capturing is not None and checks == []


def tried(name: str | None, foreach: bool | None) -> list[str]:
    """Return the backends that a call tries, if all of them refuse."""
    names: list[str] = []

    def refuse(backend: base.Backend) -> None:
        names.append(backend.name)
        raise RefusedError([Reason(ReasonKind.CALL, "no kernels")])

    with pytest.raises((RefusedError, base.UnsupportedError)):
        backends.dispatch("clip_grad_norm_", name, foreach, refuse)
    return names


def test_interpreted_kernels_are_for_those_who_name_them() -> None:
    assert tried(None, None) == ["native", "reference"]
    assert tried("triton", None) == ["triton"]


@pytest.mark.usefixtures("not_interpreted")
def test_triton_is_chosen_between_native_and_reference() -> None:
    assert tried(None, None) == ["native", "triton", "reference"]
    assert tried(None, False) == ["reference"]


def test_foreach_false_contradicts_it() -> None:
    with pytest.raises(ValueError, match='foreach=False needs backend "reference" or None'):
        fastclip.clip_grad_norm_(parameters([torch.ones(3)]), 1.0, foreach=False, backend="triton")


@pytest.mark.usefixtures("not_interpreted")
def test_a_fallback_is_told_only_where_torch_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(warning: str) -> Callable[..., None]:
        def raise_error(*_: object, foreach: bool | None) -> None:
            raise RefusedError([Reason(ReasonKind.DEVICE, "no kernels")], warning)

        return raise_error

    held = parameters([torch.ones(3)])
    found = SimpleNamespace(clip=lambda _: Norms(torch.tensor(7.0), NOT_KEPT))
    monkeypatch.setattr(backends.NATIVE, "gather", refuse("native cannot"))
    monkeypatch.setattr(backends.TRITON, "gather", lambda *_, foreach: found)
    assert fastclip.clip_grad_norm_(held, 1.0) == 7.0
    monkeypatch.setattr(backends.TRITON, "gather", refuse("nor can Triton"))
    base.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning) as caught:
        fastclip.clip_grad_norm_(held, 1.0)
    assert [str(warning.message) for warning in caught] == ["native cannot", "nor can Triton"]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda p: fastclip.clip_grad_norm_(p, 1.0, 0.0, backend="triton"), "norm_type 0.0"),
        (lambda p: fastclip.clip_grad_norm_(p, 1.0, -1.0, backend="triton"), "norm_type -1.0"),
        (lambda p: fastclip.clip_grad_norm_(p, 1.0, math.nan, backend="triton"), "norm_type nan"),
        (lambda p: fastclip.clip_grad_value_(p, 1e5, backend="triton"), "does not fit float16"),
    ],
)
def test_arguments_that_kernels_do_not_know(
    call: Callable[[list[Tensor]], object], reason: str
) -> None:
    held = parameters([gradient(5, torch.float16)])
    before = copies([p.grad for p in held if p.grad is not None])
    with pytest.raises(RuntimeError, match=f'"triton" cannot run this: .*{reason}'):
        call(held)
    assert held[0].grad is not None and torch.equal(held[0].grad, before[0])


@pytest.mark.usefixtures("interpreted")
def test_lists_without_gradients() -> None:
    for held in ([], parameters([None, None])):
        norm = fastclip.clip_grad_norm_(held, 1.0, backend="triton")
        assert norm.dtype == torch.float32 and norm == 0
        clipper = fastclip.GradClipper(held, 1.0, backend="triton")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that there are no gradients
            clipper.clip_()
        assert torch.equal(clipper.parameter_norms, torch.zeros(len(held)))
    assert fastclip.get_total_norm([], dtype=torch.float64, backend="triton").dtype == torch.float64


@pytest.mark.usefixtures("interpreted")
def test_a_clipper_reads_gradients_anew_and_keeps_norms_of_its_last_clip() -> None:
    held = parameters([gradient(5000, torch.float32, seed=i) for i in range(3)])
    clipper = fastclip.GradClipper(held, 0.5, backend="triton")
    with pytest.raises(RuntimeError, match="parameter_norms needs a call"):
        _ = clipper.parameter_norms
    clipper.clip_()
    grads = [gradient(70, torch.float32, seed=9), None, gradient(20_000, torch.float32, seed=8)]
    for p, grad in zip(held, grads, strict=True):
        p.grad = None
        p.data = torch.zeros(1 if grad is None else grad.shape)
        p.grad = None if grad is None else grad.clone()
    norm = clipper.clip_()
    left = [grad for grad in grads if grad is not None]
    assert_clipped([held[0], held[2]], left, 0.5, norm)
    norms = clipper.parameter_norms
    norms.zero_()
    assert clipper.parameter_norms[1] == 0 and clipper.parameter_norms[0] != 0
    assert held[0].grad is not None
    held[0].grad.fill_(math.nan)
    with pytest.raises(RuntimeError, match="non-finite gradients: 0"):
        clipper.error_if_nonfinite = True
        clipper.clip_()
    assert clipper.parameter_norms[0].isnan()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("has_extension", (True, False))
def test_the_default_device_and_dtype_change_no_norm_of_gradients(
    monkeypatch: pytest.MonkeyPatch, has_extension: bool
) -> None:
    if not has_extension:
        pack_by_torch(monkeypatch)
    grads = [gradient(5000, torch.float32), gradient(20, torch.float32)]
    held = parameters([grads[0].clone(), None, grads[1].clone()])
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            clipper = fastclip.GradClipper(held, 0.5, backend="triton")
            norm = clipper.clip_()
            norms = clipper.parameter_norms
            nothing = fastclip.GradClipper([*held[1:2], parameter(None)], 0.5, backend="triton")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # that there are no gradients
                nothing.clip_()
            zeros = nothing.parameter_norms
    finally:
        torch.set_default_dtype(torch.float32)
    assert_clipped([held[0], held[2]], grads, 0.5, norm)
    wanted = [oracle.total_norm([grads[0]], 2.0), 0.0, oracle.total_norm([grads[1]], 2.0)]
    for actual, right in zip(norms.tolist(), wanted, strict=True):
        assert oracle.is_norm(actual, right, torch.float32)
    assert (zeros.dtype, zeros.device.type, zeros.tolist()) == (torch.float32, "cpu", [0.0, 0.0])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "norm",
    [
        torch.tensor(3 - 4j).conj().imag,
        torch._efficientzerotensor(()),  # pyright: ignore[reportPrivateImportUsage]
        torch.ones((), device="meta"),
        torch.ones(1),
    ],
)
def test_norms_that_kernels_cannot_read_are_refused(norm: Tensor) -> None:
    held = parameters([torch.full((5,), 10.0)])
    with pytest.raises(RuntimeError):
        fastclip.clip_grads_with_norm_(held, 1.0, norm, backend="triton")
    assert held[0].grad is not None and held[0].grad.tolist() == [10.0] * 5


@pytest.mark.usefixtures("interpreted")
def test_a_norm_that_requires_grad_does_not_warn() -> None:
    held = parameters([torch.full((5,), 10.0)])
    norm = torch.tensor(20.0, requires_grad=True)
    fastclip.clip_grads_with_norm_(held, 1.0, norm, backend="triton")
    assert_scaled(held, [torch.full((5,), 10.0)], 1.0, norm.detach())
