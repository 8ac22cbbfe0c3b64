"""Clip gradients that are sharded over several meshes, by one norm of all of them.

python examples/meshes.py

The group has one process here, and so has each mesh. docs/guide.md says what this needs.
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
fully_shard(model[0], mesh=init_device_mesh("cpu", (1,), mesh_dim_names=("experts",)))
fully_shard(model, mesh=init_device_mesh("cpu", (1,), mesh_dim_names=("data",)))
model(torch.randn(8, 16)).square().sum().backward()

# [snippet: meshes]
grads = [p.grad for p in model.parameters()]
shards = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
total = fastclip.get_total_norm(shards).double().square()  # of this rank
dist.all_reduce(total)  # over all ranks: each element must lie on one rank alone
fastclip.clip_grads_with_norm_(model.parameters(), 1.0, total.sqrt().float())
# [snippet ends]
print(f"the norm over both meshes was {total.sqrt().item():.4f}")
after = fastclip.get_total_norm(shards).item()
print(f"and after the clip {after:.4f}")
dist.destroy_process_group()
