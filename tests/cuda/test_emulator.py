"""The emulator reports the faults that it is made for, and none in kernels that are right."""

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import build_program as builder
import pytest
from build_program import BUILDS, Build
from toolkit import why_no_emulator

REASON = why_no_emulator()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

CASES = builder.HERE / "cases"
SOURCES = [CASES / "main.cpp", *sorted(CASES.glob("*.cu"))]
SCHEDULES = ("fifo", "lifo", "random", "priorities")
# With ThreadSanitizer, which makes its own fibers, a launch costs a thousand times more.
SEEDS: dict[Build, int] = {"plain": 20, "address": 5, "thread": 2}

RIGHT = (
    *("exchange", "take_turns", "order", "after_faults"),
    *("block_sum", "grid_sum", "last_block", "swap"),
    *("counting", "vectors", "shared"),
    *("devices", "loading", "no_device", "cooperative", "arguments", "capture", "log", "pointers"),
    *("conversions", "functions"),
)
# A case, the kind of its report, and the source that the report must name.
FAULTS = (
    ("early_exit", "deadlock", "__syncthreads();"),
    ("half_warp", "deadlock", "__shfl_xor_sync(kAllLanes, 1, 1)"),
    ("barrier_in_branches", "divergence", "__syncthreads();\n  } else"),
    ("two_masks", "divergence", "__any_sync(mask, 1)"),
    ("lane_outside", "bad lane", "__shfl_sync(kLowLanes, 1, 20)"),
    ("not_in_mask", "bad lane", "__any_sync(kLowLanes, 1)"),
    ("wait_for_nobody", "livelock", "while (atomicAdd(out, 0) == 0)"),
    ("grid_barrier", "not cooperative", "emulator::relaxed_grid_sync()"),
    ("trap", "trap", "__trap();"),
    ("misaligned", "misaligned", "__ldcg(reinterpret_cast<const uint4*>(source)"),
    ("past_watched", "outside", "__stcg(target + i, __ldcg(source + i))"),
    ("unwatched", "outside", "__stcg(target + i, __ldcg(source + i))"),
    ("read_only", "read-only", "__stcg(target + i, __ldcg(source + i))"),
    ("other_device", "other device", "__stcg(target + i, __ldcg(source + i))"),
    ("shared_too_large", "shared memory", "FASTCLIP_SHARED(Values, values);\n  if (kIsWritten)"),
)
# Without their barrier or fence these show a wrong value, and a race at the line.
UNORDERED = (
    ("block_sum_without_barrier", "for (const int value : values) sum += value"),
    ("grid_sum_without_barrier", "sum += __ldcg(partials + block)"),
)
# Their threads do meet, but nothing orders memory. x86 orders it anyway.
WEAKLY_ORDERED = (
    ("grid_sum_relaxed", "sum += __ldcg(partials + block)"),
    ("last_block_without_writer_fence", "all += __ldcg(partials + block)"),
    ("last_block_without_reader_fence", "all += __ldcg(partials + block)"),
    ("swap_without_barrier", "values[thread ^ 1]"),
)
PLAIN_ACCESSES = (
    ("past_plain", "AddressSanitizer: heap-buffer-overflow", "target[i] = source[i]"),
    ("guard_zone", "AddressSanitizer: use-after-poison", "target[i] = source[i]"),
    ("misaligned_plain", "misaligned address", "reinterpret_cast<const uint4*>(source)[threadIdx"),
    ("shared_too_small", "index 63 out of bounds", "values[threadIdx.x] = 1"),
    ("shared_past_end", "AddressSanitizer: use-after-poison", "out[0] = first[kThreads]"),
)


@dataclass(frozen=True)
class Outcome:
    """What a program of cases printed."""

    runs: Sequence[tuple[str, str, str, str]]  # case, schedule, seed, verdict
    text: str
    status: int

    def verdicts(self, case: str) -> list[str]:
        """Return "right", "wrong" or "fault" and its kind, for each schedule and seed."""
        return [verdict for name, _, _, verdict in self.runs if name == case]

    def report(self, case: str) -> str:
        """Return what the case's first run printed after its verdict."""
        return self.text.partition(f"{case} fifo 0 ")[2].partition(f"{case} lifo")[0]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulator")


