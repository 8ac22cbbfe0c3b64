"""The torch that fastclip is built against, which is the one that it will run with."""

import importlib
import importlib.util
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from build_support.plan import WAY_OUT, BuildError

OLDEST_TORCH = (2, 10)
NOT_FOUND = f"""torch was not found, and fastclip is built against the torch that it will run with.
If torch is installed, build isolation hides it: install torch and setuptools, then run one of

    pip install --no-build-isolation .
    uv pip install --no-build-isolation .
    python -m build --no-isolation

{WAY_OUT}."""


@dataclass(frozen=True)
class TorchOnDisk:
    """What the compiler and the linker need to know about a torch."""

    version: str
    include_dirs: tuple[Path, ...]
    library_dir: Path
    cxx11_abi: bool
    cuda: str | None = None
    """The CUDA release that it is built with; None without CUDA."""

    hip: str | None = None


def find_torch() -> TorchOnDisk:
    """Import torch, if need be from outside pip's build isolation, and return where it lies.

    Raises:
        BuildError: there is no torch, it does not import, or it is too old.
    """
    if importlib.util.find_spec("torch") is None:
        sys.path.extend(hidden_directories())
        importlib.invalidate_caches()
    if importlib.util.find_spec("torch") is None:
        raise BuildError(NOT_FOUND)
    try:
        import torch
        from torch.utils import cpp_extension
    except (ImportError, OSError) as error:
        raise BuildError(f"torch does not import ({error}); {WAY_OUT}") from error
    version = str(torch.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        oldest = ".".join(str(part) for part in OLDEST_TORCH)
        raise BuildError(f"torch: must be {oldest} or later (got {version})")
    return TorchOnDisk(
        version=version,
        include_dirs=tuple(Path(path) for path in cpp_extension.include_paths()),
        library_dir=Path(cpp_extension.TORCH_LIB_PATH),
        cxx11_abi=torch.compiled_with_cxx11_abi(),
        cuda=torch.version.cuda,
        hip=torch.version.hip,
    )


def hidden_directories() -> list[str]:
    """List the directories that isolation took from sys.path but that the user's Python reads.

    They go to the end of sys.path: the isolated environment's own packages stay first.
    """
    directories = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    in_virtual_environment = sys.prefix != sys.base_prefix
    if not in_virtual_environment or _sees_system_packages():
        # A plain virtual environment does not read these directories, so it cannot import a torch
        # there.
        directories.append(site.getusersitepackages())
        directories.extend(site.getsitepackages([sys.base_prefix]))
    unique = dict.fromkeys(directories)
    return [path for path in unique if path not in sys.path and Path(path).is_dir()]


def _sees_system_packages() -> bool:
    config = Path(sys.prefix) / "pyvenv.cfg"
    lines = config.read_text(encoding="utf-8").splitlines() if config.exists() else []
    pairs = [line.partition("=") for line in lines]
    return any(
        key.strip() == "include-system-site-packages" and value.strip().lower() == "true"
        for key, _, value in pairs
    )
