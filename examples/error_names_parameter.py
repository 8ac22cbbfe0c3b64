"""The first example of the README: clip, clip a prepared set, and be told which gradient is bad.

python examples/error_names_parameter.py
"""

try:
    # [snippet: first]
    import torch

    import fastclip

    model = torch.nn.Linear(3, 4)
    model(torch.ones(1, 3)).sum().backward()  # 16 gradients of 1.0
    print(fastclip.clip_grad_norm_(model.parameters(), max_norm=2.0))
    clipper = fastclip.GradClipper(model.named_parameters(), max_norm=2.0, error_if_nonfinite=True)
    print(clipper.clip_(), clipper.parameter_norms)
    model(torch.full((1, 3), torch.inf)).sum().backward()
    clipper.clip_()  # raises before it writes anything
    # [snippet ends]
except RuntimeError as error:
    print(f"RuntimeError: ...; {str(error).partition('; ')[2]}")
