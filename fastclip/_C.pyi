"""The compiled extension, built from csrc/bindings.cpp. Only backends/extension.py imports it.

``inv_scale`` and ``found_inf``: see ``ClipRequest``.
"""

from torch import Tensor
from torch import dtype as Dtype

from .backends.request import ClipRequest

class UnsupportedError(Exception):
    """``args[0]``: list[tuple[int, str]]: the kind and the text of every reason."""

class NonFiniteError(Exception):
    """``args``: the Remains of the clip, and a GradList of the gradients that it has read."""

class Remains:
    """What a clip leaves behind: see ``backends.request.Remains``."""

    total_norm: Tensor | None
    def clip_coef(self) -> Tensor: ...
    def sums(
        self,
    ) -> tuple[list[Tensor], Tensor, Tensor | None, float, Dtype, list[Tensor | None]]: ...
    def norms(self) -> tuple[Tensor, Tensor | None] | None: ...
    def is_capturing(self) -> bool: ...

class GradList:
    """See ``backends.base.GradList``; ``reduce()`` returns the arguments of ``Sums``."""

    def hold(self, takes_norm: bool) -> GradList: ...
    def clip(self, request: ClipRequest, is_fused: bool) -> Tensor | None: ...
    def clip_and_keep(self, request: ClipRequest, is_fused: bool) -> Remains: ...
    def reduce(
        self, norm_type: float, dtype: Dtype | None, found_inf: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor | None, float, Dtype, list[Tensor | None]]: ...
    def scale(
        self,
        by: float | Tensor | list[Tensor],
        inv_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> bool: ...
    def scale_by_norm(
        self,
        max_norm: float | Tensor,
        total_norm: Tensor,
        inv_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> bool: ...
    def scale_into(
        self,
        targets: list[Tensor],
        by: float | Tensor | list[Tensor],
        inv_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None: ...
    def clamp(
        self, clip_value: float, inv_scale: Tensor | None, found_inf: Tensor | None
    ) -> bool: ...

    # Of a held list on one device, for Triton's kernels, which Python launches.
    size: int
    device: int
    chunk_size: int
    groups: int
    mix: int
    has_float64: bool
    places: Tensor | None
    def holds(self, address: int) -> bool: ...
    def write(self, words: Tensor, fields: list[int], targets: list[int]) -> None: ...
    def addresses_of(self, targets: list[Tensor]) -> list[int]: ...
    def bump_versions(self) -> None: ...

def gather(sources: list[Tensor], kind: int, kernels: int) -> GradList:
    """Make a list; ``kind`` and ``kernels`` are numbers of ``Kind`` and ``Kernels``."""

def finish(
    total: Tensor,
    norm_type: float,
    dtype: Dtype,
    max_norm: float | Tensor,
    inv_scale: Tensor | None,
) -> tuple[Tensor, Tensor]: ...
def cuda_reasons(device: int) -> list[str]: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def set_instruction_set(name: str) -> None: ...
