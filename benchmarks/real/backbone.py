"""DINOv2 ViT-S/14 at any size that its patches fill, and the decoder that turns tokens into a heatmap."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE, PATCH, WIDTH = 224, 14, 384
GRID = SIZE // PATCH  # patches along a side
ARCHITECTURE = "vit_small_patch14_dinov2"

State = Mapping[str, Tensor]


class Tokens(nn.Module):
    """All tokens after the last norm: [B, 3, H, W] -> [B, 1 + patches, C], the class token first."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        """The tokens."""
        tokens: Tensor = self.backbone.forward_features(image)  # type: ignore[operator]
        return tokens


class Smaller(nn.Module):
    """The same on a smaller picture, its patch tokens interpolated back: the control `resize`."""

    def __init__(self, backbone: nn.Module, grid: int) -> None:
        super().__init__()
        self.tokens, self.grid = Tokens(backbone), grid

    def forward(self, image: Tensor) -> Tensor:
        """As many tokens as of the whole picture."""
        side = self.grid * PATCH
        smaller = F.interpolate(image, (side, side), mode="bicubic", antialias=True, align_corners=False)
        tokens = self.tokens(smaller)
        patches = tokens[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        patches = F.interpolate(patches, (GRID, GRID), mode="bilinear", align_corners=False)
        return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class Decoder(nn.Module):
    """Tokens [B, 1 + patches, C] to a heatmap in [0, 1]: three transposed convolutions."""

    def __init__(self, widths: tuple[int, ...] = (WIDTH, 256, 128, 64)) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            steps += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.steps = nn.Sequential(*steps, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """The heatmap, [B, H, W]."""
        grid = tokens[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))
        logits = F.interpolate(self.steps(grid), (SIZE, SIZE), mode="bilinear", align_corners=False)
        return logits[:, 0].sigmoid()


def positions(table: Tensor, grid: int) -> Tensor:
    """Position embeddings [1, 1 + n * n, C] for another grid, the class token's as it is."""
    side = round((table.shape[1] - 1) ** 0.5)
    patches = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def backbone(state: State, grid: int = GRID) -> nn.Module:
    """The backbone for pictures of `grid` patches a side; `state` has the positions of the training."""
    model: nn.Module = timm.create_model(ARCHITECTURE, pretrained=False, img_size=grid * PATCH, num_classes=0)
    model.load_state_dict({**state, "pos_embed": positions(state["pos_embed"], grid)})
    return model.eval()


def decoder(state: State) -> nn.Module:
    """The decoder with its weights."""
    made = Decoder()
    made.load_state_dict(dict(state))
    return made.eval()
