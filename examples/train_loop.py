"""Clip in a training loop, and choose a threshold from the norms that the first steps logged.

python examples/train_loop.py
"""

import torch
from torch.nn.functional import mse_loss

import fastclip

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
batches = [(inputs, inputs.sum(1, keepdim=True)) for inputs in torch.randn(20, 8, 16)]

norms: list[torch.Tensor] = []
for inputs, targets in batches:
    # [snippet: list]
    mse_loss(model(inputs), targets).backward()
    total_norm = fastclip.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    # [snippet ends]
    # [snippet: norms]
    norms.append(total_norm)  # the norm before the clip, and no wait for a GPU
    # [snippet ends]
    optimizer.zero_grad()

# [snippet: threshold]
threshold = torch.stack(norms).quantile(0.9).item()
# [snippet ends]
print(f"nine of ten norms are at most {threshold:.4f}")

for inputs, targets in batches:
    mse_loss(model(inputs), targets).backward()
    norms.append(fastclip.clip_grad_norm_(model.parameters(), max_norm=threshold))
    optimizer.step()
    optimizer.zero_grad()
print(f"the norm of the last step was {norms[-1].item():.4f}")
