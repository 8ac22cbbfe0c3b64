"""Lists for the Triton kernels: the extension and torch's operations pack the same words."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from interpreted_triton import pack_by_torch
from samples import FLOAT_DTYPES, assert_clipped, copies, gradient, parameters, versions
from torch import Tensor

import fastclip
from fastclip.backends import TRITON, extension
from fastclip.backends.base import ReasonKind, RefusedError
from fastclip.backends.request import PARAMETERS, READ_ONLY, TENSORS, ClipRequest, Kind
from fastclip.backends.triton import torch_list
from fastclip.backends.triton.packing import PackedList, pack_of

HAS_EXTENSION = not extension.load()

SIZES = (0, 1, 2, 511, 512, 513, 1023, 1024, 1025, 2048, 4096, 5000, 16384, 16388, 70_000)


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lists be packed by torch's operations."""
    pack_by_torch(monkeypatch)


@pytest.fixture(params=(True, False), ids=("extension", "torch"))
def packer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lists be packed by the extension, then by torch's operations."""
    if request.param and not HAS_EXTENSION:
        pytest.skip("needs fastclip._C")
    if not request.param:
        pack_by_torch(monkeypatch)


def pack(sources: list[Tensor], kind: Kind = PARAMETERS) -> PackedList:
    """Pack for the interpreter, to take the norm."""
    return pack_of(sources, kind, True)(True)


def words_of(packed: PackedList, targets: list[int]) -> list[int]:
    words = torch.empty(4 + 3 * packed.size + len(targets), dtype=torch.int64)
    packed.write(words, [1, -2, 3, 4], targets)
    return words.tolist()


def places_of(packed: PackedList) -> list[int] | None:
    """Return the places; None where they are in order."""
    if packed.places is None:
        return None
    assert packed.places.dtype == torch.int64 and packed.places.is_cpu
    return packed.places.tolist()


def described(packed: PackedList, targets: list[int]) -> list[object]:
    plain = (packed.size, packed.device, packed.chunk_size, packed.groups)
    rest = (packed.mix, packed.has_float64, places_of(packed))
    assert places_of(packed) != list(range(packed.size))
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
    made = [(parameters(grads), [g for g in grads if g is not None]) for grads in lists()]
    results: list[list[list[object]]] = [[], []]
    for found in results:
        for held, tensors in made:
            targets = list(range(len(tensors)))
            prepared = pack_of(held, PARAMETERS, True)
            found.append(described(pack(held), targets))
            found.append(described(pack(tensors, READ_ONLY), targets))
            found.append(described(pack(tensors, TENSORS), targets))
            found += [described(prepared(takes_norm), []) for takes_norm in (True, False)]
        pack_by_torch(monkeypatch)
    assert results[0] == results[1]


@pytest.mark.parametrize("length", (6, 8))
def test_words_of_another_length_are_refused(packer: None, length: int) -> None:
    packed = pack([torch.ones(3)], READ_ONLY)
    for words in (
        torch.full((length,), 5),
        torch.full((7,), 5, dtype=torch.int32),
        torch.full((14,), 5)[::2],
    ):
        with pytest.raises(ValueError, match="List: words must be 7 of int64"):
            packed.write(words, [1, 2, 3, 4], [])
        assert set(words.tolist()) == {5}


def test_the_memory_of_a_list(packer: None) -> None:
    whole = torch.zeros(100, dtype=torch.bfloat16)
    begin = whole.data_ptr()
    packed = pack([whole[10:20], torch.zeros(0), whole[40:41]], READ_ONLY)
    inside = [at for at in range(200) if packed.holds(begin + at)]
    assert inside == [*range(20, 40), 80, 81]
    assert not packed.holds(0) and not pack([], READ_ONLY).holds(begin)


def test_chunks_grow_with_the_list(without_extension: None) -> None:
    # These are 5e9 elements without memory: the addresses are not read.
    assert torch_list._chunk_size(1 << 25) == 1 << 14
    assert torch_list._chunk_size((1 << 25) + (1 << 14)) == 1 << 15
    assert torch_list._chunk_size(1 << 40) == 1 << 20


def shared(grads: list[Tensor]) -> list[Tensor]:
    held = parameters(grads)
    held.append(parameters([grads[1]])[0])
    held.append(parameters([grads[2].detach().view(-1)])[0])
    return held


