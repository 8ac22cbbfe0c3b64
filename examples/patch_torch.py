"""Let a trainer that calls torch's own function clip with fastclip's.

python examples/patch_torch.py

Where not even one line may be added, `fastclip run train.py` does the same for a whole script.
"""

import torch

import fastclip


def trainer_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Do what a trainer does, in code that nobody here may change."""
    model(torch.ones(8, 16)).square().sum().backward()
    total_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    return total_norm


torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
# [snippet: patch]
fastclip.patch_torch()  # once, before training; unpatch_torch() gives the names back
total_norm = trainer_step(model, optimizer)
# [snippet ends]
print(f"the norm of the trainer's step was {total_norm.item():.4f}")
