"""The calls of one row: checked, timed, replayed. One that raises is dropped, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from bench.core.gradients import Gradients, WrongResultError, check_coefficient
from bench.core.text import row_title
from bench.core.timing import Clip, Clock, Contender, Effort, Milliseconds, alternate
from bench.gpu.devices import Device, NotCapturedError, NotTriedError
from bench.gpu.entrants import STOCK, Entrant
from fastclip.backends.clip_mode import clip_mode, set_clip_mode

Lose = Callable[[str, Exception], None]
"""Takes note of an entrant that raised."""


@dataclass(frozen=True)
class Bench:
    """What holds for every row of a run."""

    device: Device
    entrants: Sequence[Entrant]
    effort: Effort
    copy_bytes_per_second: float


class _CallError(Exception):
    """The entrant of this name raised, while all were timed, what the second argument is."""


@contextmanager
def in_form(form: str) -> Iterator[None]:
    """Let fastclip's clips on a GPU take this form, and give the choice back afterwards.

    "auto" is asked for as well: FASTCLIP_CLIP_MODE may have set another form.
    """
    before = clip_mode()
    set_clip_mode(form)
    try:
        yield
    finally:
        set_clip_mode(before)


@contextmanager
def losing(name: str, lose: Lose) -> Iterator[None]:
    """Let an entrant that raises be lost, and go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever others raise costs them a row alone
        lose(name, error)


def _raise(name: str, error: Exception) -> None:
    raise _CallError(name, error) from error


def reason_of(error: Exception) -> str:
    """Return in one line what was raised."""
    first = str(error).partition("\n")[0]
    is_whole = isinstance(error, (WrongResultError, NotCapturedError))
    return first if is_whole else f"{type(error).__name__}: {first}"


class Calls:
    """The calls of one row, each with the form that it runs in.

    Attributes:
        dropped: the entrants that are not timed, and why.
        not_replayed: those whose call is not timed as a graph's replay, and why.
        failures: what fastclip should have done and did not.
        late_rounds: in how many of the rounds timed last the host was not ahead of the device.
    """

    def __init__(self, bench: Bench, gradients: Gradients, clipped: bool) -> None:
        self.bench, self.gradients, self.clipped = bench, gradients, clipped
        self.max_norm = gradients.max_norm(clipped)
        self.entrants = {entrant.name: entrant for entrant in bench.entrants}
        self.dropped: dict[str, str] = {}
        self.not_replayed: dict[str, str] = {}
        self.failures: list[str] = []
        self.late_rounds: dict[str, int] = {}
        self.calls: dict[str, Clip] = {}
        for name, entrant in self.entrants.items():
            with losing(name, self._drop):
                self.calls[name] = entrant.prepare(gradients, self.max_norm)

    def check(self, name: str, call: Clip) -> float:
        """Return the error of a call's norm.

        Raises:
            WrongResultError: the call is fastclip's and float64 contradicts it, or it is another's
                and far from float64.
        """
        entrant = self.entrants[name]
        self.gradients.restore()
        with in_form(entrant.form):
            total_norm = call()
        self.bench.device.synchronize()
        if name != STOCK:
            self.gradients.check(name, total_norm, self.clipped, is_ours=entrant.is_ours)
        return self.gradients.norm_error(total_norm)

    def check_all(self) -> dict[str, float]:
        """Keep the calls that may be timed, and return their errors.

        Raises:
            Exception: whatever stock's call raised, without which there is no row.
            torch.OutOfMemoryError: a call of fastclip had too little memory.
        """
        errors: dict[str, float] = {}
        for name, call in list(self.calls.items()):
            with losing(name, self._drop):
                errors[name] = self.check(name, call)
        return errors

    def time_all(self, clock: Clock, ready: Callable[[str], object]) -> dict[str, Milliseconds]:
        """Time the calls; one that raises is dropped, and the others are timed again.

        Raises:
            Exception: whatever stock's call raised.
            torch.OutOfMemoryError: a call of fastclip had too little memory.
        """
        return self._time(self.calls, clock, ready, self._drop)

    def time_replays(self, clock: Clock, ready: Callable[[str], object]) -> dict[str, Milliseconds]:
        """Capture the calls in CUDA graphs, check the replays, and time them.

        A capture that fails is the process's last: all eager calls are to be timed before.
        """
        replays: dict[str, Clip] = {}
        for name in sorted(self.calls, key=self._risk):
            entrant = self.entrants[name]
            if entrant.not_captured is not None:
                self.not_replayed[name] = entrant.not_captured
                continue
            with losing(name, self._lose_replay):
                with in_form(entrant.form):
                    replay = self.bench.device.capture(self.calls[name])
                self.check(name, replay)
                replays[name] = replay
        return self._time(replays, clock, ready, self._lose_replay)

    def _risk(self, name: str) -> int:
        # By default fastclip launches nothing cooperative; what others launch is unknown.
        entrant = self.entrants[name]
        return 2 * (not entrant.is_ours and name != STOCK) + (entrant.form == "fused")

    def _time(
        self, calls: Mapping[str, Clip], clock: Clock, ready: Callable[[str], object], lose: Lose
    ) -> dict[str, Milliseconds]:
        """Time calls in alternation, each on restored gradients and a device that is ready."""
        left = dict(calls)
        while left:
            # What a call did that was dropped, here or in a check, must not be what others work on.
            self.gradients.restore()
            late: dict[str, list[bool]] = {name: [] for name in left}
            contenders = {
                name: Contender(
                    call,
                    before=partial(self._prepare, name, ready),
                    after=partial(self._after, name, late[name]),
                    within=partial(self._within, name),
                )
                for name, call in left.items()
            }
            try:
                samples = alternate(contenders, self.bench.effort, clock)
            except _CallError as error:
                name, cause = error.args
                del left[name]
                lose(name, cause)
                continue
            # The first round is not in the samples.
            self.late_rounds = {name: sum(rounds[1:]) for name, rounds in late.items()}
            return samples
        return {}

    def _prepare(self, name: str, ready: Callable[[str], object]) -> None:
        if self.clipped:
            self.gradients.restore()
        ready(name)

    @contextmanager
    def _within(self, name: str) -> Iterator[None]:
        with losing(name, _raise), in_form(self.entrants[name].form):
            yield

    def _after(self, name: str, late: list[bool], total_norm: object) -> None:
        late.append(not self.bench.device.host_was_ahead)
        with losing(name, _raise):
            check_coefficient(name, self.max_norm, self.clipped, total_norm)

    def _drop(self, name: str, error: Exception) -> None:
        is_ours = self.entrants[name].is_ours
        if name == STOCK or (is_ours and isinstance(error, torch.OutOfMemoryError)):
            raise error
        self.calls.pop(name, None)
        self.dropped[name] = reason_of(error)
        if is_ours:
            self._fail(name, self.dropped[name])

    def _lose_replay(self, name: str, error: Exception) -> None:
        self.not_replayed[name] = reason_of(error)
        # A graph keeps memory for itself: the lack of it is no fault of the call.
        is_excused = isinstance(error, (NotTriedError, torch.OutOfMemoryError))
        if self.entrants[name].is_ours and not is_excused:
            self._fail(name, f"as a graph's replay: {self.not_replayed[name]}")

    def _fail(self, name: str, reason: str) -> None:
        self.failures.append(f"{name} at {row_title(self.gradients.head(self.clipped))}: {reason}")
