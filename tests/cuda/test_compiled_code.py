"""The compiled kernels meet the design's static targets, and the document describes them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import compiled_code
import pytest
from compiled_code import ARCHITECTURES, DOCUMENT, Compiled, Kernel, document, parse
from source_tree import cuda
from toolkit import may_skip

MAX_REGISTERS = 64
MIN_LOADS = 4
MIN_BYTES = 64 * 1024

MISSING = [
    text
    for text, is_missing in (
        ("nvcc", cuda.find_toolkit() is None),
        ("the cuobjdump of Triton", compiled_code.disassembler() is None),
    )
    if is_missing
]
if may_skip(" and ".join(MISSING) or None):
    pytest.skip(f"needs {' and '.join(MISSING)}", allow_module_level=True)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    return compiled_code.compile_all(tmp_path_factory.mktemp("compiled"))


def kernels(compiled: list[Compiled], architecture: str) -> Iterator[Kernel]:
    for unit in compiled:
        if unit.architecture == architecture:
            yield from unit.kernels


def is_documented_release() -> bool:
    release = compiled_code.toolkit_in_use().release
    return f"nvcc {release} " in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_suffice(compiled: list[Compiled], architecture: str) -> None:
    found = list(kernels(compiled, architecture))
    assert len(found) == 15 + 30 + 24 + 2
    for kernel in found:
        assert kernel.registers <= MAX_REGISTERS, kernel.name
        assert (kernel.spills, kernel.stack, kernel.local) == (0, 0, 0), kernel.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hot_loops_load_and_store_16_bytes(compiled: list[Compiled], architecture: str) -> None:
    for kernel in kernels(compiled, architecture):
        # For each dtype: the sum, the search for inf, the sum in float64, the rescale.
        loops = {
            "clip_kernel": 12,
            "reduce_kernel": 8,
            "finish_and_scale_kernel": 4,
            "scale_kernel": 4,
            "clamp_kernel": 4,
            "unscale_and_clamp_kernel": 4,
        }.get(kernel.name.partition("<")[0], 0)
        has_rescue = re.match(r"(clip|reduce)_kernel<SumSq,", kernel.name) is not None
        if is_documented_release():  # another compiler may cut loops in another way
            assert len(kernel.loops) == loops + 4 * has_rescue, kernel.name
        stores = [loop.stores for loop in kernel.loops]
        reads_only = kernel.name.startswith("reduce")
        wanted = 0 if reads_only or not loops else 4
        assert stores.count(MIN_LOADS) >= wanted, kernel.name
        assert not reads_only or not any(stores), kernel.name
        for loop in kernel.loops:
            assert loop.narrow == (), kernel.name
            assert loop.in_flight >= MIN_LOADS, kernel.name
        if kernel.loops:
            assert kernel.bytes_in_flight(architecture) >= MIN_BYTES, kernel.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_accesses_are_global(compiled: list[Compiled], architecture: str) -> None:
    for kernel in kernels(compiled, architecture):
        # The poll of the grid sync is the only generic load.
        allowed = ["LD.E.STRONG.GPU"] if kernel.name.startswith("clip_kernel") else []
        assert kernel.generic == allowed, kernel.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_partials_are_loaded_four_at_a_time(compiled: list[Compiled], architecture: str) -> None:
    found = [k for k in kernels(compiled, architecture) if k.name.startswith("finish_kernel")]
    assert {kernel.partials for kernel in found} == {MIN_LOADS}


def test_nothing_is_read_through_the_non_coherent_cache(compiled: list[Compiled]) -> None:
    for unit in compiled:
        assert "ld.global.cg.v4" in unit.ptx or unit.source.stem == "table"
        assert "ld.global.nc" not in unit.ptx, unit.source.name


def test_the_document_says_what_is_compiled(compiled: list[Compiled]) -> None:
    release = compiled_code.toolkit_in_use().release
    if not is_documented_release():
        pytest.skip(f"docs/compiled-code.md is of another nvcc than {release}")
    assert DOCUMENT.read_text(encoding="utf-8") == document(compiled, release)


LOG = """ptxas info    : Compiling entry function '{name}' for 'sm_90'
ptxas info    : Function properties for {name}
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 70 registers, used 1 barriers, 192 bytes smem
"""
NAME = (
    "_ZN8fastclip6device45_GLOBAL__N__00000000_7_clip_cu_00000000_00000011clip_kernelINS0_5SumSqE"
    "NS0_13ArgumentTableILi198EEEEEvT0_NS0_5ShapeENS_8CudaSumsENS_10CudaResultE"
)
SASS = """
        Function : {name}
        /*0010*/  @!P0 LDG.E.128.STRONG.GPU R12, desc[UR8][R20.64] ;
        /*0020*/       LDG.E.128.STRONG.GPU R16, desc[UR8][R24.64] ;
        /*0030*/       FADD R4, R5, R13 ;
        /*0040*/       LDG.E.128.STRONG.GPU R20, desc[UR8][R44.64] ;
        /*0050*/       LDG.E.64.STRONG.GPU R30, desc[UR8][R44.64] ;
        /*0060*/       STG.E.128 desc[UR8][R44.64], R20 ;
        /*0070*/  @P0  BRA 0x10 ;
        /*0080*/       LD.E R6, desc[UR10][R2.64] ;
        /*0090*/       LDL R6, [R1] ;
"""


def test_faults_in_compiled_code_are_seen() -> None:
    (kernel,) = parse(LOG.format(name=NAME), SASS.format(name=NAME))
    assert kernel.name == "clip_kernel<SumSq, ShortTable>"
    assert (kernel.registers, kernel.stack, kernel.spills, kernel.shared) == (70, 8, 28, 192)
    (loop,) = kernel.loops
    assert (loop.loads, loop.in_flight, loop.stores) == (3, 2, 1)
    assert loop.narrow == ("LDG.E.64.STRONG.GPU",)
    assert (kernel.generic, kernel.local, kernel.partials) == (["LD.E"], 1, 1)
    assert kernel.blocks("90") == 3
    assert kernel.bytes_in_flight("90") == 3 * 256 * 2 * 16
