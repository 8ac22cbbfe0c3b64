"""patch_torch: whose functions torch's names hold, and that they get back what they held."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from samples import parameters
from torch import Tensor
from torch.nn import utils
from torch.nn.utils import clip_grad

import fastclip

NAMES = {
    utils: {
        "clip_grad_norm": fastclip.clip_grad_norm,
        "clip_grad_norm_": fastclip.clip_grad_norm_,
        "clip_grad_value_": fastclip.clip_grad_value_,
        "clip_grads_with_norm_": fastclip.clip_grads_with_norm_,
        "get_total_norm": fastclip.get_total_norm,
    },
    clip_grad: {
        "clip_grad_norm": fastclip.clip_grad_norm,
        "clip_grad_norm_": fastclip.clip_grad_norm_,
        "clip_grad_value_": fastclip.clip_grad_value_,
        "_clip_grads_with_norm_": fastclip.clip_grads_with_norm_,
        "_get_total_norm": fastclip.get_total_norm,
    },
}
STOCK = {module: {name: getattr(module, name) for name in names} for module, names in NAMES.items()}


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    assert held() == STOCK
    yield
    fastclip.unpatch_torch()
    assert held() == STOCK


def held() -> dict[types.ModuleType, dict[str, Callable[..., object]]]:
    return {home: {name: getattr(home, name) for name in names} for home, names in NAMES.items()}


def user(name: str, **held: object) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(held)
    return module


def bfloat16_norm(clip: Callable[..., Tensor]) -> torch.dtype:
    """Return the dtype of a norm: fastclip's is float32, torch's that of the gradients."""
    return clip(parameters([torch.ones(3, dtype=torch.bfloat16)]), 1.0).dtype


def test_every_name_is_replaced_and_given_back() -> None:
    patched = fastclip.patch_torch()
    assert held() == NAMES
    fastclip.unpatch_torch()
    assert held() == STOCK
    assert patched.replaced == []


def test_the_names_hold_what_clips() -> None:
    grads = [torch.full((4,), 2.0), torch.full((3, 3), -1.0)]
    with fastclip.patch_torch():
        held = parameters([grad.clone() for grad in grads])
        norm = torch.nn.utils.clip_grad_norm_(held, max_norm=1.0, norm_type=2.0, foreach=None)
        assert norm.item() == pytest.approx(5.0)
        for parameter, grad in zip(held, grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad / 5.000001)
        # As trainers call the private ones.
        held = parameters([grad.clone() for grad in grads])
        norm = clip_grad._get_total_norm([p.grad for p in held if p.grad is not None], 2.0)
        clip_grad._clip_grads_with_norm_(held, 1.0, norm, None)
        assert norm.item() == pytest.approx(5.0)
        torch.testing.assert_close(held[0].grad, grads[0] / 5.000001)


def test_a_module_of_torchs_own_is_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module = user("torch.a_trainer", clip=STOCK[utils]["clip_grad_norm_"])
    monkeypatch.setitem(sys.modules, "torch.a_trainer", module)
    with fastclip.patch_torch():
        assert module.clip is fastclip.clip_grad_norm_
    assert module.clip is STOCK[utils]["clip_grad_norm_"]


@pytest.mark.parametrize("by_name", (False, True))
def test_modules_that_imported_by_name(by_name: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = user(
        "a_trainer", clip=STOCK[utils]["clip_grad_norm_"], norm=STOCK[utils]["get_total_norm"], x=1
    )
    monkeypatch.setitem(sys.modules, "a_trainer", module)
    with fastclip.patch_torch(["a_trainer"] if by_name else [module]) as patched:
        assert module.clip is fastclip.clip_grad_norm_
        assert module.norm is fastclip.get_total_norm
        assert "a_trainer.norm -> fastclip.clip_grad.get_total_norm" in str(patched)
    assert module.clip is STOCK[utils]["clip_grad_norm_"]
    assert module.norm is STOCK[utils]["get_total_norm"]
    assert module.x == 1


def test_a_module_is_found_after_torch_was_patched() -> None:
    module = user("a_trainer", clip=STOCK[utils]["clip_grad_norm_"])
    fastclip.patch_torch()
    with fastclip.patch_torch([module]):
        assert module.clip is fastclip.clip_grad_norm_
    assert module.clip is STOCK[utils]["clip_grad_norm_"]
    assert held() == NAMES


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        (user("empty", clip=print), ValueError, "module empty holds none of torch's"),
        ("no_such_module_at_all", ModuleNotFoundError, "no_such_module_at_all"),
        (3, TypeError, r"must hold modules or their dotted names \(got int\)"),
    ],
)
def test_a_wrong_module_raises_and_nothing_is_replaced(
    module: object, error: type[Exception], text: str
) -> None:
    good = user("good", clip=STOCK[utils]["clip_grad_norm_"])
    with pytest.raises(error, match=text):
        fastclip.patch_torch([good, module])  # pyright: ignore
    assert good.clip is STOCK[utils]["clip_grad_norm_"]
    assert held() == STOCK


def test_a_module_that_cannot_be_written_leaves_nothing_replaced() -> None:
    class ReadOnly(types.ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(f"{name} is read-only")

    module = ReadOnly("read_only")
    vars(module)["clip"] = STOCK[utils]["clip_grad_norm_"]
    with pytest.raises(AttributeError, match="clip is read-only"):
        fastclip.patch_torch([module])
    assert held() == STOCK


def test_a_second_call_replaces_nothing_and_gives_nothing_back() -> None:
    with fastclip.patch_torch():
        with fastclip.patch_torch() as inner:
            assert inner.replaced == []
            assert str(inner) == "fastclip replaced nothing"
        assert held() == NAMES


def test_an_error_inside_gives_back() -> None:
    with pytest.raises(ZeroDivisionError), fastclip.patch_torch():
        _ = 1 / 0
    assert held() == STOCK


def test_restore_again_and_unpatch_without_a_patch_do_nothing() -> None:
    fastclip.unpatch_torch()
    patched = fastclip.patch_torch()
    patched.restore()
    again = fastclip.patch_torch()
    patched.restore()
    assert held() == NAMES
    again.restore()


def test_another_threads_patch_raises_and_replaces_nothing() -> None:
    errors: list[BaseException] = []
    module = user("a_trainer", clip=STOCK[utils]["clip_grad_norm_"])

    def patch() -> None:
        try:
            fastclip.patch_torch([module])
        except RuntimeError as error:
            errors.append(error)

    with fastclip.patch_torch():
        in_thread(patch)
        assert held() == NAMES
    (error,) = errors
    assert str(error).startswith("patch_torch: thread 'MainThread' has patched torch already;")
    assert module.clip is STOCK[utils]["clip_grad_norm_"]
    in_thread(patch)  # nobody's patch is in force
    assert len(errors) == 1 and held() == NAMES
    fastclip.unpatch_torch()
    assert module.clip is STOCK[utils]["clip_grad_norm_"]


def in_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_threads_that_patch_and_unpatch_leave_torch_as_it_was() -> None:
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(200):
            try:
                with fastclip.patch_torch():
                    pass
            except RuntimeError as error:
                assert "has patched torch already" in str(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held() == STOCK


def test_a_name_that_was_replaced_since_is_left() -> None:
    def theirs() -> None: ...

    fastclip.patch_torch()
    utils.clip_grad_norm_ = theirs  # pyright: ignore
    try:
        with pytest.warns(RuntimeWarning, match=r"utils\.clip_grad_norm_ was replaced again"):
            fastclip.unpatch_torch()
        assert utils.clip_grad_norm_ is theirs
        with fastclip.patch_torch():
            assert utils.clip_grad_norm_ is fastclip.clip_grad_norm_
        assert utils.clip_grad_norm_ is theirs
    finally:
        utils.clip_grad_norm_ = STOCK[utils]["clip_grad_norm_"]  # pyright: ignore


LOAD = """
import pickle, sys
import torch
norms = []
for function in pickle.loads(bytes.fromhex(sys.argv[1])):
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    parameter.grad = torch.ones(3, dtype=torch.bfloat16)
    norms.append(str(function([parameter], 1.0).dtype))
