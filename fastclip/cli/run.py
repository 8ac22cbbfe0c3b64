"""``fastclip run``: run a script, or a module, while torch's clipping functions are fastclip's."""

from __future__ import annotations

import multiprocessing
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import fastclip

CONFIG_KEY = "fastclip"


class _PatchedHere:
    """Patches torch in the process that unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return _patch_here, ()


def _patch_here() -> _PatchedHere:
    fastclip.patch_torch()
    return _PatchedHere()


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
    try:
        patched = fastclip.patch_torch(also)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"fastclip run: {error}", file=sys.stderr)
        return 2
    print(f"fastclip run: {len(patched.replaced)} names of torch replaced", file=sys.stderr)
    _patch_spawned_processes()
    sys.argv = [target, *arguments]
    # As python does: a script's own folder comes first, and for a module the current one.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path.cwd()) if is_module else str(Path(target).resolve().parent)
    if is_module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")
    return 0


def _patch_spawned_processes() -> None:
    """Let a process that is spawned patch torch before it runs its function.

    A spawned process begins in a fresh interpreter, and unpickles its Process object. This carries
    a copy of its parent's ``_config``, where multiprocessing keeps the key that processes share.
    """
    config = getattr(multiprocessing.current_process(), "_config", None)
    if isinstance(config, dict):
        config[CONFIG_KEY] = _PatchedHere()
