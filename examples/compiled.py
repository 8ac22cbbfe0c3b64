"""Compile the clip, and a whole training step with it: traced through the reference backend.

python examples/compiled.py

"aot_eager" needs no C++ compiler. Unless it is named, torch.compile takes inductor, which does.
"""

import torch

import fastclip

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)


# [snippet: compile]
@torch.compile(fullgraph=True, backend="aot_eager")
def clip() -> torch.Tensor:
    return fastclip.clip_grad_norm_(model.parameters(), max_norm=1.0)


# [snippet ends]


@torch.compile(backend="aot_eager")
def step(inputs: torch.Tensor) -> torch.Tensor:
    """Train a step: backward() and the optimizer break the graph, as they do without fastclip."""
    model(inputs).square().sum().backward()
    total_norm = fastclip.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total_norm


inputs = torch.randn(8, 16)
model(inputs).square().sum().backward()
print(f"the norm was {clip().item():.4f}, in one graph")
optimizer.zero_grad()
print(f"the norm of a compiled step was {step(inputs).item():.4f}")
