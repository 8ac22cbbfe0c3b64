"""What bench gpu times of one case: on the CPU, with entrants and devices that fail."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fake_gpu_report import FIVE, ours, report
from torch import Tensor

from bench.core.gradients import Gradients
from bench.core.timing import Effort
from bench.gpu import calls as gpu_calls
from bench.gpu import devices, entrants
from bench.gpu import report as gpu_report
from bench.gpu import rows as gpu_rows


class Watched(devices.Device):
    """A CPU that notes what is asked of it, and on which no capture succeeds."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def clock(self, call: Callable[[], object]) -> tuple[object, float]:
        self.asked.append("clock")
        return super().clock(call)

    def flush(self, host_ms: float) -> None:
        assert host_ms > 0
        self.asked.append("flush")

    def synchronize(self) -> None:
        self.asked.append("synchronize")

    def _capture(self, call: devices.Clip) -> devices.Clip:  # noqa: ARG002
        raise devices.NotCapturedError("not here")


def bench_of(device: devices.Device, *taking_part: entrants.Entrant) -> gpu_calls.Bench:
    stock = entrants.Entrant("stock", entrants._on_list(entrants._stock))
    return gpu_calls.Bench(device, [stock, *taking_part], Effort(2, 2, 0.0), 1e9)


def test_every_device_time_follows_a_flush_and_nobody_waits_in_a_host_time() -> None:
    device = Watched()
    gradients = Gradients(FIVE, "float32")
    found = gpu_rows.measure_row(bench_of(device, ours()), gradients, clipped=True)
    # Two checks; then two calls in three rounds, by the host's clock and by the device's.
    assert device.asked == ["synchronize"] * (2 + 2 * 3) + ["flush", "clock"] * (2 * 3)
    for entry in found["entries"].values():
        assert entry["replay"] is None and entry["not_replayed"]
    for grad, saved in zip(gradients.grads, gradients.saved, strict=True):
        assert torch.equal(grad, saved)


def test_a_replay_is_checked_before_it_is_timed() -> None:
    class Faulty(devices.Device):
        def _capture(self, call: devices.Clip) -> devices.Clip:
            return lambda: call() * 2

    bench = bench_of(Faulty(), ours())
    found = gpu_rows.measure_row(bench, Gradients(FIVE, "float32"), clipped=False)
    told = "ours: total_norm must be"
    assert (found["entries"]["ours"]["not_replayed"] or "").startswith(told)
    (failure,) = found["failures"]
    assert failure.startswith(f"ours at five float32, not clipped: as a graph's replay: {told}")


def halved(gradients: Gradients, max_norm: float) -> devices.Clip:
    return lambda: torch.nn.utils.clip_grad_norm_(gradients.parameters, max_norm / 2)


def astray(gradients: Gradients, max_norm: float) -> devices.Clip:
    return lambda: torch.nn.utils.clip_grad_norm_(gradients.parameters, max_norm) * 1.02


def refusing(gradients: Gradients, max_norm: float) -> devices.Clip:
    def call() -> Tensor:
        raise RuntimeError("no kernel image")

    return call


def test_anothers_wrong_or_missing_result_is_told_and_not_timed() -> None:
    taking_part = {"half": halved, "astray": astray, "refuses": refusing}
    bench = bench_of(devices.Device(), *(entrants.Entrant(*pair) for pair in taking_part.items()))
    found = gpu_rows.measure_row(bench, Gradients(FIVE, "bfloat16"), clipped=True)
    assert list(found["entries"]) == ["stock"]
    assert "half: gradient 0 of (33,) must be its old value" in found["not_timed"]["half"]
    assert ", off by 2." in found["not_timed"]["astray"]
    assert found["not_timed"]["refuses"] == "RuntimeError: no kernel image"
    text = gpu_report.markdown(report([{**found, "case": "1000x64"}]))
    assert "- refuses at 1000x64 bfloat16, clipped: RuntimeError: no kernel image" in text


@pytest.mark.parametrize("factor", [1000.0, math.nan])
def test_what_a_wrong_call_wrote_is_undone_before_others_are_timed(factor: float) -> None:
    def prepare(gradients: Gradients, max_norm: float) -> devices.Clip:
        def call() -> Tensor:
            for grad in gradients.grads:
                grad.mul_(factor)
            return torch.tensor(1.0)

        return call

    gradients = Gradients(FIVE, "float32")
    bench = bench_of(devices.Device(), ours(), entrants.Entrant("last", prepare))
    found = gpu_rows.measure_row(bench, gradients, clipped=False)
    assert list(found["entries"]) == ["stock", "ours"] and found["failures"] == []
    assert "last" in found["not_timed"]
    for grad, saved in zip(gradients.grads, gradients.saved, strict=True):
        assert torch.equal(grad, saved)


def test_a_replay_without_memory_is_no_fault() -> None:
    class Small(devices.Device):
        def _capture(self, call: devices.Clip) -> devices.Clip:
            raise torch.OutOfMemoryError(f"CUDA out of memory for {type(call).__name__}")

    found = gpu_rows.measure_row(bench_of(Small(), ours()), Gradients(FIVE, "float32"), True)
    assert found["failures"] == []
    told = found["entries"]["ours"]["not_replayed"]
    assert told is not None and told.startswith("OutOfMemoryError: CUDA out of memory")