@pytest.mark.usefixtures("interpreted")
def test_shared_gradients_count_once(packer: None) -> None:
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


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("kind", "counts"), [(TENSORS, 1), (READ_ONLY, 2)])
def test_tensors_given_twice(packer: None, kind: Kind, counts: int) -> None:
    grads = [torch.full((5000,), 2.0), torch.full((7,), 3.0)]
    again = grads[0].view(-1)
    listed = TRITON.gather([*grads, grads[0], again], kind)
    sums = listed.reduce(2.0)
    if kind is READ_ONLY:
        assert sums.places is None and sums.parts[0].tolist() == [20000.0, 63.0, 20000.0, 20000.0]
        with pytest.raises(ValueError, match="a list that is read only is not written"):
            listed.clip(ClipRequest(0.5))
        with pytest.raises(ValueError, match="a list that is read only is not written"):
            listed.scale(0.5)
        with pytest.raises(ValueError, match="a list that is read only is not written"):
            listed.clamp(0.5)
        assert versions(grads) == [0, 0] and grads[0][0] == 2.0
    else:
        assert sums.places is not None and sums.places.tolist() == [0, 1, 0, 0]
        assert sums.parts[0].tolist() == [20000.0, 63.0]
        assert listed.scale(0.5)
        assert grads[0].tolist() == [1.0] * 5000
        assert versions(grads) == [2, 1]  # the view has the version of what it is of


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


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("case", REFUSED)
def test_what_kernels_cannot_take_is_refused(packer: None, case: str, kind: Kind) -> None:
    make, reason = REFUSED[case]
    grads = make()
    held = [SimpleNamespace(grad=grad) for grad in grads]
    if kind is READ_ONLY and reason == "overlap in part":
        assert pack(grads, kind).size == len(grads)
        return
    with pytest.raises(RefusedError, match=reason) as caught:
        pack(held if kind is PARAMETERS else grads, kind)  # pyright: ignore[reportArgumentType]
    assert {reason.kind for reason in caught.value.reasons} == {ReasonKind.TENSORS}


def test_cpu_tensors_are_for_the_interpreter(packer: None) -> None:
    with pytest.raises(RefusedError, match=r"device cpu \(supported: cuda\)"):
        pack_of(parameters([torch.ones(3)]), PARAMETERS, False)(True)


def test_expanded_gradients_raise_torchs_error(packer: None) -> None:
    grads = [torch.ones(3), torch.ones(1).expand(3)]
    for sources, kind in ((parameters(grads), PARAMETERS), (grads, TENSORS)):
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            pack(sources, kind)


def test_dense_in_any_order(without_extension: None) -> None:
    whole = gradient((3, 1, 5, 7), torch.float32)
    for order in itertools.permutations(range(4)):
        assert torch_list._is_dense(whole.permute(order))
    assert torch_list._is_dense(whole[:, :, :0])
    assert not torch_list._is_dense(whole[..., ::2])
    assert not torch_list._is_dense(whole[:, :, 1:])
    assert not torch_list._is_dense(torch.ones(1).expand(2, 2))


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


@pytest.mark.parametrize("kind", Kind)
def test_a_gradient_that_is_no_tensor(packer: None, kind: Kind) -> None:
    held = [SimpleNamespace(grad=3.0)] if kind is PARAMETERS else [3.0]
    with pytest.raises(RefusedError, match="gradient 0 is no tensor"):
        pack(held, kind)  # pyright: ignore[reportArgumentType]


def targets_for(grads: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(grad) for grad in grads]


WRONG_TARGETS = {
    "count": (lambda t, _: t[:-1], r"targets must be 3 tensors \(got 2\)"),
    "shape": (lambda t, _: [t[0].view(35), *t[1:]], "target 0 must have the dtype, shape, strides"),
    "strides": (lambda t, _: [t[0].t().contiguous().t(), *t[1:]], "target 0 must have the dtype"),
    "dtype": (lambda t, _: [t[0], t[1].double(), t[2]], "target 1 must have the dtype"),
    "device": (lambda t, _: [*t[:2], t[2].to("meta")], "target 2 must have the dtype"),
    "each other's": (lambda t, _: [*t[:2], t[1][1:]], "must share no memory with each other"),
    "a gradient's": (lambda t, g: [*t[:2], g[1][:5]], "must share no memory .* or with gradients"),
}


@pytest.mark.parametrize("case", WRONG_TARGETS)
def test_targets_that_cannot_be_written_are_refused(packer: None, case: str) -> None:
    grads = [gradient((5, 7), torch.float32), torch.ones(6), torch.ones(5)]
    targets = targets_for(grads)
    packed = pack(grads, READ_ONLY)
    assert packed.addresses_of(targets) == [target.data_ptr() for target in targets]
    change, reason = WRONG_TARGETS[case]
    with pytest.raises(ValueError, match=reason):
        packed.addresses_of(change(targets, grads))


def test_equal_tensors_have_targets_each(packer: None) -> None:
    grads = [torch.ones(6)] * 2
    targets = targets_for(grads)
    assert len(set(pack(grads, READ_ONLY).addresses_of(targets))) == 2
    with pytest.raises(ValueError, match=r"targets must be 1 tensors \(got 2\)"):
        pack(grads, TENSORS).addresses_of(targets)
