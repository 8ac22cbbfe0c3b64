"""A profile shows the package's calls, because its kernels are no operations of torch."""

import threading

import pytest
import torch
from samples import gradient, parameters
from torch._C._profiler import _ExperimentalConfig
from torch.autograd import profiler_util

import fastclip
from fastclip import GradClipper


def profiling(config: _ExperimentalConfig | None = None) -> torch.profiler.profile:
    cpu = [torch.profiler.ProfilerActivity.CPU]
    # torch 2.10 warns about the events that it drops, unless it is asked to keep them.
    return torch.profiler.profile(activities=cpu, experimental_config=config, acc_events=True)


def test_each_call_is_a_range(backend: str | None) -> None:
    held = parameters([gradient(5, torch.float32)])
    grads = [p.grad for p in held if p.grad is not None]
    norm = torch.tensor(1.0)
    clipper = GradClipper(held, 1.0, backend=backend)
    with profiling() as profile:
        fastclip.clip_grad_norm_(held, 1.0, backend=backend)
        fastclip.get_total_norm(grads, backend=backend)
        fastclip.clip_grads_with_norm_(held, 1.0, norm, backend=backend)
        fastclip.clip_grad_value_(held, 1.0, backend=backend)
        clipper.clip_()
        clipper.clip_()
    counts = {event.key: event.count for event in profile.key_averages()}
    ranges = {name: count for name, count in counts.items() if name.startswith("fastclip::")}
    assert ranges == {
        "fastclip::clip_grad_norm_": 1,
        "fastclip::get_total_norm": 1,
        "fastclip::clip_grads_with_norm_": 1,
        "fastclip::clip_grad_value_": 1,
        "fastclip::GradClipper": 2,
    }


def test_the_range_holds_the_work() -> None:
    held = parameters([gradient(2_000_000, torch.float32)])
    with profiling() as profile:
        fastclip.clip_grad_norm_(held, 1e-3)
    [event] = [e for e in profile.key_averages() if e.key == "fastclip::clip_grad_norm_"]
    assert isinstance(event, profiler_util.FunctionEventAvg)
    assert event.cpu_time_total > 100  # microseconds; 8 MB are read twice and written once


def test_a_profile_of_all_threads_shows_the_calls_of_others(backend: str | None) -> None:
    held = parameters([gradient(5, torch.float32)])
    everywhere = _ExperimentalConfig(profile_all_threads=True)
    with profiling(everywhere) as profile:
        thread = threading.Thread(
            target=lambda: fastclip.clip_grad_norm_(held, 1.0, backend=backend)
        )
        thread.start()
        thread.join()
    assert "fastclip::clip_grad_norm_" in {event.key for event in profile.key_averages()}


def test_errors_end_the_range(backend: str | None) -> None:
    held = parameters([torch.tensor([float("nan")])])
    with profiling() as profile:
        with pytest.raises(RuntimeError, match="non-finite"):
            fastclip.clip_grad_norm_(held, 1.0, error_if_nonfinite=True, backend=backend)
        torch.ones(3).sum()
    names = {event.key for event in profile.key_averages()}
    assert {"fastclip::clip_grad_norm_", "aten::sum"} <= names
