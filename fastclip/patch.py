"""Put fastclip's functions in the place of torch's, for trainers that call torch's.

A trainer looks ``torch.nn.utils.clip_grad_norm_`` up when it clips, so that another function under
that name is enough to switch it. Some take torch's private names instead, and modules that
imported a function by name hold it themselves: ``patch_torch`` replaces these as well.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import NamedTuple

import torch.nn.utils

from .backends.base import warn
from .clip_grad import (
    clip_grad_norm,
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)

Function = Callable[..., object]

OURS: dict[str, Function] = {
    "clip_grad_norm_": clip_grad_norm_,
    "clip_grad_norm": clip_grad_norm,
    "clip_grad_value_": clip_grad_value_,
    "clip_grads_with_norm_": clip_grads_with_norm_,
    "get_total_norm": get_total_norm,
    # As torch.nn.utils.clip_grad calls them; trainers take them from there, too.
    "_clip_grads_with_norm_": clip_grads_with_norm_,
    "_get_total_norm": get_total_norm,
}
"""fastclip's function for each name that torch has."""

HOMES = ("torch.nn.utils", "torch.nn.utils.clip_grad")

# What torch had when fastclip was imported. pickle finds a function again by its name: while the
# name holds ours, torch's own function is found here (_rename).
stock = SimpleNamespace(
    **{
        name: vars(torch.nn.utils.clip_grad)[name]
        for name in OURS
        if name in vars(torch.nn.utils.clip_grad)
    }
)


class Replaced(NamedTuple):
    """One name of a module that now holds fastclip's function.

    Attributes:
        module: the module.
        name: the name in it.
        before: what it held.
        now: fastclip's function.
    """

    module: ModuleType
    name: str
    before: Function
    now: Function

    def __str__(self) -> str:
        return f"{self.module.__name__}.{self.name} -> {self.now.__module__}.{self.now.__name__}"


class Patched:
    """What one call of ``patch_torch`` replaced; a context manager that gives it back at its end.

    ``print(patched)`` lists the names. A name that the call found replaced already is not in it,
    so that an inner ``with patch_torch():`` leaves an outer one's names as they are.

    Attributes:
        replaced: the names, with what they held; empty after ``restore``.
    """

    def __init__(self, replaced: list[Replaced]) -> None:
        self.replaced = replaced

    def restore(self) -> None:
        """Give every name back what it held before; again, or for no names, does nothing.

        A name that holds another function than fastclip's by now was replaced by someone else
        since: it is left as it is, and a RuntimeWarning says so.
        """
        _warn_of(_restore([self]))

    def __enter__(self) -> Patched:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __str__(self) -> str:
        if not self.replaced:
            return "fastclip replaced nothing"
        return "\n".join(["fastclip replaced", *(f"  {each}" for each in self.replaced)])


