"""Two scorers: one looks at the image and learns nothing, one is learned."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from prunec.scorers.gates import Setting


class Edges(nn.Module):
    """How much contrast there is in each patch of the image: the flat ones go first."""

    reads = "pixels"  # forward gets the images; without this line, the patches of the stream [B, N, C]

    def __init__(self, setting: Setting, by: Literal["spread", "range"] = "spread") -> None:
        super().__init__()
        if setting.grid is None:
            raise ValueError("the grid of patches is not known")
        if by not in ("spread", "range"):
            raise ValueError(f"by must be spread or range, got {by!r}")
        self.grid, self.by = setting.grid, by

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] to one number for each patch: [B, N]."""
        rows, columns = self.grid
        grey = image.mean(dim=1)
        cells = grey.unflatten(1, (rows, -1)).unflatten(3, (columns, -1))  # [B, rows, h, columns, w]
        if self.by == "range":
            return (cells.amax(dim=(2, 4)) - cells.amin(dim=(2, 4))).flatten(1)
        return cells.std(dim=(2, 4)).flatten(1)


class Probe(nn.Module):
    """A linear probe of each token. It has parameters, so it is calibrated on images, or trained."""

    def __init__(self, setting: Setting, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(setting.dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N]."""
        return self.linear(x)[..., 0]
