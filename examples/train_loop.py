"""Clip in a training loop, after the norms of a few steps have told a threshold.

python examples/train_loop.py
"""

import torch
from torch.nn.functional import mse_loss

import fastclip

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
batches = [(inputs, inputs.sum(1, keepdim=True)) for inputs in torch.randn(20, 8, 16)]
total_norm = torch.tensor(0.0)

norms: list[torch.Tensor] = []
for inputs, targets in batches:
    mse_loss(model(inputs), targets).backward()
    # [snippet: norms]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norms.append(fastclip.get_total_norm(grads))  # writes nothing
    # [snippet ends]
    optimizer.step()
    optimizer.zero_grad()

# [snippet: threshold]
threshold = torch.stack(norms).quantile(0.9).item()
# [snippet ends]
print(f"nine of ten norms are at most {threshold:.4f}")

for inputs, targets in batches:
    # [snippet: list]
    mse_loss(model(inputs), targets).backward()
    total_norm = fastclip.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    # [snippet ends]
    optimizer.zero_grad()
print(f"the norm of the last step was {total_norm.item():.4f}")
