"""The GPUs of the building machine, as CUDA's driver library lists them.

The driver is asked rather than nvidia-smi, which containers often lack and which ignores
CUDA_VISIBLE_DEVICES, and rather than torch, because kernels can be built for a torch without CUDA,
which knows no GPU. Another process asks, with this file as its program, so that the build survives
a driver that crashes or hangs. No context is made.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping

DRIVER = "libcuda.so.1"
TIMEOUT_S = 60
"""A driver that has to load first may take seconds for each GPU."""

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

VISIBLE = "CUDA_VISIBLE_DEVICES"


def find_gpus(environ: Mapping[str, str]) -> list[int] | str:
    """Return the compute capabilities of the GPUs that CUDA sees, such as 90, each once.

    A str says why there is none. The driver itself reads CUDA_VISIBLE_DEVICES, as it will when
    fastclip runs.
    """
    # Python runs isolated and without site-packages: only the standard library is needed.
    command = [sys.executable, "-I", "-S", __file__]
    try:
        done = subprocess.run(
            command,
            env=dict(environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"the NVIDIA driver did not answer within {TIMEOUT_S} s"
    if done.returncode < 0:
        return f"the NVIDIA driver crashed with signal {-done.returncode}"
    if done.returncode > 0:
        said = done.stderr.strip().splitlines()
        return said[-1] if said else f"{__file__} failed with status {done.returncode}"
    # The answer is the last line: a driver may print something before it.
    return sorted({int(number) for number in done.stdout.splitlines()[-1].split()})


def ask_driver() -> list[int]:
    """Return the compute capability of each GPU.

    Raises:
        OSError: there is no driver, no GPU, or the driver answers with an error.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        raise OSError(f"{DRIVER} of the NVIDIA driver cannot be loaded") from None
    _call(driver, "cuInit", 0)
    count = ctypes.c_int()
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise OSError(_sees_none())
    return [_capability(driver, ordinal) for ordinal in range(count.value)]


def _capability(driver: ctypes.CDLL, ordinal: int) -> int:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(device), ordinal)
    for value, attribute in ((major, MAJOR), (minor, MINOR)):
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return 10 * major.value + minor.value


def _call(driver: ctypes.CDLL, name: str, *arguments: object) -> None:
    status = getattr(driver, name)(*arguments)
    if status == NO_DEVICE:
        raise OSError(_sees_none())
    if status != 0:
        raise OSError(f"the NVIDIA driver answers {name} with error {status}")


def _sees_none() -> str:
    hidden = f" with {VISIBLE}={os.environ[VISIBLE]!r}" if VISIBLE in os.environ else ""
    return f"the NVIDIA driver sees none{hidden}"


if __name__ == "__main__":
    try:
        print(*ask_driver())
    except (OSError, AttributeError) as failure:
        sys.exit(str(failure))
