"""Programs that stand in for a compiler or a CUDA toolkit, so that a build takes no time.

There is also a driver library that reports GPUs which do not exist.
"""

import os
import subprocess
from pathlib import Path

from source_tree import compiler

DRYRUN = 'case "$1" in --dryrun) echo "#$ _HERE_={here}" >&2;; '
VERSION = '--version) echo "Cuda compilation tools, release {release}, V{release}.1";; '
CODES = "--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\nsm_100\\nsm_110\\n';; "

ANSWERS = """#!/bin/sh
case "$*" in
  *--version) echo 'fake 1.0'; exit;;
  *-dumpmachine) echo x86_64-linux-gnu; exit;;
  *-dM*) exit;;
esac
"""
WRITES = """
while [ $# -gt 0 ]; do
  case "$1" in
    -o) echo 'no machine code' > "$2";;
    -MF) echo 'object:' > "$2";;
  esac
  shift
done
"""

# This is what build_support/gpus.py calls. FAKE_GPUS names the GPUs by their compute capabilities;
# CUDA_VISIBLE_DEVICES holds indexes, up to the first that is out of range. FAKE_DRIVER makes it
# fail.
DRIVER = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

static const int kFirstHandle = 7;
static int capabilities[16], visible[16];
static int there = 0, count = -1;

static bool take_number(const char** text, int* number) {
  char* end = nullptr;
  *number = static_cast<int>(std::strtol(*text, &end, 10));
  const bool is_number = end != *text;
  *text = *end == ',' ? end + 1 : end;
  return is_number;
}
extern "C" int cuInit(unsigned) {
  const char* state = std::getenv("FAKE_DRIVER");
  if (state != nullptr && std::strcmp(state, "crashes") == 0) std::abort();
  while (state != nullptr && std::strcmp(state, "hangs") == 0) pause();
  if (state != nullptr && std::strcmp(state, "talks") == 0) std::puts("1 warning");
  if (state != nullptr && std::strcmp(state, "is too old") == 0) return 803;
  std::fflush(stdout);
  const char* gpus = std::getenv("FAKE_GPUS");
  while (take_number(&gpus, &capabilities[there])) ++there;
  const char* listed = std::getenv("CUDA_VISIBLE_DEVICES");
  for (count = 0; listed == nullptr && count < there; ++count) visible[count] = count;
  int index = 0;
  while (listed != nullptr && take_number(&listed, &index) && index >= 0 && index < there) {
    visible[count++] = index;
  }
  return count == 0 ? 100 : 0;
}
extern "C" int cuDeviceGetCount(int* number) {
  *number = count;
  return count < 0 ? 3 : 0;
}
extern "C" int cuDeviceGet(int* device, int ordinal) {
  if (ordinal < 0 || ordinal >= count) return 101;
  *device = kFirstHandle + visible[ordinal];
  return 0;
}
extern "C" int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const int index = device - kFirstHandle;
  if (index < 0 || index >= there) return 101;
  if (attribute != 75 && attribute != 76) return 1;
  *value = attribute == 75 ? capabilities[index] / 10 : capabilities[index] % 10;
  return 0;
}
"""
LACKING_DRIVER = 'extern "C" int cuInit(unsigned) { return 0; }'


def fake_toolkit(home: Path, release: str = "13.0") -> Path:
    """Write a toolkit whose nvcc answers questions and writes a line of text as an object."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    text = DRYRUN.format(here=nvcc.parent) + VERSION.format(release=release) + CODES
    nvcc.write_text(f"#!/bin/sh\n{text} *) {WRITES};; esac\n")
    nvcc.chmod(0o755)
    return home


def writing_compiler(path: Path) -> Path:
    """Write a C++ compiler whose output is a line of text, which cannot be imported."""
    path.write_text(ANSWERS + WRITES)
    path.chmod(0o755)
    return path


def fake_driver(folder: Path, source: str = DRIVER) -> str:
    """Build a driver library and return its folder.

    A process that is started with that folder as LD_LIBRARY_PATH loads this driver and no other.
    """
    cxx = compiler.find_compiler(os.environ)
    assert cxx is not None
    folder.mkdir(parents=True, exist_ok=True)
    code = folder / "driver.cpp"
    code.write_text(source)
    library = folder / "libcuda.so.1"
    subprocess.run([*cxx.command, "-shared", "-fPIC", str(code), "-o", str(library)], check=True)
    return str(folder)
