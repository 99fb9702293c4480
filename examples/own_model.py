"""A Vision Transformer of your own: prunec reads the code as it stands, it need not know the model.

python examples/own_model.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunec
from prunec.measure import evaluate


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, C] -> [B, T, C]."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    """Attention and MLP, each behind its norm and added to the stream."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, C] -> [B, T, C]."""
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class OwnViT(nn.Module):
    """Patches of 8 pixels, a class token, positions, eight blocks, and a head that reads the class token."""

    def __init__(
        self, size: int = 96, patch: int = 8, dim: int = 64, depth: int = 8, classes: int = 10
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads=4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, 3, H, W] -> class scores [B, classes]."""
        patches = self.patches(image).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(image.shape[0], -1, -1)  # len(image) would fix the batch
        stream = torch.cat([class_token, patches], dim=1) + self.positions
        return self.head(self.norm(self.blocks(stream))[:, 0])


def main() -> None:
    torch.manual_seed(0)
    model, image = OwnViT().eval(), torch.randn(2, 3, 96, 96)

    found = prunec.anatomy(model, example=image)
    print(f"found: {found.depth} blocks, {found.tokens} tokens, {found.prefix} protected")
    print("the head reads:", *found.head)
    fast = prunec.transform(model, policy=prunec.Policy.load("evit", keep=0.5), example=image)
    print("the plan:")
    for site in fast.program.plan.sites:
        print(f"  {site}")

    # Every transform is proved before it is returned: keeping all tokens, even shuffled, changes nothing.
    print("the proof:", *fast.program.stages[-1].notes)
    same = prunec.transform(model, policy=prunec.Policy.load("evit", keep=1.0), example=image)
    images = torch.randn(8, 3, 96, 96)
    print("keep=1.0 against the model:", evaluate.compare({"dense": model, "pruned": same}, images).pruned)
    print("keep=0.5 against the model:", evaluate.compare({"dense": model, "pruned": fast}, images).pruned)


if __name__ == "__main__":
    main()
