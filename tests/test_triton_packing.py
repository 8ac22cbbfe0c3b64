"""Lists for the Triton kernels: the extension and torch's operations pack the same words."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from samples import FLOAT_DTYPES, assert_clipped, copies, gradient, parameters, versions
from torch import Tensor

import fastclip
from fastclip.backends import base, native
from fastclip.backends.triton import packing

HAS_EXTENSION = native.packer() is not None
needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="needs fastclip._C")

SIZES = (0, 1, 2, 511, 512, 513, 1023, 1024, 1025, 2048, 4096, 5000, 16384, 16388, 70_000)


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lists be packed by torch's operations."""
    monkeypatch.setattr(native, "packer", lambda: None)


def words_of(packed: packing.PackedList, targets: list[int]) -> list[int]:
    words = torch.empty(4 + 3 * packed.size + len(targets), dtype=torch.int64)
    packed.write(words, [1, -2, 3, 4], targets)
    return words.tolist()


def described(packed: packing.PackedList, targets: list[int]) -> list[object]:
    plain = (packed.size, packed.device, packed.chunk_size, packed.groups)
    rest = (packed.mix, packed.has_float64, list(packed.places))
    assert packed.is_in_order == (list(packed.places) == list(range(packed.size)))
    return [*plain, *rest, words_of(packed, targets)]


def lists() -> list[list[Tensor | None]]:
    """Return lists in which small and large tensors follow one another in every way."""
    generator = torch.Generator().manual_seed(7)
    made: list[list[Tensor | None]] = [[], [None], [torch.empty(0)]]
    for seed in range(25):
        chosen = torch.randint(0, len(SIZES), (1 + seed % 12,), generator=generator).tolist()
        grads: list[Tensor | None] = []
        for position, index in enumerate(chosen):
            dtype = FLOAT_DTYPES[(seed + position) % 4]
            whole = gradient(SIZES[index] + 9, dtype, seed=position)
            grads.append(whole[position % 9 :][: SIZES[index]].clone() if seed % 2 else whole)
            if position % 5 == 4:
                grads.append(None)
        shifted = gradient(20_000, torch.float32)[seed % 4 :]
        made.append([*grads, shifted])
    return made


def test_words_are_the_same_with_and_without_the_extension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not HAS_EXTENSION:
        pytest.skip("needs fastclip._C")
    for grads in lists():
        held = parameters(grads)
        tensors = [grad for grad in grads if grad is not None]
        targets = list(range(len(tensors)))
        results = []
        for packer in (native.packer(), None):
            monkeypatch.setattr(native, "packer", lambda packer=packer: packer)
            results.append(
                (
                    described(packing.pack_parameters(held, True, takes_norm=True), targets),
                    described(packing.pack_tensors(tensors, True), targets),
                    described(packing.prepared_pack(held, True)(), []),
                )
            )
        assert results[0] == results[1]


@pytest.mark.parametrize("has_extension", (True, False))
@pytest.mark.parametrize("length", (6, 8))
def test_words_of_another_length_are_refused(
    monkeypatch: pytest.MonkeyPatch, length: int, *, has_extension: bool
) -> None:
    if has_extension and not HAS_EXTENSION:
        pytest.skip("needs fastclip._C")
    if not has_extension:
        monkeypatch.setattr(native, "packer", lambda: None)
    packed = packing.pack_tensors([torch.ones(3)], True)
    for words in (
        torch.full((length,), 5),
        torch.full((7,), 5, dtype=torch.int32),
        torch.full((14,), 5)[::2],
    ):
        with pytest.raises(ValueError, match="List: words must be 7 of int64"):
            packed.write(words, [1, 2, 3, 4], [])
        assert set(words.tolist()) == {5}


@pytest.mark.parametrize("has_extension", (True, False))
def test_the_memory_of_a_list(monkeypatch: pytest.MonkeyPatch, *, has_extension: bool) -> None:
    if has_extension and not HAS_EXTENSION:
        pytest.skip("needs fastclip._C")
    if not has_extension:
        monkeypatch.setattr(native, "packer", lambda: None)
    whole = torch.zeros(100, dtype=torch.bfloat16)
    begin = whole.data_ptr()
    packed = packing.pack_tensors([whole[10:20], torch.zeros(0), whole[40:41]], True)
    inside = [at for at in range(200) if packed.holds(begin + at)]
    assert inside == [*range(20, 40), 80, 81]
    assert not packed.holds(0) and not packing.pack_tensors([], True).holds(begin)


def test_chunks_grow_with_the_list(without_extension: None) -> None:
    # 5e9 elements that are nowhere: the addresses are not read.
    assert packing._chunk_size(1 << 25) == 1 << 14
    assert packing._chunk_size((1 << 25) + (1 << 14)) == 1 << 15
    assert packing._chunk_size(1 << 40) == 1 << 20


