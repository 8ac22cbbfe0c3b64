"""The warnings for CUDA gradients that are clipped without CUDA kernels."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from samples import assert_clipped, copies, gradient, parameters
from source_tree import cuda

import fastclip
from fastclip import BuildInfo
from fastclip.backends import base, extension
from fastclip.backends.base import ReasonKind
from fastclip.cli import doctor

NO_KERNELS = "device cuda:0 (supported: cpu; fastclip._C has no CUDA kernels)"


class RefusedError(Exception):
    """Stands for the extension's UnsupportedError."""


def build_without_kernels(
    monkeypatch: pytest.MonkeyPatch, mode: str, reason: str, cuda_reason: str = "no nvcc"
) -> None:
    """Let the native backend refuse every list as a build without CUDA kernels refuses CUDA's."""

    def refuse(*_: object) -> None:
        kind = ReasonKind.NOT_BUILT if reason == NO_KERNELS else ReasonKind.TENSORS
        raise RefusedError([(int(kind), reason)])

    bound = SimpleNamespace(clip=refuse, clip_and_keep=refuse)
    binding = SimpleNamespace(
        UnsupportedError=RefusedError, NonFiniteError=KeyError, gather=lambda *_: bound
    )
    info = {**fastclip.build_info(), "native": True, "mode": mode, "cuda_reason": cuda_reason}
    monkeypatch.setattr(extension, "load", lambda: ())
    monkeypatch.setattr(extension, "binding", binding)
    monkeypatch.setattr(extension, "build_info", lambda: info)
    base.warn_once.cache_clear()


def test_the_fallback_is_said_once_at_the_callers_line(monkeypatch: pytest.MonkeyPatch) -> None:
    build_without_kernels(monkeypatch, "auto", NO_KERNELS)
    grads = [gradient(33, torch.float32)]
    held = parameters(copies(grads))
    with pytest.warns(
        RuntimeWarning, match="operations: fastclip._C has no CUDA kernels: no nvcc"
    ) as w:
        norm = fastclip.clip_grad_norm_(held, 0.5)
    assert [warning.filename for warning in w] == [__file__]
    assert_clipped(held, grads, 0.5, norm)
    fastclip.clip_grad_norm_(held, 0.5)


def test_who_built_without_a_gpu_hears_how_to_get_the_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Images are built like this: torch has CUDA and nvcc is there, but a GPU appears only at run
    # time.
    monkeypatch.setattr(cuda, "find_gpus", lambda environ: "the NVIDIA driver sees none")
    without = cuda.choose_codes("auto", cuda.Toolkit(Path(), "13.0", (75, 90)), {})
    assert isinstance(without, str)
    build_without_kernels(monkeypatch, "auto", NO_KERNELS, without)
    held = parameters([gradient(33, torch.float32)])
    with pytest.warns(RuntimeWarning) as caught:
        fastclip.clip_grad_norm_(held, 0.5)
        fastclip.clip_grad_norm_(held, 0.5)
    (warning,) = caught
    said = str(warning.message)
    assert said.startswith(
        "fastclip: CUDA gradients are clipped with torch operations: fastclip._C has no CUDA "
        "kernels: no GPU was found where fastclip was built"
    )
    assert "install fastclip where a GPU can be seen, or with TORCH_CUDA_ARCH_LIST set" in said
    assert said.endswith(", or with FASTCLIP_BUILD=cuda")
    build: BuildInfo = {**fastclip.build_info(), "native": True, "cuda": None}
    assert f"no CUDA kernels: {without}" in doctor._describe_build(
        {**build, "cuda_reason": without}
    )


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("cpu", NO_KERNELS),
        ("auto", "a tensor with gaps"),
        ("auto", NO_KERNELS.replace("cuda", "xpu")),
    ],
)
def test_other_fallbacks_are_silent(
    monkeypatch: pytest.MonkeyPatch, mode: str, reason: str
) -> None:
    build_without_kernels(monkeypatch, mode, reason)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastclip.clip_grad_norm_(parameters([gradient(33, torch.float32)]), 0.5)


def test_a_backend_that_was_named_raises_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    build_without_kernels(monkeypatch, "auto", NO_KERNELS)
    with pytest.raises(RuntimeError, match="has no CUDA kernels"):
        fastclip.clip_grad_norm_(parameters([gradient(33, torch.float32)]), 0.5, backend="native")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_report_says_why_cuda_gradients_have_no_backend() -> None:
    report = fastclip.backend_report("cuda")
    assert list(report) == list(fastclip.backend_report())
    assert report["native"] != []
    assert report["reference"] == ["torch sees no GPU"]


def test_the_report_knows_other_devices() -> None:
    report = fastclip.backend_report("xpu")
    assert report["native"][-1] == "device xpu (supported: cpu, cuda)"
    assert report["reference"] == []