class _State:
    """What is replaced now, in the order of the calls, and by which thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.active: list[Patched] = []
        self.owner: threading.Thread | None = None
        # torch's functions that pickle finds elsewhere, with their own module and name.
        self.named: list[tuple[FunctionType, tuple[str, str]]] = []
        # What stands under torch's names without us, by id(), with our function for it.
        self.theirs = {id(theirs): (theirs, OURS[name]) for name, theirs in vars(stock).items()}


_STATE = _State()


def patch_torch(modules: Iterable[ModuleType | str] = ()) -> Patched:
    """Let everyone who calls torch's clipping functions call fastclip's.

    Replaced are the five names of ``torch.nn.utils`` (``clip_grad_norm_``, ``clip_grad_norm``,
    ``clip_grad_value_``, ``clip_grads_with_norm_``, ``get_total_norm``), the same functions in
    ``torch.nn.utils.clip_grad``, where two have an underscore before them, every name of one of
    torch's own modules that holds one of them, and those of ``modules``. Call it once, before
    training; a second call replaces what the first did not.

    Args:
        modules: other modules that imported a function by name (``from torch.nn.utils import
            clip_grad_norm_``), or their dotted names, which are imported. Every global name that
            holds one of torch's functions is replaced, whatever it is called there.

    Returns:
        What was replaced; ``with patch_torch():`` gives it back at the end, and
        ``unpatch_torch()`` at any time.

    Raises:
        ValueError: one of ``modules`` holds none of the functions.
        ModuleNotFoundError: one of ``modules`` is a name that cannot be imported.
        RuntimeError: another thread's patch is in force, which could take its end in the middle of
            this one.

    Whatever raises, nothing was replaced.
    """
    others = [_module(each) for each in ([modules] if isinstance(modules, str) else modules)]
    with _STATE.lock:
        owner = _STATE.owner
        is_other = owner is not None and owner is not threading.current_thread()
        if _STATE.active and owner is not None and is_other and owner.is_alive():
            raise RuntimeError(
                f"patch_torch: thread {owner.name!r} has patched torch already; one thread must "
                "patch for all (call unpatch_torch first to start anew)"
            )
        replaced = _find_in_torch()
        for module in others:
            found = _find_in(module)
            if not found and not _holds_ours(module):
                raise ValueError(
                    f"patch_torch: module {module.__name__} holds none of torch's clipping "
                    f"functions under a global name ({', '.join(OURS)})"
                )
            replaced += [each for each in found if each not in replaced]
        _write(replaced)
        patched = Patched(replaced)
        _STATE.active.append(patched)
        _STATE.owner = threading.current_thread()
        _name_stock()
    return patched


def unpatch_torch() -> None:
    """Give every name that ``patch_torch`` replaced back what it held; without one, do nothing."""
    with _STATE.lock:
        foreign = _restore(list(reversed(_STATE.active)))
    _warn_of(foreign)


def _module(module: ModuleType | str) -> ModuleType:
    if isinstance(module, str):
        return importlib.import_module(module)
    if isinstance(module, ModuleType):
        return module
    raise TypeError(
        "patch_torch: modules must hold modules or their dotted names "
        f"(got {type(module).__name__})"
    )


def _find_in_torch() -> list[Replaced]:
    """List the names of torch's modules that hold a function of torch's."""
    homes = [importlib.import_module(name) for name in HOMES]
    for home in homes:
        for name, ours in OURS.items():
            held = vars(home).get(name)
            if held is not None and held not in OURS.values():
                _STATE.theirs[id(held)] = (held, ours)  # torch's, or of another who patches torch
    loaded = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("torch.") and isinstance(module, ModuleType) and module not in homes
    ]
    return [each for module in [*homes, *loaded] for each in _find_in(module)]


def _find_in(module: ModuleType) -> list[Replaced]:
    """List the global names of a module that hold a function of torch's."""
    found = []
    for name, value in list(vars(module).items()):
        theirs, ours = _STATE.theirs.get(id(value), (None, None))
        if ours is not None and theirs is value:
            found.append(Replaced(module, name, value, ours))
    return found


def _holds_ours(module: ModuleType) -> bool:
    return any(value is ours for value in vars(module).values() for ours in OURS.values())


def _restore(patches: Iterable[Patched]) -> list[Replaced]:
    """Give back what some calls replaced; return the names that hold something else by now."""
    foreign = []
    with _STATE.lock:
        for patched in patches:
            foreign += _give_back(patched.replaced)
            patched.replaced = []
            if patched in _STATE.active:
                _STATE.active.remove(patched)
        if not _STATE.active:
            for function, (module, name) in _STATE.named:
                function.__module__, function.__qualname__ = module, name
            _STATE.named.clear()
    return foreign


def _warn_of(foreign: Iterable[Replaced]) -> None:
    names = [f"{each.module.__name__}.{each.name}" for each in foreign]
    if names:
        warn(
            f"unpatch_torch: {', '.join(names)} was replaced again after patch_torch, and is left "
            "as it is"
        )


def _name_stock() -> None:
    """Tell pickle where it finds torch's own functions, until ``_restore``."""
    for name, function in vars(stock).items():
        place = (function.__module__, function.__qualname__)
        if isinstance(function, FunctionType) and place == (HOMES[1], name):
            _STATE.named.append((function, place))
            function.__module__, function.__qualname__ = __name__, f"stock.{name}"


def _write(replaced: list[Replaced]) -> None:
    """Replace every name, or none."""
    done = []
    try:
        for each in replaced:
            setattr(each.module, each.name, each.now)
            done.append(each)
    except BaseException:
        _give_back(done)
        raise


def _give_back(replaced: list[Replaced]) -> list[Replaced]:
    """Restore names in reverse; return those that hold something else by now."""
    foreign = []
    for each in reversed(replaced):
        if vars(each.module).get(each.name) is each.now:
            setattr(each.module, each.name, each.before)
        else:
            foreign.append(each)
    return foreign
