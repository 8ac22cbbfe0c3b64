"""The compiled Triton kernels meet the static targets, and the document describes them."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.util import find_spec

import compiled_triton
import pytest
from compiled_code import disassembler
from compiled_rules import amd_barrier_faults, arithmetic_faults, barrier_faults
from compiled_triton import DOCUMENT, Kernel, document
from toolkit import may_skip
from triton_builds import MIXES, TARGETS, Target, Variant, variants

MISSING = [
    text
    for text, is_missing in (
        ("triton", find_spec("triton") is None),
        ("the cuobjdump of Triton", disassembler() is None),
    )
    if is_missing
]
if may_skip(" and ".join(MISSING) or None):
    pytest.skip(f"needs {' and '.join(MISSING)}", allow_module_level=True)

from fastclip.backends.triton.call import MAX_REGISTERS, PROGRAMS_EACH  # noqa: E402

pytestmark = pytest.mark.slow

MIN_LOADS = 8
MIN_BYTES = 64 * 1024
MAX_VECTOR_REGISTERS = 256

by_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    return compiled_triton.compile_all(tmp_path_factory.mktemp("compiled"))


def kernels(compiled: list[Kernel], target: Target) -> list[Kernel]:
    found = [kernel for kernel in compiled if kernel.target == target]
    assert [kernel.variant for kernel in found] == variants(target)
    return found


def is_documented_release() -> bool:
    return f"Triton {version('triton')} " in DOCUMENT.read_text(encoding="utf-8")


@by_target
def test_registers_suffice(compiled: list[Kernel], target: Target) -> None:
    limit = MAX_REGISTERS if target.is_nvidia else MAX_VECTOR_REGISTERS
    for kernel in kernels(compiled, target):
        assert kernel.registers <= limit, kernel.name
        assert kernel.programs() >= PROGRAMS_EACH, kernel.name
        assert kernel.spills == 0, kernel.name
        assert kernel.stack == 0, kernel.name


def least_in_flight(kernel: Kernel) -> tuple[int, int]:
    """Return how many loops may have fewer than MIN_LOADS in flight, and how many these have."""
    if kernel.variant.is_exempt:
        return 4, 1
    if kernel.variant.kernel == "clamp_kernel":
        return 4, 2  # compares so little that compilers spread the loads to use fewer registers
    # Sums in float64 of 16-bit elements: for SUM_SQ this is only the rescue.
    if kernel.variant.kind in ("SUM_SQ", "SUM_SQ_WIDE", "ABS_SUM"):
        return 2, 3
    return 0, MIN_LOADS


@by_target
def test_hot_loops_load_and_store_16_bytes(compiled: list[Kernel], target: Target) -> None:
    for kernel in kernels(compiled, target):
        has_loops = not kernel.variant.kernel.startswith(("finish_kernel", "write"))
        assert bool(kernel.loops) == has_loops, kernel.name
        assert all(loop.narrow == () for loop in kernel.loops), kernel.name
        writes = [loop.stores for loop in kernel.loops if loop.stores]
        dtypes = MIXES.get(kernel.variant.mix, 0).bit_count()
        reads_only = not has_loops or kernel.variant.kernel == "reduce_kernel"
        assert len(writes) >= (0 if reads_only else dtypes), kernel.name
        assert not reads_only or not writes, kernel.name
        assert all(stores >= MIN_LOADS for stores in writes), kernel.name


@by_target
def test_enough_loads_are_in_flight(compiled: list[Kernel], target: Target) -> None:
    for kernel in kernels(compiled, target):
        if not is_documented_release() or not kernel.loops:
            continue  # another compiler may place loads in another way
        loops, least = least_in_flight(kernel)
        fewer = [loop.in_flight for loop in kernel.loops if loop.in_flight < MIN_LOADS]
        assert len(fewer) <= loops, kernel.name
        assert min(fewer, default=MIN_LOADS) >= least, kernel.name
        assert fewer or kernel.bytes_in_flight() >= MIN_BYTES, kernel.name


def test_float32_arithmetic_is_as_written(compiled: list[Kernel]) -> None:
    for kernel in compiled:
        if kernel.target.is_nvidia:
            faults = arithmetic_faults(kernel.text, kernel.variant.is_exempt)
            assert faults == [], kernel.name


def test_the_grid_barrier_orders_memory(compiled: list[Kernel]) -> None:
    for kernel in compiled:
        if kernel.variant.kernel == "clip_kernel" and not kernel.variant.finds_inf:
            if kernel.target.is_nvidia:
                faults = barrier_faults(kernel.text)
            else:
                # gfx942 has several L2 caches, gfx90a one a device.
                faults = amd_barrier_faults(kernel.text, kernel.target.name == "gfx942")
            assert faults == [], kernel.name


def test_the_document_says_what_is_compiled(compiled: list[Kernel]) -> None:
    if not is_documented_release():
        pytest.skip(f"docs/compiled-triton.md is of another triton than {version('triton')}")
    assert DOCUMENT.read_text(encoding="utf-8") == document(compiled, version("triton"))


SASS = """
        Function : clip_kernel
        /*0010*/  @!P0 LDG.E.128 R12, desc[UR8][R20.64] ;
        /*0020*/       FADD R4, R5, R13 ;
        /*0030*/       LDG.E.64 R30, desc[UR8][R44.64] ;
        /*0040*/       STG.E.128 desc[UR8][R44.64], R20 ;
        /*0050*/       LDL R6, [R1] ;
        /*0060*/  @P0  BRA 0x10 ;
