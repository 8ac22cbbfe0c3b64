"""What a GradClipper holds: parameters that are converted, listed, or refer back to it."""

import gc
import weakref
from collections.abc import Iterator

import oracle
import pytest
import torch
from samples import gradient

import fastclip


@pytest.fixture
def _swapping() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("_swapping")
def test_a_module_may_swap_the_tensors_of_its_parameters(backend: str | None) -> None:
    module = torch.nn.Linear(3, 3)
    clipper = fastclip.GradClipper(module.parameters(), 1.0, backend=backend)
    for convert in (module.double, module.float):
        module.zero_grad()
        convert()
        grads = [gradient(tuple(p.shape), p.dtype) for p in module.parameters()]
        for parameter, grad in zip(module.parameters(), grads, strict=True):
            parameter.grad = grad.clone()
        total_norm = clipper.clip_()
        assert total_norm.dtype == grads[0].dtype
        clip_coef = oracle.clip_coef(1.0, total_norm)
        for parameter, grad in zip(module.parameters(), grads, strict=True):
            assert parameter.grad is not None
            assert oracle.equal(parameter.grad, oracle.scaled(grad, clip_coef))


class Holder(torch.nn.Parameter):
    """A parameter that may refer to its clipper."""

    clipper: fastclip.GradClipper


def test_a_parameter_that_refers_back_to_its_clipper_is_collected(backend: str | None) -> None:
    def make() -> weakref.ref[fastclip.GradClipper]:
        parameter = Holder(torch.ones(3))
        parameter.grad = torch.ones(3)
        parameter.clipper = fastclip.GradClipper([parameter], 1.0, backend=backend)
        parameter.clipper.clip_()
        return weakref.ref(parameter.clipper)

    references = [make() for _ in range(3)]
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_a_parameter_list_is_an_iterable_of_parameters(backend: str | None) -> None:
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(3))])
    next(module.parameters()).grad = torch.full((3,), 2.0)
    clipper = fastclip.GradClipper(module, 1.0, backend=backend)
    assert clipper.clip_().item() == pytest.approx(12**0.5)
    assert clipper.names == ["0"]
