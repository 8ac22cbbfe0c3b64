"""setuptools commands that carry out a Plan: build_py, build_ext, and egg_info for the version."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import cast

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

from build_support.cuda import CudaBuild
from build_support.extension import build_extension, decide_cuda, describe_choice, facts_of
from build_support.label import is_asked_for, local_version
from build_support.plan import INFO_NAME, ROOT, Plan
from build_support.torch_on_disk import TorchOnDisk, find_torch

PACKAGE = "fastclip"


def commands(plan: Plan) -> dict[str, type[build_py] | type[build_ext] | type[egg_info]]:
    """Return the commands, for setup(cmdclass=...), bound to ``plan``."""

    class BuildPy(_BuildPy):
        build_plan = plan

    class BuildExt(_BuildExt):
        build_plan = plan

    class EggInfo(_EggInfo):
        build_plan = plan

    return {"build_py": BuildPy, "build_ext": BuildExt, "egg_info": EggInfo}


class _BuildPy(build_py):
    """Copy the package; without a native extension, also record why there is none."""

    build_plan: Plan

    def run(self) -> None:
        if not self.editable_mode:
            # Files that an earlier build left here would go into the wheel.
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()
        if self.build_plan.compiler is None:
            self._record()

    def _record(self) -> None:
        source = Path(self.get_package_dir(PACKAGE))
        package = source if self.editable_mode else Path(self.build_lib) / PACKAGE
        self.build_plan.write_info(package, torch_version=None)


class _BuildExt(build_ext):
    """Build fastclip._C and record how."""

    build_plan: Plan
    torch: TorchOnDisk
    cuda: CudaBuild | str

    def run(self) -> None:
        if self.extensions:
            self.torch = find_torch()
            self.cuda = decide_cuda(self.build_plan, self.torch)
            print(describe_choice(self.cuda), flush=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        cuda = None if isinstance(self.cuda, str) else self.cuda
        build_extension(self.build_plan, self.torch, output, self._object_dir(), cuda)
        self.build_plan.write_info(output.parent, self.torch.version, facts_of(self.cuda))

    def _object_dir(self) -> Path:
        # setuptools gives each editable install a new temporary directory, so each would compile
        # everything.
        own = f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        return ROOT / "build" / own if self.editable_mode else Path(self.build_temp).resolve()

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        python_files = cast(build_py, self.get_finalized_command("build_py"))
        package = Path(python_files.get_package_dir(PACKAGE))
        self.build_plan.write_info(package, self.torch.version, facts_of(self.cuda))

    def get_outputs(self) -> list[str]:
        outputs = super().get_outputs()
        return [*outputs, *(str(Path(path).parent / INFO_NAME) for path in outputs)]


class _EggInfo(egg_info):
    """Set the version: that of the sources, followed by the label if it is asked for."""

    build_plan: Plan

    def finalize_options(self) -> None:
        # An sdist and a pure Python wheel are for every torch.
        native = self.build_plan.compiler is not None and "sdist" not in self.distribution.commands
        if is_asked_for(os.environ) and native:
            torch = find_torch()
            facts = facts_of(decide_cuda(self.build_plan, torch))
            self.tag_build = f"+{local_version(torch.version, facts)}"
        super().finalize_options()
