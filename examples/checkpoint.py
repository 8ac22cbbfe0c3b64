"""Save a GradClipper's thresholds in a checkpoint, and take them back.

python examples/checkpoint.py
"""

import io

import torch

import fastclip

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
clipper = fastclip.GradClipper(model.named_parameters(), max_norm=0.125)
file = io.BytesIO()

# [snippet: checkpoint]
torch.save({"model": model.state_dict(), "clipper": clipper.state_dict()}, file)
# [snippet ends]

file.seek(0)
restored = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
clipper = fastclip.GradClipper(restored.named_parameters(), max_norm=1.0)
# [snippet: restored]
state = torch.load(file)
restored.load_state_dict(state["model"])
clipper.load_state_dict(state["clipper"])
# [snippet ends]

restored(torch.ones(8, 16)).square().sum().backward()
print(f"the norm was {clipper.clip_().item():.4f}")
grads = [p.grad for p in restored.parameters() if p.grad is not None]
print(f"and after the clip {fastclip.get_total_norm(grads):.4f}")
