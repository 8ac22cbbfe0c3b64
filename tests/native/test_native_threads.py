"""The native backend beside other Python threads: it lets them run and they do not disturb it."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import native_calls
import oracle
import pytest
import torch
from native_cases import (
    CHUNK_SIZE,
    gradient_of,
    parameters_of,
    random_list,
    random_tensor,
    same_bits,
    scaled,
    using_threads,
)
from torch import Tensor

import fastclip

SLOW_NORM_TYPE = 2.5
"""A norm_type that needs pow(), tens of nanoseconds an element, so that little memory makes a long
call."""

LENGTHS = (3 * CHUNK_SIZE + 1, 33, 20 * CHUNK_SIZE, 1, 0, 700)


def run_together(*works: Callable[[], None]) -> None:
    """Run each work in its own thread, all at the same time, and raise what any of them raised."""
    start = threading.Barrier(len(works))
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait(timeout=60)
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def counting() -> Iterator[list[int]]:
    """Count, in another thread, how often it got to run.

    No thread is made to hand over the GIL while this lasts: the count moves only while somebody
    releases it.
    """
    count = [0]
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            count[0] += 1
            time.sleep(0.0005)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    thread.start()
    sys.setswitchinterval(1000.0)
    time.sleep(0.02)  # a wait that began before would still end after the old interval
    try:
        yield count
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


LARGE = 24_000_000

ATTEMPTS = 5
"""Other programs may keep the counting thread from a core for as long as a call takes. A call that
keeps the GIL gives it no turn, however often it is made."""


@pytest.mark.parametrize(
    ("call", "size"),
    [
        (lambda p, g: native_calls.clip_grad_norm_(p, 1e9, SLOW_NORM_TYPE, False), 3_000_000),
        (lambda p, g: native_calls.get_total_norm(g, SLOW_NORM_TYPE, False, None), 3_000_000),
        (
            lambda p, g: fastclip.GradClipper(p, 1e9, SLOW_NORM_TYPE, backend="native").clip_(),
            3_000_000,
        ),
        (lambda p, g: native_calls.clip_grads_with_norm_(p, 1.0, torch.tensor(2.0)), LARGE),
        (lambda p, g: native_calls.clip_grad_value_(p, 0.25), LARGE),
        (lambda p, g: native_calls.scaled(g, 0.5), LARGE),
    ],
    ids=["clip", "norm", "prepared", "scale", "clamp", "scaled"],
)
def test_other_threads_run_during_a_call(
    call: Callable[[list[Tensor], list[Tensor]], object], size: int
) -> None:
    during = held = 0
    for _ in range(ATTEMPTS):
        gradients = [torch.full((size,), 0.5)]
        parameters = parameters_of(gradients)
        with using_threads(1), counting() as count:
            before = count[0]
            call(parameters, gradients)
            during = count[0] - before
            before = count[0]
            sum(range(300_000))  # holds the GIL: shows that the count tells the two apart
            held = count[0] - before
        assert held == 0
        if during >= 4:
            break
    # More than the one turn that a release only at the end of the call would give.
    assert during >= 4


def test_a_short_list_keeps_the_gil_unless_its_powers_are_slow() -> None:
    parameters = parameters_of([torch.full((64,), 0.5) for _ in range(100)])
    results: list[Tensor | None] = []  # kept: torch itself lets go of the GIL to free a tensor
    with using_threads(1), counting() as count:
        before = count[0]
        for _ in range(1000):
            results.append(native_calls.clip_grad_norm_(parameters, 1e9, 2.0, False))
        kept = count[0] - before
        # The other thread may wait for a core as well, where other programs run.
        ends = time.monotonic() + 60
        while count[0] - before < 4 and time.monotonic() < ends:
            results.append(native_calls.clip_grad_norm_(parameters, 1e9, SLOW_NORM_TYPE, False))
        released = count[0] - before
    assert kept == 0
    assert released >= 4


def test_two_threads_clip_different_gradients() -> None:
    def clip_often(seed: int) -> None:
        original = random_list(LENGTHS, torch.float32, seed)
        parameters = parameters_of([tensor.clone() for tensor in original])
        clipper = fastclip.GradClipper(parameters, 1.0, backend="native")
        first: Tensor | None = None
        for step in range(30):
            for parameter, tensor in zip(parameters, original, strict=True):
                gradient_of(parameter).copy_(tensor)
            total_norm = (
                clipper.clip_()
                if step % 2
                else fastclip.clip_grad_norm_(parameters, 1.0, backend="native")
            )
            first = total_norm if first is None else first
            assert same_bits(total_norm, first)
            for parameter, tensor in zip(parameters, original, strict=True):
                assert same_bits(gradient_of(parameter), scaled(tensor, 1.0, total_norm))

    run_together(*(lambda seed=seed: clip_often(seed) for seed in (1, 2, 3)))


def test_two_threads_share_a_clipper() -> None:
    gradients = random_list(LENGTHS, torch.bfloat16)
    clipper = fastclip.GradClipper(parameters_of(gradients), 1e9, backend="native")
    expected = oracle.total_norm(gradients, 2.0)
    norms = [oracle.tensor_norm(gradient, 2.0) for gradient in gradients]

    def clip_often() -> None:
        for _ in range(60):
            assert oracle.is_norm(clipper.clip_().item(), expected, torch.float32)
            for got, right in zip(clipper.parameter_norms.tolist(), norms, strict=True):
                assert oracle.is_norm(got, right, torch.float32)

    run_together(clip_often, clip_often)


def test_two_threads_clip_the_same_gradients_down() -> None:
    gradients = random_list(LENGTHS, torch.float32)
    clipper = fastclip.GradClipper(parameters_of(gradients), 1.0, backend="native")

    def clip_often() -> None:
        for _ in range(20):
            clipper.clip_()

    run_together(clip_often, clip_often)
    # It is open which thread scaled an element and how often, but every element must have shrunk.
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert oracle.total_norm(gradients, 2.0) <= 1.0 + 1e-6


def test_a_gradient_dropped_during_a_call_stays_alive_until_it_ends() -> None:
    gradient = random_tensor(4_000_000, torch.float32)
    expected = oracle.total_norm([gradient], SLOW_NORM_TYPE)
    parameter = parameters_of([gradient])[0]
    del gradient
    walking, dropped = threading.Event(), threading.Event()

    class Last:
        """The last parameter of a list: to read its gradient shows that the others were read."""

        @property
        def grad(self) -> None:
            walking.set()

    parameters = cast("list[Tensor]", [parameter, Last()])

    def clip() -> None:
        total_norm = native_calls.clip_grad_norm_(parameters, 1e9, SLOW_NORM_TYPE, False)
        assert total_norm is not None
        assert dropped.is_set(), "the gradient was to be dropped while the call ran"
        assert oracle.is_norm(total_norm.item(), expected, torch.float32)

    def drop() -> None:
        assert walking.wait(timeout=60)
        parameter.grad = None
        torch.full((4_000_000,), float("nan"))  # lands in the memory that was given back
        dropped.set()

    with using_threads(1):
        run_together(clip, drop)


def test_a_norm_beside_torchs_own_parallel_work() -> None:
    gradients = random_list(LENGTHS, torch.float32)
    expected = oracle.total_norm(gradients, 2.0)

    def norm_often() -> None:
        for _ in range(50):
            total_norm = fastclip.get_total_norm(gradients, backend="native").item()
            assert oracle.is_norm(total_norm, expected, torch.float32)

    def multiply_often() -> None:
        matrix = torch.ones(300, 300)
        for _ in range(50):
            assert (matrix @ matrix)[0, 0].item() == 300.0

    run_together(norm_often, multiply_often)
