"""What was built: the version and the record that setup.py leaves beside this file.

It is read before ``fastclip._C`` is imported, so that an extension which does not fit the running
torch gives a reason in words, not a crash.
"""

import json
from importlib import metadata
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit
from urllib.request import url2pathname

__version__ = "0.1.0.dev0"

DISTRIBUTION = "torch-fastclip"
INFO_PATH = Path(__file__).with_name("_build_info.json")
REINSTALL = "pip install --force-reinstall --no-cache-dir --no-deps"


class BuildInfo(TypedDict):
    """The record of a build."""

    version: str
    mode: str
    native: bool
    torch: str | None
    compiler: str | None
    cuda: str | None
    cuda_architectures: list[str]
    cuda_reason: str | None
    instruction_sets: list[str]
    reason: str | None


class _Location(TypedDict):
    url: str


class _Origin(_Location, total=False):
    """What pip records about where a distribution came from, if not from an index (PEP 610)."""

    dir_info: dict[str, bool]
    vcs_info: dict[str, str]


def build_info() -> BuildInfo:
    """Return how this copy of fastclip was built.

    Returns:
        ``version``: fastclip's. ``mode``: FASTCLIP_BUILD at build time, "none" for a source tree.
        ``native``: whether ``fastclip._C`` was built; if not, ``reason`` says why. ``torch``: the
        full version that it was built against. ``compiler``: the first line of its version.
        ``cuda``: the toolkit's release, None without CUDA kernels; ``cuda_reason`` then says why
        there are none. ``cuda_architectures``: what the kernels are compiled for, "sm_90" machine
        code, "compute_120" PTX that the driver compiles for newer GPUs. ``instruction_sets``: those
        compiled in, best first.
    """
    if not INFO_PATH.exists():
        return BuildInfo(
            version=__version__,
            mode="none",
            native=False,
            torch=None,
            compiler=None,
            cuda=None,
            cuda_architectures=[],
            cuda_reason="nothing was built",
            instruction_sets=[],
            reason=f"the fastclip in {INFO_PATH.parent} was never built (pip install builds it)",
        )
    recorded = json.loads(INFO_PATH.read_text(encoding="utf-8"))
    return BuildInfo(version=__version__, **recorded)


def torch_mismatch(torch_version: str) -> str | None:
    """Return why ``fastclip._C`` does not fit a torch, and how to get one that does.

    torch keeps its C++ interface within one major.minor, so nothing else is compared.

    Args:
        torch_version: the running torch's version, as ``torch.__version__``.

    Returns:
        The reason, or None if the extension fits or there is none.
    """
    built = build_info()["torch"]
    if built is None or built.split(".")[:2] == torch_version.split(".")[:2]:
        return None
    mismatch = f"fastclip._C was built against torch {built} and torch {torch_version} is running"
    if not came_in_a_wheel():
        return f"{mismatch}; rebuild it with: {REINSTALL} {install_target()}"
    minor = ".".join(torch_version.split(".")[:2])
    return (
        f"{mismatch}; install a wheel that was built for torch {minor}, or fastclip's sources "
        f"with: {REINSTALL} DIRECTORY"
    )


def came_in_a_wheel() -> bool:
    """Return whether a ready-made wheel was installed, which pip cannot rebuild."""
    origin = _origin()
    if origin is not None:
        return urlsplit(origin["url"]).path.endswith(".whl")
    try:
        # It came from an index or a directory of files. Only wheels have a label.
        return "+" in metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return False


def install_target() -> str:
    """Return what pip was given to install this copy of fastclip (PEP 610), else its name."""
    origin = _origin()
    if origin is None:
        return DISTRIBUTION
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}"
    path = Path(url2pathname(urlsplit(origin["url"]).path))
    if not origin["url"].startswith("file:") or not path.exists():
        return DISTRIBUTION
    return f"-e {path}" if origin.get("dir_info", {}).get("editable") else str(path)


def _origin() -> _Origin | None:
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return None if text is None else json.loads(text)
