"""Clip the gradients of a model that FSDP2 shards: the norm is that of the whole gradients.

python examples/fsdp2.py

The group has one process here. Under torchrun on CPUs, init_process_group("gloo") is all that
changes. On GPUs it is init_process_group("nccl"), each process calls
torch.cuda.set_device(int(os.environ["LOCAL_RANK"])), model and inputs are moved to "cuda", and the
mesh is one of "cuda".
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import fastclip

dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
inputs = torch.randn(8, 16)
mesh = init_device_mesh("cpu", (dist.get_world_size(),))

# [snippet: fsdp2]
fully_shard(model, mesh=mesh)
clipper = fastclip.GradClipper(model.named_parameters(), max_norm=1.0)  # after fully_shard
model(inputs).square().sum().backward()
total_norm = clipper.clip_()  # every rank calls, and every rank gets the same norm
# [snippet ends]
assert isinstance(total_norm, DTensor)
print(f"the norm of all shards was {total_norm.full_tensor().item():.4f}")
dist.destroy_process_group()
