"""Programs that stand in for a compiler or a CUDA toolkit, so that a build takes no time."""

from pathlib import Path

DRYRUN = 'case "$1" in --dryrun) echo "#$ _HERE_={here}" >&2;; '
VERSION = '--version) echo "Cuda compilation tools, release {release}, V{release}.1";; '
CODES = "--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\nsm_100\\nsm_110\\n';; esac\n"

ANSWERS = """#!/bin/sh
case "$*" in
  *--version) echo 'fake 1.0'; exit;;
  *-dumpmachine) echo x86_64-linux-gnu; exit;;
  *-dM*) exit;;
esac
"""
WRITES = f"""{ANSWERS}
while [ $# -gt 0 ]; do
  case "$1" in
    -o) echo 'no machine code' > "$2";;
    -MF) echo 'object:' > "$2";;
  esac
  shift
done
"""


def fake_toolkit(home: Path, release: str = "13.0") -> Path:
    """Write a toolkit whose nvcc only answers questions."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    text = DRYRUN.format(here=nvcc.parent) + VERSION.format(release=release) + CODES
    nvcc.write_text(f"#!/bin/sh\n{text}")
    nvcc.chmod(0o755)
    return home


def writing_compiler(path: Path) -> Path:
    """Write a C++ compiler whose output is a line of text: what imports it fails."""
    path.write_text(WRITES)
    path.chmod(0o755)
    return path
