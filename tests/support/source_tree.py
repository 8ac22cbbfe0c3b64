"""The source tree that the tests lie in, and the code that builds it."""

import sys
from pathlib import Path

# The tree goes to the end, because the tests run against the installed fastclip.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from build_support import check_wheel as check_wheel
from build_support import compiler as compiler
from build_support import cuda as cuda
from build_support import extension as extension
from build_support import gpus as gpus
from build_support import label as label
from build_support import plan as plan
from build_support import torch_on_disk as torch_on_disk
from build_support.plan import ROOT as ROOT

SUPPORT = ROOT / "tests" / "support"
