"""The label after a wheel's version: which torch it is for and which kernels it holds.

A wheel's tags name the Python and the platform, but know nothing of torch. The label is a local
version (PEP 440), so that wheels for several torches may lie in one directory, and pip's list and
an exact requirement tell them apart.
"""

from collections.abc import Mapping

from build_support.plan import BuildError, CudaFacts

VARIABLE = "FASTCLIP_LABEL"
CHOICES = {"": False, "0": False, "1": True}


def is_asked_for(environ: Mapping[str, str]) -> bool:
    """Return whether the version gets the label.

    Raises:
        BuildError: the variable is neither 0 nor 1.
    """
    value = environ.get(VARIABLE, "")
    if value not in CHOICES:
        raise BuildError(f"{VARIABLE}: must be 0 or 1 (got {value!r})")
    return CHOICES[value]


def local_version(torch_version: str, cuda: CudaFacts) -> str:
    """Return the label, such as "torch2.13.cu130", or "torch2.13.cpu" without CUDA kernels.

    torch keeps its C++ interface within one major.minor, and the CUDA release is that of the
    runtime that is linked in.
    """
    minor = ".".join(torch_version.split(".")[:2])
    kernels = "cpu" if cuda.release is None else f"cu{cuda.release.replace('.', '')}"
    return f"torch{minor}.{kernels}"
