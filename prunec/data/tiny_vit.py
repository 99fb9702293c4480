"""A tiny Vision Transformer in ordinary PyTorch, trained on Shapes and shipped with its weights.

It is written the plain way on purpose: prunec reads it as it reads any other model. Its training (see
``benchmarks/train_shapes.py``) used the objects' masks and left background patches out, so background can be
pruned from it at little cost: more readily than from a model that was trained on labels alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunec.data.shapes import NUM_CLASSES
from prunec.errors import SourceError

WEIGHTS = Path(__file__).with_name("shapes_classifier.safetensors")


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from every token to every token: [B, T, C] to [B, T, C]."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, H, T, d] each
        x = F.scaled_dot_product_attention(q, k, v)
        x = x.transpose(1, 2).reshape(batch, tokens, dim)
        return self.proj(x)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to the stream."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TinyViT(nn.Module):
    """Patches and a CLS token, learned positions, pre-norm blocks, a linear head on CLS."""

    def __init__(
        self,
        image_size: int = 72,
        patch_size: int = 8,
        dim: int = 96,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: int = 3,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = image_size // patch_size
        self.patch_embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio * dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Class scores [B, num_classes] of normalised images [B, 3, H, W]."""
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]

    def embed(self, image: Tensor) -> Tensor:
        """The token stream [B, 1 + N, C] that enters the first block."""
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(image.shape[0], -1, -1)
        return torch.cat([cls, patches], dim=1) + self.pos_embed

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.pos_embed[0, 1:] = sincos_positions(self.grid, self.pos_embed.shape[-1])


def sincos_positions(grid: int, dim: int) -> Tensor:
    """Sines and cosines of row and column [grid * grid, dim]: where the learned positions start from."""
    frequency = 1.0 / 100 ** (torch.arange(dim // 4) / (dim // 4))
    wave = torch.arange(grid)[:, None] * frequency  # [grid, dim / 4]
    line = torch.cat([wave.sin(), wave.cos()], dim=1)  # [grid, dim / 2]
    rows = line[:, None].expand(grid, grid, -1)
    columns = line[None, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, dim)


def classifier(pretrained: bool = True) -> TinyViT:
    """The Shapes classifier in eval mode; its input is ``prunec.data.shapes.normalize(image)``."""
    model = TinyViT()
    if pretrained:
        _load(model, WEIGHTS)
    return model.eval()


def _load(model: TinyViT, path: Path) -> None:
    """Fill ``model`` from half-precision weights; it keeps computing in single precision."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise SourceError(
            f"the weights of the Shapes classifier cannot be read: {error}",
            where=str(path),
            remedy="reinstall prunec, or train them: python benchmarks/train_shapes.py",
        ) from error
