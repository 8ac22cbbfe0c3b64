"""Gradient clipping for large-model training: the API of ``torch.nn.utils``, fused and exact."""

from ._build import BuildInfo as BuildInfo
from ._build import __version__ as __version__
from ._build import build_info as build_info
from .backends import backend_report as backend_report
from .backends import instruction_set as instruction_set
from .backends.base import UnsupportedError as UnsupportedError
from .backends.clip_mode import clip_mode as clip_mode
from .backends.clip_mode import set_clip_mode as set_clip_mode
from .clip_grad import clip_grad_norm as clip_grad_norm
from .clip_grad import clip_grad_norm_ as clip_grad_norm_
from .clip_grad import clip_grad_value_ as clip_grad_value_
from .clip_grad import clip_grads_with_norm_ as clip_grads_with_norm_
from .clip_grad import get_total_norm as get_total_norm
from .clipper import GradClipper as GradClipper
from .functional import get_tensor_norms as get_tensor_norms
from .functional import scale_tensors_ as scale_tensors_
from .functional import scale_tensors_into as scale_tensors_into
from .on_step import StepClip as StepClip
from .on_step import clip_on_step as clip_on_step
from .patch import Patched as Patched
from .patch import patch_torch as patch_torch
from .patch import unpatch_torch as unpatch_torch
