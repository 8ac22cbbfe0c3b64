"""The backend "triton": the same algorithm as the CUDA kernels, for GPUs without a built extension.

Only this package imports triton, and only when a call needs its kernels.
"""

from .backend import TritonBackend as TritonBackend
from .loading import is_interpreted as is_interpreted
