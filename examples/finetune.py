"""Fine-tune an adapter beside frozen weights, in bfloat16 autocast, over accumulated gradients.

python examples/finetune.py
"""

import torch
from torch.nn.functional import mse_loss

import fastclip

torch.manual_seed(0)
base, adapter = torch.nn.Linear(16, 1), torch.nn.Sequential()
adapter.extend([torch.nn.Linear(16, 4, bias=False), torch.nn.Linear(4, 1, bias=False)])
model = torch.nn.ModuleDict({"base": base, "adapter": adapter})
inputs = torch.randn(2, 4, 8, 16)  # steps, micro-batches, rows, columns
total_norm = torch.tensor(0.0)

# [snippet: frozen]
base.requires_grad_(False)
trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
clipper = fastclip.GradClipper(trainable, max_norm=1.0)
# [snippet ends]
optimizer = torch.optim.SGD(adapter.parameters(), lr=0.01)

for micro_batches in inputs:
    # [snippet: accumulation]
    for batch in micro_batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):  # bfloat16 needs no GradScaler
            loss = mse_loss(base(batch) + adapter(batch), batch.sum(1, keepdim=True))
        (loss / len(micro_batches)).backward()
    total_norm = clipper.clip_()  # once, of the gradients that all micro-batches added up to
    optimizer.step()
    optimizer.zero_grad()
    # [snippet ends]
    print(f"the norm of the step was {total_norm.item():.4f}")
print(f"of {', '.join(clipper.names)}")
