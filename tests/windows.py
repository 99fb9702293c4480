"""Small models that attend within windows, on streams of [B, H, W, C]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.tiny import Attention, Mlp

SIDE, WINDOW, DIM = 6, 3, 16


class WindowAttention(Attention):
    """Attention within windows of 3 x 3 tokens, of a grid that is rolled first if `shift`."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__(DIM)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape  # [B, H, W, C]
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = x.view(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).permute(0, 1, 3, 2, 4, 5)
        x = super().forward(x.reshape(-1, WINDOW * WINDOW, c))
        x = (
            x.view(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(b, h, w, c)
        )
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class GlobalAttention(Attention):
    """Attention over the whole grid."""

    def __init__(self) -> None:
        super().__init__(DIM)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1, 2)).view(x.shape)


class GridBlock(nn.Module):
    """A pre-norm block on [B, H, W, C]; the MLP may see its tokens in a row, as Swin's does."""

    def __init__(self, attention: nn.Module, *, in_a_row: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(DIM), attention
        self.norm2, self.mlp, self.in_a_row = nn.LayerNorm(DIM), Mlp(DIM), in_a_row

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x + self.attn(self.norm1(x))
        x = x.reshape(shape[0], -1, shape[-1]) if self.in_a_row else x
        return (x + self.mlp(self.norm2(x))).reshape(shape)


class GridViT(nn.Module):
    """A patch embedding that keeps its grid, blocks, and a neck that wants a map (as SAM's does)."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, 4, 4)
        self.position = nn.Parameter(torch.randn(1, SIDE, SIDE, DIM))
        self.blocks = nn.ModuleList(blocks)
        self.neck = nn.Conv2d(DIM, 5, 3)

    def embed(self, pixels: Tensor) -> Tensor:
        """The first state, [B, H, W, C]."""
        return self.patches(pixels).permute(0, 2, 3, 1) + self.position

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


def windowed(*, in_a_row: bool = False) -> GridViT:
    """Two blocks of windows (the second is shifted), a global one, and one of windows."""
    attentions = (WindowAttention(), WindowAttention(1), GlobalAttention(), WindowAttention())
    torch.manual_seed(0)
    return GridViT(*(GridBlock(attention, in_a_row=in_a_row) for attention in attentions)).eval()
