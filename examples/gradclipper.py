"""Prepare a set of parameters once and clip it at every step, with the norm of each parameter.

python examples/gradclipper.py
"""

import torch
from torch.nn.functional import mse_loss

import fastclip

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
batches = [(inputs, inputs.sum(1, keepdim=True)) for inputs in torch.randn(20, 8, 16)]
total_norm, norms = torch.tensor(0.0), torch.zeros(4)

# [snippet: clipper]
clipper = fastclip.GradClipper(model.named_parameters(), max_norm=1.0)
for inputs, targets in batches:
    mse_loss(model(inputs), targets).backward()
    total_norm, norms = clipper.clip_(), clipper.parameter_norms
    # [snippet ends]
    optimizer.step()
    optimizer.zero_grad()
largest = int(norms.argmax())
print(f"the norm of the last step was {total_norm.item():.4f}")
print(f"the largest of its parameters' norms was {norms[largest]:.4f}, of {clipper.names[largest]}")
