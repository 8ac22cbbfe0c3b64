"""GradClipper: a set of parameters that is prepared once and clipped at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .backends import REFERENCE, check_backend, dispatch
from .backends.base import (
    NO_CLIP_YET,
    Backend,
    GradList,
    NonFiniteError,
    nonfinite_message,
    warn,
)
from .backends.request import PARAMETERS, Norms, clip_request, number_of
from .clip_grad import label_of
from .clipper_state import ClipperState, check_dimension, checked_state

NamedParameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]]


class GradClipper:
    """Clip the gradients of a fixed set of parameters, call after call.

    ``clip_()`` does what ``clip_grad_norm_(parameters, max_norm, ...)`` does, and keeps the norm of
    each parameter. ``.grad`` is read anew at each call, so gradients may come and go, be replaced,
    frozen or set to None between calls. copy.deepcopy and pickle take the parameters along: copy it
    together with the model, or the copy clips its own.

    Args:
        parameters: tensors, or (name, tensor) pairs as ``model.named_parameters()`` gives them;
            held strongly.
        max_norm: the largest norm that the gradients keep; a float or a 0-dim tensor, whose value
            is read at each call.
        norm_type: the p of the p-norm: any float, or "inf".
        error_if_nonfinite: raise when the norm is inf or nan, before anything is written; the
            error names the parameters.
        backend: "native", "triton" or "reference" to insist on one; None takes the fastest that
            can run.

    Attributes:
        names: one name per parameter in construction order: those given, else "0", "1", ...
        norm_type: the p of the p-norm.
        error_if_nonfinite: as given; may be changed between calls.
        backend: as given.

    Raises:
        TypeError: an entry is neither a tensor nor a (name, tensor) pair.
        ValueError: ``backend`` is unknown, or ``max_norm`` is a tensor that is not 0-dim.

    Example:
        >>> clipper = GradClipper(model.named_parameters(), max_norm=1.0)
        >>> loss.backward()
        >>> total_norm = clipper.clip_()
        >>> optimizer.step()
    """

    def __init__(
        self,
        parameters: NamedParameters,
        max_norm: float | Tensor,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        *,
        backend: str | None = None,
    ) -> None:
        check_backend("GradClipper", backend, None)
        self.names, self._parameters = _named(parameters)
        self.max_norm = max_norm
        self.norm_type = number_of(norm_type)
        self.error_if_nonfinite = error_if_nonfinite
        self.backend = backend
        self._forget()

    @property
    def max_norm(self) -> float | Tensor:
        """The largest norm that the gradients keep; settable to a number or a 0-dim tensor."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, max_norm: float | Tensor) -> None:
        if isinstance(max_norm, Tensor):
            check_dimension(max_norm)
            self._max_norm: float | Tensor = max_norm
        else:
            self._max_norm = float(max_norm)

    def clip_(self) -> Tensor:
        """Scale the gradients in place so that their total norm is at most ``max_norm``.

        ``grad *= min(1, max_norm / (total_norm + 1e-6))``

        Returns:
            The norm before clipping, a new 0-dim tensor at each call, on the first gradient's
            device; float64 if any gradient is float64 or complex128, else float32. Without
            gradients ``torch.tensor(0.0)``, and one RuntimeWarning for each GradClipper: its
            parameters may no longer be the model's. DTensors as for ``clip_grad_norm_``.

        Raises:
            RuntimeError: the norm is not finite and ``error_if_nonfinite`` is set (the message
                names the parameters), or is set while a CUDA graph is captured; a gradient's
                elements share memory; or ``backend`` cannot run this.
            ValueError: ``backend`` is unknown.
        """
        if torch.compiler.is_compiling():
            return _clip_outside_graph(self)
        return self._clip()

    def _clip(self) -> Tensor:
        try:
            return dispatch("GradClipper", self.backend, None, self._clip_with)
        except NonFiniteError as error:
            labels = [label_of(self.names[i], self._parameters[i].grad) for i in error.positions]
            raise RuntimeError(nonfinite_message(number_of(self.norm_type), labels)) from None

    @property
    def parameter_norms(self) -> Tensor:
        """The norm of each parameter's gradient, as the last ``clip_()`` saw it before scaling.

        Shape (number of parameters,), in construction order; float64 if any gradient was, else
        float32; 0 where ``.grad`` was None. It costs no extra pass over the gradients. With
        DTensors among the parameters they are the norms of the whole gradients, the same on every
        rank of the mesh; for p < 0 a gradient that no rank has counts as inf.

        Raises:
            RuntimeError: ``clip_()`` has not been called yet; or a CUDA graph is captured and
                parameters have no gradient, or share one.
        """
        if self._last is None:
            raise RuntimeError(NO_CLIP_YET)
        return self._last.parameter_norms()

    def _clip_with(self, backend: Backend) -> Tensor:
        grads = self._lists.get(backend.name)
        if grads is None:
            grads = self._lists[backend.name] = backend.gather(self._parameters, PARAMETERS)
        request = clip_request(
            self._max_norm, self.norm_type, self.error_if_nonfinite, keeps_norms=True
        )
        try:
            norms = self._last = grads.clip(request)
        except NonFiniteError as error:
            self._last = error.norms  # their norms show which gradient was not finite
            raise
        if norms.total_norm is None or backend is REFERENCE:
            self._warn_without_gradients(norms.total_norm)
        return torch.tensor(0.0) if norms.total_norm is None else norms.total_norm

    def _warn_without_gradients(self, total_norm: Tensor | None) -> None:
        if self._has_warned or not self._parameters:
            return
        if any(p.grad is not None for p in self._parameters):
            return
        # The norm may come from gradients of DTensors on other ranks. Reading it from a GPU would
        # wait.
        if total_norm is not None and (not total_norm.is_cpu or float(total_norm) != 0):
            return
        self._has_warned = True
        warn(
            f"GradClipper: none of its {len(self._parameters)} parameters has a gradient here. "
            "What replaces a model's parameters (fully_shard, load_state_dict(assign=True), some "
            "conversions) leaves a GradClipper that was made before with the old ones, and it "
            "clips nothing: make a new one"
        )

    def state_dict(self) -> dict[str, object]:
        """Return what a checkpoint needs: the thresholds and the names, no parameter.

        Returns:
            "max_norm" (a float, or a copy of the 0-dim tensor), "norm_type", "error_if_nonfinite"
            and "names" (a list). ``torch.load`` reads it by its default, ``weights_only=True``.
        """
        max_norm = self._max_norm
        if isinstance(max_norm, Tensor):
            max_norm = max_norm.detach().clone()
        error_if_nonfinite = bool(self.error_if_nonfinite)
        norm_type = number_of(self.norm_type)
        state = ClipperState(max_norm, norm_type, error_if_nonfinite, list(self.names))
        return state._asdict()

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Take the thresholds over that ``state_dict`` returned, of a clipper with the same names.

        Where ``max_norm`` is a tensor it keeps its identity and device and gets the value, so that
        a captured CUDA graph, or whoever else holds it, sees the change.

        Raises:
            ValueError: the names differ, or ``max_norm`` is a tensor that is not 0-dim.
            KeyError: an entry is missing.
            TypeError: an entry is of another type.

        Whatever raises, nothing was changed.
        """
        state = checked_state(state_dict, self.names)
        held, max_norm = self._max_norm, state.max_norm
        if not isinstance(held, Tensor):
            self.max_norm = max_norm.clone() if isinstance(max_norm, Tensor) else max_norm
        else:
            with torch.no_grad():
                held.copy_(max_norm) if isinstance(max_norm, Tensor) else held.fill_(max_norm)
        self.norm_type = state.norm_type
        self.error_if_nonfinite = state.error_if_nonfinite

    def _forget(self) -> None:
        self._lists: dict[str, GradList] = {}
        self._last: Norms | None = None
        self._has_warned = False

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        del state["_lists"], state["_last"], state["_has_warned"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __repr__(self) -> str:
        return (
            f"GradClipper({len(self.names)} parameters, max_norm={self._max_norm}, "
            f"norm_type={self.norm_type}, error_if_nonfinite={self.error_if_nonfinite}, "
            f"backend={self.backend!r})"
        )


# torch.compiler.disable would import torch._dynamo, which takes more than a second.
_clip_outside_graph = cast("Callable[[GradClipper], Tensor]", _disable_dynamo(GradClipper._clip))


def _named(parameters: NamedParameters) -> tuple[list[str], list[Tensor]]:
    """Split (name, tensor) pairs; plain tensors are named by their position."""
    if not isinstance(parameters, Iterable):
        kind = type(parameters).__name__
        raise TypeError(
            "GradClipper: parameters must be an iterable of tensors or of (name, tensor) pairs, "
            f"such as model.named_parameters() (got {kind})"
        )
    names: list[str] = []
    tensors: list[Tensor] = []
    for position, item in enumerate([parameters] if isinstance(parameters, Tensor) else parameters):
        pair = item if isinstance(item, tuple) else (str(position), item)
        if len(pair) != 2 or not isinstance(pair[0], str) or not _is_parameter(pair[1]):
            raise TypeError(
                f"GradClipper: entry {position} must be a tensor or a (name, tensor) pair "
                f"(got {_kind(item)})"
            )
        name, tensor = pair
        names.append(name)
        tensors.append(tensor)
    return names, tensors


def _is_parameter(value: object) -> bool:
    # isinstance comes first: hasattr would read the `.grad` of a tensor that is no leaf, which
    # warns.
    return isinstance(value, Tensor) or hasattr(value, "grad")


def _kind(item: object) -> str:
    if isinstance(item, tuple):
        return f"({', '.join(type(value).__name__ for value in item)})"
    return type(item).__name__
