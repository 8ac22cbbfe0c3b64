"""``fastclip run``: run a script, or a module, while torch's clipping functions are fastclip's."""

from __future__ import annotations

import multiprocessing
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType

import fastclip

CONFIG_KEY = "fastclip"


class _PatchedHere:
    """Patches torch in the process that unpickles it.

    Args:
        also: as for ``run_script``.
    """

    def __init__(self, also: Sequence[str]) -> None:
        self.also = list(also)

    def __reduce__(self) -> tuple[object, ...]:
        return _patch_here, (self.also,)


def _patch_here(also: Sequence[str]) -> _PatchedHere:
    """Patch torch, ``also``, and the script, which a spawned process has imported already."""
    ours = {id(each.before): each.now for each in fastclip.patch_torch(also).replaced}
    script = sys.modules.get("__mp_main__")
    for value in list(vars(script).values()) if script is not None else []:
        if isinstance(value, FunctionType):
            # Its names are those that it was compiled with: the module holds copies.
            names = value.__globals__
            names.update({name: ours[id(v)] for name, v in list(names.items()) if id(v) in ours})
    return _PatchedHere(also)


def run_script(
    target: str, arguments: Sequence[str], *, is_module: bool = False, also: Sequence[str] = ()
) -> int:
    """Run a script as ``python target arguments`` would, under ``fastclip.patch_torch(also)``.

    Processes that the script starts by ``multiprocessing`` are patched as well, whether they are
    forked or spawned; what it starts as a command is not.

    Args:
        target: the script's path; with ``is_module`` a dotted name, as after ``python -m``.
        arguments: the script's own arguments, which it finds in ``sys.argv``.
        is_module: whether ``target`` is a module.
        also: dotted names of modules that imported torch's functions by name.

    Returns:
        0 when the script ended by itself, 2 when there is no such script or a module of ``also``
        cannot be patched. What the script raises, SystemExit among it, is not caught.
    """
    if not is_module and not Path(target).exists():
        print(f"fastclip run: there is no script {target}", file=sys.stderr)
        return 2
    sys.argv = [target, *arguments]
    # As python does: a script's own folder comes first, and for a module the current one.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path.cwd()) if is_module else str(Path(target).resolve().parent)
    try:
        patched = fastclip.patch_torch(also)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"fastclip run: {error}", file=sys.stderr)
        return 2
    print(f"fastclip run: {len(patched.replaced)} names of torch replaced", file=sys.stderr)
    _patch_spawned_processes(also)
    if is_module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")
    return 0


def _patch_spawned_processes(also: Sequence[str]) -> None:
    """Let a process that is spawned patch torch before it runs its function.

    A spawned process begins in a fresh interpreter, and unpickles its Process object. This carries
    a copy of its parent's ``_config``, where multiprocessing keeps the key that processes share.
    """
    config = getattr(multiprocessing.current_process(), "_config", None)
    if isinstance(config, dict):
        config[CONFIG_KEY] = _PatchedHere(also)