@cache
def _program(out: Path, build: Build) -> Path:
    return builder.build_program(SOURCES, out, build)


@cache
def _run(out: Path, build: Build, cases: str, seeds: int = 1, schedule: str = "") -> Outcome:
    # By default ThreadSanitizer waits a second before it ends.
    options = {"TSAN_OPTIONS": "atexit_sleep_ms=0", "ASAN_OPTIONS": "", "UBSAN_OPTIONS": ""}
    done = subprocess.run(
        [str(_program(out, build)), cases, str(seeds), *filter(None, [schedule])],
        env={**os.environ, **options},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    pattern = re.compile(r"^(\w+) (\w+) (\d+) (right|wrong|fault .+)$", re.MULTILINE)
    return Outcome(pattern.findall(done.stdout), done.stdout + done.stderr, done.returncode)


def _place(text: str) -> str:
    """Return the file and the line on which the text begins in one of the cases."""
    for source in SOURCES:
        before, found, _ = source.read_text(encoding="utf-8").partition(text)
        if found:
            return f"{source.name}:{before.count(chr(10)) + 1}"
    raise LookupError(text)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("case", RIGHT)
def test_right_kernels_are_clean(out: Path, build: Build, case: str) -> None:
    # All run in one process, so that the next launch meets what one leaves behind.
    outcome = _run(out, build, ",".join(RIGHT), SEEDS[build])
    assert outcome.status == 0, outcome.text
    assert outcome.verdicts(case) == ["right"] * 4 * SEEDS[build]
    assert {schedule for _, schedule, _, _ in outcome.runs} == set(SCHEDULES)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(("case", "kind", "line"), FAULTS, ids=[case for case, _, _ in FAULTS])
def test_fault_is_reported_with_its_place(
    out: Path, build: Build, case: str, kind: str, line: str
) -> None:
    outcome = _run(out, build, ",".join(case for case, _, _ in FAULTS))
    assert outcome.status == 0, outcome.text
    assert outcome.verdicts(case) == [f"fault {kind}"] * 4
    assert _place(line) in outcome.report(case)


def test_deadlock_says_what_every_thread_waits_for(out: Path) -> None:
    text = _run(out, "plain", "half_warp", 1, "fifo").text
    place = re.escape(_place("__shfl_xor_sync(kAllLanes, 1, 1)"))
    waiting = rf"threads 0-15, 32-47: in __shfl_xor_sync at \S*{place}, mask 0xffffffff"
    assert re.search(waiting, text), text
    assert "threads 16-31, 48-63: ended" in text


@pytest.mark.parametrize("build", ["plain", "address"])
@pytest.mark.parametrize(("case", "line"), UNORDERED)
def test_missing_barrier_gives_wrong_values(out: Path, build: Build, case: str, line: str) -> None:
    outcome = _run(out, build, ",".join(case for case, _ in UNORDERED), SEEDS[build])
    wrong = {run[1] for run in outcome.runs if run[0] == case and run[3] == "wrong"}
    assert len(wrong) >= 3, outcome.text


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("case", "line"), UNORDERED + WEAKLY_ORDERED)
def test_race_is_seen_under_every_schedule(out: Path, case: str, line: str, schedule: str) -> None:
    outcome = _run(out, "thread", case, 1, schedule)
    assert "ThreadSanitizer: data race" in outcome.text
    assert _place(line) in outcome.text, outcome.text


@pytest.mark.slow
def test_blocks_that_share_fibers_do_not_race(out: Path) -> None:
    # These are more threads than ThreadSanitizer has fibers for.
    outcome = _run(out, "thread", "block_sum_of_many", 1, "random")
    assert outcome.status == 0, outcome.text
    assert outcome.verdicts("block_sum_of_many") == ["right"]


