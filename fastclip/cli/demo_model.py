"""The demo's model and data: a small GPT over bytes, and Python's own documentation to read."""

import torch
from torch import Tensor, nn

VOCABULARY = 256
CONTEXT = 64
BATCH = 16
WIDTH = 96
HEADS = 4
BLOCKS = 4
INITIAL_STD = 0.02


class Block(nn.Module):
    """One pre-norm transformer block: causal attention, then an MLP, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention_out = nn.Linear(WIDTH, WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, time, WIDTH) to the same shape."""
        hidden = hidden + self.attention_out(self._attend(self.attention_norm(hidden)))
        return hidden + self.mlp(self.mlp_norm(hidden))

    def _attend(self, hidden: Tensor) -> Tensor:
        batch, time, _ = hidden.shape
        packed = self.query_key_value(hidden).view(batch, time, 3, HEADS, WIDTH // HEADS)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        # This is written out because the fused CUDA kernels add in an order that varies from run to
        # run.
        scores = query @ key.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        future = torch.ones(time, time, dtype=torch.bool, device=hidden.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).reshape(batch, time, WIDTH)


class Gpt(nn.Module):
    """A GPT over bytes: embeddings, ``BLOCKS`` blocks, a norm and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.byte_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embedding = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, text: Tensor) -> Tensor:
        """Predict each next byte: (batch, CONTEXT) int64 to (batch, CONTEXT, VOCABULARY) logits."""
        hidden = self.byte_embedding(text) + self.position_embedding.weight
        return self.head(self.norm(self.blocks(hidden)))


def load_text() -> Tensor:
    """Return the help texts that Python's pydoc carries, about 460 KB, as int64 bytes."""
    from pydoc_data.topics import topics

    joined = "\n".join(topics[name] for name in sorted(topics))
    return torch.frombuffer(bytearray(joined.encode()), dtype=torch.uint8).long()


def draw_batches(text: Tensor, steps: int, seed: int) -> Tensor:
    """Draw every batch of a run at once, so that all runs see the same ones.

    Args:
        text: the bytes, int64, shape (length,), on the CPU.
        steps: number of batches.
        seed: the same seed gives the same batches.

    Returns:
        int64, shape (steps, BATCH, CONTEXT + 1): each row its bytes and, one later, its targets.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (steps, BATCH, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT + 1)]
