"""The GPU's clock of bench gpu, with torch.cuda's events made up."""

from typing import ClassVar

import pytest
import torch

from bench.gpu import devices


class Event:
    """An event that is as far as the class says, and notes what is done with it."""

    done = False
    log: ClassVar[list[str]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.log.append("record")

    def query(self) -> bool:
        self.log.append("query")
        return self.done

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def elapsed_time(self, _: object) -> float:
        return 5.0


@pytest.fixture
def spins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the cycles that were spun, on a GPU whose every call takes 5 ms."""
    spun: list[int] = []
    monkeypatch.setattr(torch.cuda, "_sleep", spun.append)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "log", [])
    return spun


def a_gpu() -> devices.CudaDevice:
    """Return a GPU whose buffer lies on the CPU."""
    device = object.__new__(devices.CudaDevice)
    device._buffer = torch.zeros(7, dtype=torch.int32)
    device._highest = torch.zeros((), dtype=torch.int32)
    device._cycles_per_ms = device._calibrated()
    return device


def test_a_flush_writes_reads_and_outlasts_the_host(spins: list[int]) -> None:
    device = a_gpu()
    assert device._cycles_per_ms == devices.CALIBRATED_CYCLES / 5.0
    spins.clear()
    device.flush(0.0)
    device.flush(2.0)
    # One launch, however long the host takes: the queue holds only so many.
    assert [cycles / device._cycles_per_ms for cycles in spins] == pytest.approx([0.1, 3.1])
    assert device._buffer.eq(1).all() and device._highest == 1


@pytest.mark.parametrize("done", [False, True])
def test_the_host_is_ahead_if_the_device_has_not_begun(
    monkeypatch: pytest.MonkeyPatch, spins: list[int], done: bool
) -> None:
    device = a_gpu()
    monkeypatch.setattr(Event, "done", done)
    Event.log.clear()
    assert device.clock(lambda: Event.log.append("call")) == (None, 5e6)
    assert device.host_was_ahead is not done
    # Asked once all is in the queue, and before anybody waits.
    assert Event.log == ["record", "call", "record", "query", "synchronize"]


@pytest.mark.parametrize(("hip", "n_bytes"), [(None, 4 << 25), ("6.4", 512 << 20)])
def test_a_flush_outgrows_the_caches(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, n_bytes: int
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    assert devices.flushed_bytes(1 << 25) == n_bytes
    assert devices.flushed_bytes(1 << 28) == 4 << 28