@pytest.mark.parametrize("build", ["plain", "address"])
@pytest.mark.parametrize(("case", "line"), WEAKLY_ORDERED)
def test_weak_order_shows_in_no_value(out: Path, build: Build, case: str, line: str) -> None:
    outcome = _run(out, build, ",".join(case for case, _ in WEAKLY_ORDERED))
    assert outcome.verdicts(case) == ["right"] * 4, outcome.text


@pytest.mark.parametrize("build", BUILDS)
def test_unwritten_shared_memory_is_nan(out: Path, build: Build) -> None:
    outcome = _run(out, build, "shared_unwritten")
    assert outcome.verdicts("shared_unwritten") == ["wrong"] * 4
    assert len(re.findall("got -?nan", outcome.text)) == 4, outcome.text


@pytest.mark.parametrize(
    ("case", "message", "line"), PLAIN_ACCESSES, ids=[case for case, _, _ in PLAIN_ACCESSES]
)
def test_plain_access_is_seen_at_the_line(out: Path, case: str, message: str, line: str) -> None:
    outcome = _run(out, "address", case)
    assert outcome.status != 0
    assert message in outcome.text
    assert _place(line) in outcome.text, outcome.text


@pytest.mark.parametrize("build", ["plain", "thread"])
def test_store_to_a_guard_zone_is_seen_afterwards(out: Path, build: Build) -> None:
    outcome = _run(out, build, "guard_zone")
    assert outcome.verdicts("guard_zone") == ["wrong"] * 4, outcome.text


def test_abort_prints_the_report(out: Path) -> None:
    outcome = _run(out, "plain", "abort")
    assert outcome.status == -signal.SIGABRT
    assert "emulator: deadlock: no thread can go on" in outcome.text
    assert _place("__syncthreads();") in outcome.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("__shared__ int x[4];", r"shared memory needs FASTCLIP_SHARED\(type, name\)"),
        ("__managed__ int x;", "__managed__ is not emulated"),
        ("int x = __ldg(p);", "use of deleted function .*__ldg"),
        ("atomicAdd(reinterpret_cast<unsigned long*>(p), 1ul);", "static assertion failed"),
        ("__shfl_sync(0xffffffff, p, 0);", "not a type that lanes can exchange"),
    ],
)
def test_what_is_not_emulated_does_not_compile(tmp_path: Path, line: str, message: str) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text(f"#include <cuda_runtime.h>\n__global__ void kernel(int* p) {{\n{line}\n}}\n")
    with pytest.raises(RuntimeError, match=message):
        builder.build_program([source], tmp_path)


def test_extension_runs_kernels(out: Path, tmp_path: Path) -> None:
    source = tmp_path / "extension.cu"
    source.write_text(
        "#include <cuda_runtime.h>\n"
        "__global__ void add(int* sum) { atomicAdd(sum, 1); }\n"
        'extern "C" int count_threads() {\n'
        "  int sum = 0;\n"
        "  cudaLaunchConfig_t config = {};\n"
        "  config.gridDim = dim3(3), config.blockDim = dim3(50);\n"
        "  return cudaLaunchKernelEx(&config, &add, &sum) == cudaSuccess ? sum : -1;\n"
        "}\n"
    )
    library = ctypes.CDLL(str(builder.build_program([source], out, shared=True)))
    assert library.count_threads() == 150


def test_nothing_is_compiled_twice(out: Path, tmp_path: Path) -> None:
    source = tmp_path / "program.cpp"
    source.write_text("int main() { return 3; }\n")
    program = builder.build_program([source], out)
    assert subprocess.run([program], check=False).returncode == 3

    def objects() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in out.glob("*.o")}

    before = objects()
    assert builder.build_program([source], out) == program
    assert objects() == before
    source.write_text("int main() { return 4; }\n")
    builder.build_program([source], out)
    assert subprocess.run([program], check=False).returncode == 4
    assert len(objects().keys() - before.keys()) == 1
    assert {name: objects()[name] for name in before} == before
