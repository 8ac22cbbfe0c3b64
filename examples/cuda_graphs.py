"""Capture a clip in a CUDA graph and replay it: the replay takes the gradients as they are then.

python examples/cuda_graphs.py
"""

import sys

import torch

import fastclip

if not torch.cuda.is_available():
    print("examples/cuda_graphs.py needs a GPU, and torch sees none here.")
    sys.exit(0)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
model.to("cuda")
model(torch.randn(8, 16, device="cuda")).square().sum().backward()
clipper = fastclip.GradClipper(model.named_parameters(), max_norm=1.0)

# [snippet: graphs]
clipper.clip_()  # once before the capture: it loads the kernels, and it clips
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    total_norm = clipper.clip_()  # holds the norm of each replay
graph.replay()
# [snippet ends]
print(f"the norm was {total_norm.item():.4f}")
for parameter in model.parameters():
    if parameter.grad is not None:
        parameter.grad.mul_(4)
graph.replay()
print(f"and of gradients four times as large {total_norm.item():.4f}")
