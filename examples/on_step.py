"""Clip at the optimizer's step, where the training loop has no place for a call.

python examples/on_step.py
"""

import torch

import fastclip

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
inputs = torch.randn(8, 16)

# [snippet: step]
clip = fastclip.clip_on_step(optimizer, max_norm=1.0)
model(inputs).square().sum().backward()
optimizer.step()  # clips first
# [snippet ends]
clip.remove()
grads = [p.grad for p in model.parameters() if p.grad is not None]
print(f"the norm of the step was {clip.total_norm:.4f}")
print(f"the gradients' norm is now {fastclip.get_total_norm(grads):.4f}")
