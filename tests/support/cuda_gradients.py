"""Gradients for tests over the emulator, and the devices that they are put on."""

import math

import torch
from emulated_native import Emulated
from samples import gradient
from torch import Tensor

NORM_TYPES = (2.0, 1.0, math.inf, 3.0)
SIZES = (33, 16385, 1, 5000, 40000, 2)


def mixed_gradients() -> list[Tensor]:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return [gradient(size, dtypes[i % 3], seed=i) for i, size in enumerate(SIZES)]


def place(emulated: Emulated, tensors: list[Tensor], devices: list[int]) -> None:
    """Put tensors on devices in turn."""
    for i, tensor in enumerate(tensors):
        emulated.place(tensor, devices[i % len(devices)])