print(*norms)
"""


def test_pickles_of_both_functions_load_here_and_elsewhere() -> None:
    stock = STOCK[utils]["clip_grad_norm_"]
    with fastclip.patch_torch():
        both = pickle.dumps([torch.nn.utils.clip_grad_norm_, partial(stock)])
        assert pickle.loads(both)[0] is fastclip.clip_grad_norm_
        assert pickle.loads(both)[1].func is stock
    assert pickle.loads(both)[1].func is stock
    assert pickle.loads(pickle.dumps(stock)) is stock
    done = subprocess.run(
        [sys.executable, "-c", LOAD, both.hex()], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["torch.float32", "torch.bfloat16"]


def test_every_function_of_torchs_can_be_pickled() -> None:
    for function in STOCK[clip_grad].values():
        with fastclip.patch_torch():
            assert pickle.loads(pickle.dumps(function)) is function
        assert pickle.loads(pickle.dumps(function)) is function


def test_a_compiled_step_follows_the_patch() -> None:
    def step(held: list[Tensor]) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(held, 0.5)

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    grads = [torch.full((5,), 2.0, dtype=torch.bfloat16)]
    assert compiled(parameters([grads[0].clone()])).dtype == torch.bfloat16
    with fastclip.patch_torch():
        ours = parameters([grads[0].clone()])
        norm = compiled(ours)
        assert norm.dtype == torch.float32
        assert norm.item() == pytest.approx(20**0.5)
        eager = parameters([grads[0].clone()])
        fastclip.clip_grad_norm_(eager, 0.5)
        torch.testing.assert_close(ours[0].grad, eager[0].grad, rtol=0, atol=0)
    assert compiled(parameters([grads[0].clone()])).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ("native", "reference", None))
def test_fastclip_never_calls_a_name_of_torchs(
    backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("fastclip called a function of torch.nn.utils")

    for module, names in NAMES.items():
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    grads = [torch.ones(3), torch.ones(2, 2, dtype=torch.bfloat16)]
    held = parameters(grads)
    clipper = fastclip.GradClipper(held, 1.0, backend=backend)
    assert clipper.clip_().item() == pytest.approx(7**0.5)
    assert len(clipper.parameter_norms) == 2
    norm = fastclip.clip_grad_norm_(held, 0.5, backend=backend)
    fastclip.get_total_norm([p.grad for p in held if p.grad is not None], backend=backend)
    fastclip.clip_grads_with_norm_(held, 0.1, norm, backend=backend)
    fastclip.clip_grad_value_(held, 0.01, backend=backend)
    if backend != "native":
        fastclip.clip_grad_norm_(held, 0.5, foreach=False)
        fastclip.clip_grad_norm_(held, 0.5, 0.0)
    # clip_grad_norm_ of a list that no compiled backend takes
    odd = parameters([torch.ones(4, dtype=torch.complex64)])
    if backend != "native":
        fastclip.clip_grad_norm_(odd, 0.5)


def test_bfloat16_norms_say_whose_function_ran() -> None:
    assert bfloat16_norm(torch.nn.utils.clip_grad_norm_) == torch.bfloat16
    with fastclip.patch_torch():
        assert bfloat16_norm(torch.nn.utils.clip_grad_norm_) == torch.float32


def test_warnings_that_are_errors_leave_nothing_patched() -> None:
    fastclip.patch_torch()
    utils.clip_grad_norm_ = print  # pyright: ignore
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning, match="was replaced again"):
                fastclip.unpatch_torch()
    finally:
        utils.clip_grad_norm_ = STOCK[utils]["clip_grad_norm_"]  # pyright: ignore
    assert held() == STOCK


def test_a_thread_that_has_ended_owns_nothing() -> None:
    in_thread(lambda: print(fastclip.patch_torch()))
    assert held() == NAMES
    with fastclip.patch_torch():
        assert held() == NAMES


def test_names_of_stock_functions_come_back() -> None:
    places = [(f.__module__, f.__qualname__) for f in STOCK[clip_grad].values()]
    with fastclip.patch_torch():
        pass
    assert [(f.__module__, f.__qualname__) for f in STOCK[clip_grad].values()] == places
