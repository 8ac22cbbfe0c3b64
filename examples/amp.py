"""Clip between GradScaler's unscale_() and step(): a step whose gradients overflow is skipped.

python examples/amp.py
"""

import torch
from torch.nn.functional import mse_loss

import fastclip

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
batches = [torch.randn(8, 16), torch.full((8, 16), torch.inf), torch.randn(8, 16)]

for step, inputs in enumerate(batches):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = mse_loss(model(inputs), torch.ones(8, 1))
    scaler.scale(loss).backward()
    # [snippet: amp]
    scaler.unscale_(optimizer)
    total_norm = fastclip.clip_grad_norm_(model.parameters(), max_norm=1.0)
    scaler.step(optimizer)
    # [snippet ends]
    scaler.update()
    print(f"step {step}: norm {total_norm.item():.4f}, then a scale of {scaler.get_scale():.0f}")
