"""Build torch-fastclip: the Python package and, on Linux, its native extension.

Everything declarative is in pyproject.toml. This file says what can only be known where the
package is built: whether there is a native extension, and how it is compiled (build_support/).
"""

import sys
from pathlib import Path

from setuptools import setup

# PEP 517 front ends run this file without its directory on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_support.commands import commands
from build_support.plan import BuildError, plan_build

try:
    plan = plan_build()
except BuildError as error:
    raise SystemExit(f"error: {error}") from None

setup(ext_modules=plan.extensions, cmdclass=commands(plan))