"""
AMD = """
clip_kernel:
.LBB0_1:                                ; a comment
\tglobal_load_dwordx4 v[0:3], v[8:9], off
\tbuffer_load_dwordx4 v[4:7], v8, s[0:3], 0 offen
\ts_waitcnt vmcnt(1)
\tglobal_load_ushort v9, v[8:9], off
\tglobal_store_dwordx4 v[8:9], v[0:3], off
\ts_cbranch_scc1 .LBB0_1
\ts_barrier
{arrival}
\tglobal_atomic_add v3, v3, v4, s[2:3] sc0
\ts_waitcnt vmcnt(0)
\tbuffer_inv sc1
\tglobal_atomic_or v3, v3, v4, s[2:3] sc0
\ts_endpgm
.Lfunc_end0:
    .private_segment_fixed_size: 8
    .sgpr_spill_count: 2
    .vgpr_count:     257
    .vgpr_spill_count: 3
"""
PTX = """
	bar.sync 	0;
	@%p1 atom.global.gpu.acq_rel.add.u32 %r1, [ %rd1 + 0 ], %r2;
	bar.sync 	0;
	@%p1 ld.global.gpu.acquire.b32 %r1, [ %rd1 + 0 ];
	bar.sync 	0;
	neg.f32 	%r9, %r8;
	fma.rn.f32 	%r3, %r4, %r4, %r9;
"""


def kernel_of(target: Target, text: str) -> Kernel:
    return Kernel(target, Variant("clip_kernel", "bfloat16", "SUM_SQ", False), text, 0)


def test_faults_in_machine_code_are_seen() -> None:
    kernel = kernel_of(TARGETS[0], "")
    compiled_triton.read_nvidia(kernel, "  REG:129 STACK:8 SHARED:0", SASS)
    assert (kernel.registers, kernel.stack, kernel.spills) == (129, 8, 1)
    (loop,) = kernel.loops
    assert (loop.loads, loop.in_flight, loop.stores) == (1, 1, 1)
    assert loop.narrow == ("LDG.E.64",)
    assert kernel.programs() == 1
    assert kernel.bytes_in_flight() == 256 * 16

    kernel = kernel_of(TARGETS[-1], AMD.format(arrival="\ts_waitcnt vmcnt(0)"))
    compiled_triton.read_amd(kernel)
    assert (kernel.registers, kernel.stack) == (257, 8)
    assert (kernel.spills, kernel.scalar_spills) == (3, 2)
    (loop,) = kernel.loops
    assert (loop.loads, loop.in_flight, loop.stores) == (2, 2, 1)
    assert loop.narrow == ("global_load_ushort",)
    assert kernel.programs() == 1
    poll = "global_atomic_or without a wait and an invalidation"
    assert amd_barrier_faults(kernel.text, False) == [poll]
    loaded = kernel.text.replace(
        "global_atomic_or v3, v3, v4, s[2:3] sc0", "global_load_dword v3, v4, s[2:3] glc"
    )
    assert amd_barrier_faults(loaded, False) == [poll.replace("global_atomic_or", "coherent load")]
    assert amd_barrier_faults(loaded.replace("glc", "nt"), False) == ["no poll"]
    arrival = "arrival without s_barrier, buffer_wbl2, s_waitcnt"
    assert amd_barrier_faults(kernel.text, True) == [arrival, poll]


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("fma.rn.f32 	%r3, %r4, %r4, %r9;", "fma.rn.f32 	%r3, %r4, %r5, %r9;"),
        ("fma.rn.f32 	%r3, %r4, %r4, %r9;", "fma.rn.f64 	%r3, %r4, %r4, %r9;"),
        ("neg.f32 	%r9, %r8;", "mul.ftz.f32 	%r9, %r8, %r8;"),
        ("neg.f32 	%r9, %r8;", "neg.f32 	%r9, %r8;\n	ld.global.nc.b32 	%r1, [%rd1];"),
        ("neg.f32 	%r9, %r8;", "neg.f32 	%r9, %r8;\n	div.approx.f32 	%r1, %r2, %r3;"),
    ],
)
def test_faults_in_arithmetic_are_seen(line: str, instead: str) -> None:
    assert arithmetic_faults(PTX, False) == []
    assert arithmetic_faults(PTX.replace(line, instead), False) != []


@pytest.mark.parametrize(("zero", "is_fault"), [("0f00000000", False), ("0f3F800000", True)])
def test_a_difference_from_zero_is_a_negation(zero: str, is_fault: bool) -> None:
    difference = f"mov.b32 	%r7, {zero};\n	sub.rn.f32 	%r9, %r7, %r8;"
    found = arithmetic_faults(PTX.replace("neg.f32 	%r9, %r8;", difference), False)
    assert bool(found) == is_fault


@pytest.mark.parametrize("removed", range(3))
def test_a_missing_block_barrier_is_seen(removed: int) -> None:
    assert barrier_faults(PTX) == []
    at = [match.start() for match in re.finditer(r"\tbar\.sync", PTX)][removed]
    assert len(barrier_faults(PTX[:at] + PTX[at:].partition("\n")[2])) == 1


@pytest.mark.parametrize("order", ["acq_rel", "acquire"])
def test_a_weaker_order_is_seen(order: str) -> None:
    assert len(barrier_faults(PTX.replace(order, "relaxed"))) == 1
