"""Run one of the benchmark's programs.

    python bench PROGRAM [options]

What is measured is the installed fastclip, never the source tree's: the root of the tree comes last
in the module path, where it serves to find the package bench, and a program that measures does not
start unless fastclip is installed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent

MEASURING = {
    "cpu": "bench.cpu.run",
    "peak_memory": "bench.cpu.peak_memory",
    "triton_host": "bench.cpu.triton_host",
    "gpu": "bench.gpu.run",
}
PROGRAMS = {
    **MEASURING,
    "devices": "bench.gpu.devices",
    "sanitize": "bench.gpu.sanitize",
    "launcher_lists": "bench.gpu.launcher_lists",
    "roofline": "bench.model.roofline",
}
USAGE = f"usage: python bench PROGRAM [options]\nprograms: {', '.join(PROGRAMS)}"


def main() -> int:
    """Run the program that the command line names, and return its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}")
        return 0
    if name not in PROGRAMS:
        print(f"python bench: unknown program {name!r}\n{USAGE}", file=sys.stderr)
        return 2
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() not in (FOLDER, ROOT)]
    if name in MEASURING and find_spec("fastclip") is None:
        print(f"python bench {name}: fastclip is not installed", file=sys.stderr)
        return 1
    sys.path.append(str(ROOT))
    # The name that argparse prints.
    sys.argv[0] = f"bench {name}"
    return import_module(PROGRAMS[name]).main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
