from __future__ import annotations

import backbone
import torch
from torch import Tensor, nn


class Patches(nn.Module):
    """A backbone that gives each patch its mean colour, and the mean of all in front."""

    def forward_features(self, image: Tensor) -> Tensor:
        colours = nn.functional.avg_pool2d(image, backbone.PATCH).flatten(2).transpose(1, 2)
        return torch.cat([colours.mean(dim=1, keepdim=True), colours], dim=1)


def test_positions_for_the_same_grid_are_the_same() -> None:
    table = torch.randn(1, 1 + 37 * 37, 8)
    torch.testing.assert_close(backbone.positions(table, 37), table)
    small = backbone.positions(table, 16)
    assert small.shape == (1, 1 + 16 * 16, 8)
    assert torch.equal(small[:, 0], table[:, 0])


def test_a_smaller_picture_gives_as_many_tokens_and_nearly_the_same_of_a_smooth_one() -> None:
    ramp = torch.linspace(0, 1, backbone.SIZE)
    image = (ramp[:, None] + ramp[None, :]).expand(1, 3, -1, -1)
    whole = backbone.Tokens(Patches())(image)
    smaller = backbone.Smaller(Patches(), 13)(image)
    assert smaller.shape == whole.shape
    assert float((smaller - whole).norm() / whole.norm()) < 0.02


def test_a_picture_of_the_whole_size_is_not_changed() -> None:
    image = torch.randn(2, 3, backbone.SIZE, backbone.SIZE)
    torch.testing.assert_close(
        backbone.Smaller(Patches(), backbone.GRID)(image), backbone.Tokens(Patches())(image)
    )


def test_the_decoder_makes_a_heatmap_of_the_patches_alone() -> None:
    decoder = backbone.Decoder().eval()
    tokens = torch.randn(1, 1 + backbone.GRID**2, backbone.WIDTH)
    with torch.no_grad():
        heat = decoder(tokens)
        other = decoder(torch.cat([-tokens[:, :1], tokens[:, 1:]], dim=1))
    assert heat.shape == (1, backbone.SIZE, backbone.SIZE)
    assert 0 <= float(heat.min()) <= float(heat.max()) <= 1
    assert torch.equal(heat, other)