def shared(grads: list[Tensor]) -> list[Tensor]:
    held = parameters(grads)
    held.append(parameters([grads[1]])[0])
    held.append(parameters([grads[2].detach().view(-1)])[0])
    return held


@pytest.mark.parametrize("has_extension", (True, False))
@pytest.mark.usefixtures("interpreted")
def test_shared_gradients_count_once(monkeypatch: pytest.MonkeyPatch, has_extension: bool) -> None:
    if not has_extension:
        monkeypatch.setattr(native, "packer", lambda: None)
    grads = [gradient(5000, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float32)]
    used = copies(grads)
    held = shared(used)
    before = versions(used)
    clipper = fastclip.GradClipper(held, 0.5, backend="triton")
    norm = clipper.clip_()
    assert_clipped(held[:3], grads, 0.5, norm)
    norms = clipper.parameter_norms.tolist()
    assert (norms[3], norms[4]) == (norms[1], norms[2])
    # Two tensors are over the memory of the third, and their version is one.
    assert versions(used) == [version + n for version, n in zip(before, (1, 1, 2), strict=True)]


REFUSED = {
    "float dtypes": (lambda: [torch.ones(3, dtype=torch.complex64)], "dtype complex64"),
    "gaps": (lambda: [torch.ones(64, 66)[:, ::2]], "gaps"),
    "overlap": (lambda: [(whole := torch.ones(10))[:6], whole[4:]], "overlap in part"),
    "other shape": (lambda: [(whole := torch.ones(4, 4)), whole.t()], "overlap in part"),
    "sparse": (lambda: [torch.eye(3).to_sparse()], "strided"),
    "meta": (lambda: [torch.ones(3, device="meta")], "device meta"),
    "device": (lambda: [torch.ones(3), torch.ones(3, device="meta")], "device meta"),
    "negative view": (lambda: [torch.imag(torch.ones(3, dtype=torch.complex64).conj())], "neg|Neg"),
    "integers": (lambda: [torch.ones(3, dtype=torch.uint8)], "dtype uint8"),
}


@pytest.mark.parametrize("has_extension", (True, False))
@pytest.mark.parametrize("case", REFUSED)
def test_what_kernels_cannot_take_is_refused(
    monkeypatch: pytest.MonkeyPatch, case: str, has_extension: bool
) -> None:
    if not has_extension:
        monkeypatch.setattr(native, "packer", lambda: None)
    elif not HAS_EXTENSION:
        pytest.skip("needs fastclip._C")
    make, reason = REFUSED[case]
    held = [SimpleNamespace(grad=grad) for grad in make()]
    with pytest.raises(base.UnsupportedError, match=reason):
        packing.pack_parameters(held, True, takes_norm=True)  # pyright: ignore[reportArgumentType]


def test_cpu_tensors_are_for_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    for packer in (native.packer(), None):
        monkeypatch.setattr(native, "packer", lambda packer=packer: packer)
        with pytest.raises(base.UnsupportedError, match=r"device cpu \(supported: cuda\)"):
            packing.pack_parameters(parameters([torch.ones(3)]), False, takes_norm=True)


def test_expanded_gradients_raise_torchs_error(without_extension: None) -> None:
    held = parameters([torch.ones(3), torch.ones(1).expand(3)])
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        packing.pack_parameters(held, True, takes_norm=True)


def test_dense_in_any_order(without_extension: None) -> None:
    whole = gradient((3, 1, 5, 7), torch.float32)
    for order in itertools.permutations(range(4)):
        assert packing._is_dense(whole.permute(order))
    assert packing._is_dense(whole[:, :, :0])
    assert not packing._is_dense(whole[..., ::2])
    assert not packing._is_dense(whole[:, :, 1:])
    assert not packing._is_dense(torch.ones(1).expand(2, 2))


@pytest.mark.usefixtures("interpreted", "without_extension")
def test_every_function_without_the_extension() -> None:
    grads = [gradient(size, FLOAT_DTYPES[i % 3], seed=i) for i, size in enumerate(SIZES)]
    held = parameters(copies(grads))
    norm = fastclip.clip_grad_norm_(held, 0.5, backend="triton")
    assert_clipped(held, grads, 0.5, norm)
    ours = [p.grad for p in parameters(copies(grads)) if p.grad is not None]
    assert torch.equal(fastclip.get_total_norm(ours, backend="triton"), norm)
    again = parameters(copies(grads))
    fastclip.clip_grads_with_norm_(again, 0.5, norm, backend="triton")
    for a, b in zip(again, held, strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("has_extension", (True, False))
def test_a_gradient_that_is_no_tensor(monkeypatch: pytest.MonkeyPatch, has_extension: bool) -> None:
    if not has_extension:
        monkeypatch.setattr(native, "packer", lambda: None)
    held = [SimpleNamespace(grad=3.0)]
    with pytest.raises(base.UnsupportedError, match="gradient 0 is no tensor"):
        packing.pack_parameters(held, True, takes_norm=True)  # pyright: ignore[reportArgumentType]