def failing_at(call_number: int, error: Exception) -> Callable[[Gradients, float], devices.Clip]:
    """Return the preparation of a call that raises once, at this call of it, counted from 1."""

    def prepare(gradients: Gradients, max_norm: float) -> devices.Clip:
        made: list[int] = []

        def call() -> Tensor:
            made.append(1)
            if len(made) == call_number:
                raise error
            return torch.nn.utils.clip_grad_norm_(gradients.parameters, max_norm)

        return call

    return prepare


# Of a Watched device: the check, three rounds by the host's clock, three by the device's.
@pytest.mark.parametrize("call_number", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("is_ours", [False, True])
def test_who_raises_is_left_out_and_the_others_are_timed(call_number: int, is_ours: bool) -> None:
    prepare = failing_at(call_number, TypeError("too many arguments\nof a call"))
    entrant = entrants.Entrant("fails", prepare, is_ours)
    found = gpu_rows.measure_row(
        bench_of(Watched(), entrant, ours()), Gradients(FIVE, "float32"), clipped=True
    )
    assert list(found["entries"]) == ["stock", "ours"]
    told = "TypeError: too many arguments"
    assert found["not_timed"] == {"fails": told}
    # Ours fail the run; that of others is their own affair. The capture that fails is the device's.
    failures = [told for told in found["failures"] if told.startswith("fails ")]
    assert failures == ([f"fails at five float32, clipped: {told}"] if is_ours else [])


def test_a_preparation_that_raises_costs_the_entrant_alone() -> None:
    def prepare(_: Gradients, max_norm: float) -> devices.Clip:
        raise TypeError(f"no threshold of {type(max_norm)}")

    entrant = entrants.Entrant("fails", prepare)
    bench = bench_of(Watched(), entrant)
    found = gpu_rows.measure_row(bench, Gradients(FIVE, "float32"), clipped=False)
    assert list(found["entries"]) == ["stock"] and found["failures"] == []
    assert found["not_timed"]["fails"].startswith("TypeError: no threshold of")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("stock", RuntimeError("no kernel image")),
        ("ours", torch.OutOfMemoryError("tried to allocate 2 GiB")),
    ],
)
def test_nothing_goes_on_without_stock_or_without_memory_for_ours(
    name: str, error: Exception
) -> None:
    for call_number in (1, 4, 7):
        fails = entrants.Entrant(name, failing_at(call_number, error), name == "ours")
        bench = bench_of(Watched(), *([] if name == "stock" else [fails]))
        if name == "stock":
            bench = replace(bench, entrants=[fails])
        with pytest.raises(type(error), match=str(error)):
            gpu_rows.measure_row(bench, Gradients(FIVE, "float32"), clipped=True)


def test_after_a_failed_capture_no_other_is_tried() -> None:
    class Capturing(devices.Device):
        def __init__(self) -> None:
            super().__init__()
            self.tried = 0

        def _capture(self, call: devices.Clip) -> devices.Clip:
            self.tried += 1
            if self.tried == 3:
                raise devices.NotCapturedError("a cooperative launch")
            return call

    device = Capturing()
    # Whose capture may fail comes last.
    taking_part = [entrants.Entrant("another", halved), ours("fused", "fused"), ours("auto")]
    taking_part[0] = entrants.Entrant("another", entrants._on_list(entrants._stock))
    bench = bench_of(device, *taking_part)
    gradients = Gradients(FIVE, "float32")
    first, second = (gpu_rows.measure_row(bench, gradients, clipped) for clipped in (False, True))
    told = "not tried, as an earlier capture failed: a cooperative launch"
    reasons = {name: entry["not_replayed"] for name, entry in first["entries"].items()}
    wanted = {"stock": None, "auto": None, "fused": "a cooperative launch", "another": told}
    assert reasons == wanted
    assert {entry["not_replayed"] for entry in second["entries"].values()} == {told}
    assert device.tried == 3
    # It is one failure, not one for each that is not tried.
    failed = "fused at five float32, not clipped: as a graph's replay: a cooperative launch"
    assert (first["failures"], second["failures"]) == ([failed], [])


def test_captures_come_after_all_times_of_calls() -> None:
    class Noting(Watched):
        def _capture(self, call: devices.Clip) -> devices.Clip:
            self.asked.append("capture")
            return call

    device = Noting()
    gpu_rows.measure_row(bench_of(device, ours()), Gradients(FIVE, "float32"), clipped=False)
    first = device.asked.index("capture")
    assert device.asked[:first].count("clock") == 2 * 3
    assert device.asked[first:].count("clock") == 2 * 3


def test_rounds_in_which_the_host_was_late_are_counted_and_told() -> None:
    class Late(devices.Device):
        def __init__(self) -> None:
            super().__init__()
            self.clocked = 0

        def clock(self, call: Callable[[], object]) -> tuple[object, float]:
            self.clocked += 1
            # The first round, of two calls, is not counted; then one of each two is late.
            self.host_was_ahead = self.clocked > 2 and self.clocked % 2 == 0
            return super().clock(call)

    found = gpu_rows.measure_row(
        bench_of(Late(), ours()), Gradients(FIVE, "float32"), clipped=False
    )
    entries = found["entries"].values()
    assert sum(entry["rounds_not_ahead"] for entry in entries) == 2
    assert sum(entry["replay_rounds_not_ahead"] for entry in entries) == 2
    ours_entry = found["entries"]["ours"]
    ours_entry["rounds_not_ahead"], ours_entry["replay_rounds_not_ahead"] = 2, 0
    text = gpu_report.markdown(report([{**found, "case": "1000x64"}]))
    told = "host not ahead in 2 of 2 rounds: the device times include the host's"
    assert f"- ours float32, not clipped: {told}" in text
