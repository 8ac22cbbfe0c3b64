"""Clip under DistributedDataParallel, after the backward pass that averages the gradients.

python examples/ddp.py

The group has one process here. Under torchrun on CPUs, init_process_group("gloo") is all that
changes.
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastclip

dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
torch.manual_seed(0)
layers = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
first, second = torch.randn(2, 8, 16)

# [snippet: ddp]
model = DistributedDataParallel(layers)
with model.no_sync():
    model(first).square().sum().backward()  # stays on this rank
model(second).square().sum().backward()  # averages the sums of both over the ranks
total_norm = fastclip.clip_grad_norm_(model.parameters(), max_norm=1.0)
# [snippet ends]
print(f"the norm of both micro-batches was {total_norm.item():.4f}")
dist.destroy_process_group()
