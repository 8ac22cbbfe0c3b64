"""Same values, same bits: whatever the threads, the address, the instruction set and the run."""

import native_calls
import pytest
import torch
from native_bits import LENGTHS, digest, shifted
from native_cases import (
    _C,
    CHUNK_SIZE,
    DTYPES,
    INSTRUCTION_SETS,
    NORM_TYPES,
    gradient_of,
    parameters_of,
    random_list,
    random_patterns,
    run_python,
    same_bits,
    using,
    using_threads,
)

import fastclip

THREADS = (1, 2, 3)


def test_same_bits_for_any_number_of_threads() -> None:
    digests = set()
    for threads in THREADS:
        with using_threads(threads):
            digests.add(digest())
    assert len(digests) == 1


def test_same_bits_for_any_number_of_threads_in_a_fresh_process() -> None:
    program = "import native_bits as t; print(t.digest(norm_types=[2.0]))"
    runs = [run_python(program, environment={"OMP_NUM_THREADS": str(n)}) for n in (1, 3)]
    assert [run.stderr for run in runs] == ["", ""]
    assert {run.stdout.strip() for run in runs} == {digest(norm_types=[2.0])}


def test_same_bits_in_repeated_runs() -> None:
    assert len({digest(LENGTHS[:4]) for _ in range(4)}) == 1


def test_same_bits_for_each_instruction_set() -> None:
    digests = {}
    for name in INSTRUCTION_SETS:
        with using(name):
            digests[name] = digest()
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_of_the_norm_of_any_values_for_each_instruction_set(dtype: torch.dtype) -> None:
    drawn = random_patterns(dtype, 3 * CHUNK_SIZE + 7)
    finite = torch.where(drawn.isfinite(), drawn, torch.zeros((), dtype=dtype))
    for values in (finite, finite * 1e-3, torch.where(finite.abs() < 1, finite, 0.5)):
        for norm_type in NORM_TYPES:
            norms = set()
            for name in INSTRUCTION_SETS:
                with using(name):
                    norm = native_calls.get_total_norm([values], norm_type, False, torch.float64)
                    norms.add(norm.item())
            assert len(norms) == 1, norms


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_of_short_norms_for_each_instruction_set(dtype: torch.dtype) -> None:
    # In a sum of few terms the rounding of each product shows: a contracted one differs.
    tensors = [random_list([size], dtype, seed)[0] for size in (1, 2, 17, 40) for seed in range(50)]
    norms = []
    for name in INSTRUCTION_SETS:
        with using(name):
            norms.append(
                [
                    native_calls.get_total_norm([tensor], norm_type, False, torch.float64).item()
                    for tensor in tensors
                    for norm_type in NORM_TYPES
                ]
            )
    assert all(norm == norms[0] for norm in norms)


def test_same_bits_at_any_address() -> None:
    lengths = (CHUNK_SIZE + 5, 33, 17, 16, 1)
    digests = {offset: digest(lengths, offset) for offset in range(18)}
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_same_bits_at_any_address_for_each_instruction_set(name: str) -> None:
    lengths = (129, 33, 17, 16, 1)
    expected = digest(lengths)
    with using(name):
        assert {digest(lengths, offset) for offset in range(0, 18)} == {expected}


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_fastclip_isa_chooses_the_instruction_set_and_no_bit(name: str) -> None:
    lengths = (CHUNK_SIZE + 5, 33)
    program = (
        f"import fastclip, native_bits as t\nprint(fastclip.instruction_set(), t.digest({lengths}))"
    )
    run = run_python(program, environment={"FASTCLIP_ISA": name})
    assert run.stdout.split() == [name, digest(lengths)], run.stderr


def test_an_unknown_fastclip_isa_raises_at_first_use_and_names_what_there_is() -> None:
    program = (
        "import fastclip, torch\n"
        "p = torch.zeros(3); p.grad = torch.ones(3)\n"
        "for use in (lambda: fastclip.clip_grad_norm_(p, 1.0), fastclip.instruction_set):\n"
        "    try: use()\n"
        "    except ValueError as error: print(error)\n"
        "print(p.grad.tolist())\n"
    )
    run = run_python(program, environment={"FASTCLIP_ISA": "mmx"})
    known = ", ".join(INSTRUCTION_SETS)
    message = f"FASTCLIP_ISA: must be one of {known} on this CPU (got 'mmx')"
    assert run.stdout.splitlines() == [message, message, "[1.0, 1.0, 1.0]"], run.stderr


def test_an_unknown_instruction_set_is_refused_and_changes_nothing() -> None:
    before = _C.instruction_set()
    with pytest.raises(ValueError, match='instruction set "mmx" is not one that this build'):
        _C.set_instruction_set("mmx")
    assert _C.instruction_set() == before


def test_the_best_instruction_set_comes_first() -> None:
    order = ("avx512", "avx2", "baseline")
    assert list(INSTRUCTION_SETS) == sorted(INSTRUCTION_SETS, key=order.index)
    assert INSTRUCTION_SETS[-1] == "baseline"
    assert set(INSTRUCTION_SETS) <= set(fastclip.build_info()["instruction_sets"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_in_one_call_in_two_and_prepared(dtype: torch.dtype) -> None:
    original = random_list(LENGTHS[:4], dtype)
    gradients = [shifted(original, 0) for _ in range(3)]
    one, two, prepared = (parameters_of(copies) for copies in gradients)
    norms = [
        fastclip.clip_grad_norm_(one, 1.0, backend="native"),
        fastclip.get_total_norm(gradients[1], backend="native"),
        fastclip.GradClipper(prepared, 1.0, backend="native").clip_(),
    ]
    fastclip.clip_grads_with_norm_(two, 1.0, norms[1], backend="native")
    assert all(same_bits(norm, norms[0]) for norm in norms)
    for parameters in (two, prepared):
        for parameter, expected in zip(parameters, one, strict=True):
            assert same_bits(gradient_of(parameter), gradient_of(expected))


def test_same_bits_while_torch_flushes_denormals() -> None:
    # The mode belongs to a thread, and any thread may take a chunk.
    denormals = torch.empty(1 << 22).view(torch.int32).fill_(4_000_000).view(torch.float32)
    expected = fastclip.get_total_norm([denormals], backend="native")
    assert expected > 0
    torch.set_flush_denormal(True)
    try:
        with using_threads(2):
            norms = {
                fastclip.get_total_norm([denormals], backend="native").item() for _ in range(20)
            }
    finally:
        torch.set_flush_denormal(False)
    assert norms == {expected.item()}
