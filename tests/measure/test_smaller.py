"""The control that sees a smaller picture: what takes one, at which size, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from prunec.compiler import compile_source
from prunec.frontend.sources import Source, from_module
from prunec.measure import figures
from prunec.measure.smaller import Layout, NoSmaller, Smaller, grid_of, scaled, smaller_picture
from tests import tiny

pytestmark = pytest.mark.usefixtures("recognised_once")


def tiny_timm(**choices: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 7}
    return timm.models.VisionTransformer(**{**sizes, **choices}).eval()


def tiny_hugging_face() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=64,
        patch_size=8,
    )  # fmt: skip
    return transformers.ViTModel(config).eval()


def control(source: Source, share: float = 0.5) -> tuple[Smaller | NoSmaller, int]:
    dense = compile_source(source, tiny.policy()).dense
    image = torch.randn(1, *figures.pixels_of(dense).shape[1:])
    count = figures.flops(dense)
    sizes = figures.output_sizes(dense)
    return smaller_picture(source, dense.anatomy, sizes, image, (count, round(share * count))), count


@pytest.mark.parametrize("make", [tiny_timm, tiny_hugging_face])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_size_is_that_of_the_nearest_flops(make: Any, share: float) -> None:
    found, _ = control(from_module(make(), torch.randn(2, 3, 64, 64)), share)
    assert isinstance(found, Smaller)
    assert found.share == pytest.approx(share, abs=0.1)
    assert found.size == (8 * found.grid[0], 8 * found.grid[1])
    assert found.grid[0] == found.grid[1] < 8
    assert f"{found.size[0]} x {found.size[1]} pixels" in str(found)


def test_a_model_of_timm_is_resized_as_a_copy() -> None:
    model = tiny_timm(num_classes=0, global_pool="")
    table = model.pos_embed.clone()
    found, _ = control(from_module(model, torch.randn(2, 3, 64, 64)))
    assert isinstance(found, Smaller)
    assert torch.equal(model.pos_embed, table)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = found(images)
        few = found.run(scaled(images, found.size))
    assert tokens.shape == (2, 65, 16)
    assert few.shape[1] == 1 + found.grid[0] * found.grid[1]
    torch.testing.assert_close(tokens[:, 0], few[:, 0])
    corner = few[:, 1]  # what is scaled up keeps its corners
    torch.testing.assert_close(tokens[:, 1], corner)


def test_outputs_of_transformers_come_back_by_name() -> None:
    found, _ = control(from_module(tiny_hugging_face()))
    assert isinstance(found, Smaller)
    with torch.no_grad():
        output = found(torch.randn(2, 3, 64, 64))
    assert output.last_hidden_state.shape == (2, 65, 16)
    assert output.pooler_output.shape == (2, 16)


@pytest.mark.parametrize(
    ("rows", "back"),
    [
        ((2, 2, 2), (4, 4, 2)),  # channels last
        ((5, 2, 2), (5, 4, 4)),
        ((2, 2), (4, 4)),
        ((7,), (7,)),
    ],
)
def test_what_is_scaled_back(rows: tuple[int, ...], back: tuple[int, ...]) -> None:
    layout = Layout(prefix=1, suffix=0, grid=(4, 4), outputs=(back,))
    found = Smaller(lambda _: torch.ones(3, *rows), (8, 8), (2, 2), 0.5, layout)
    assert found(torch.zeros(3, 3, 16, 16)).shape == (3, *back)


def test_protected_tokens_at_both_ends_stay_as_they_are() -> None:
    layout = Layout(prefix=1, suffix=2, grid=(4, 4), outputs=((19, 1),))
    few = torch.arange(7.0).view(1, 7, 1)
    found = Smaller(lambda _: few, (8, 8), (2, 2), 0.5, layout)(torch.zeros(1, 3, 16, 16)).flatten()
    assert found[[0, -2, -1]].tolist() == [0, 5, 6]
    assert found[[1, 4, 13, 16]].tolist() == [1, 2, 3, 4]


class Refusing(nn.Module):
    """Takes the size that it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny.ViT()

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        raise ValueError(f"no {img_size}. Never")

    def forward(self, pixels: Tensor) -> Tensor:
        return self.body(pixels)


def test_why_there_is_none() -> None:
    own, _ = control(from_module(tiny.ViT().eval(), tiny.pixels()))
    assert "nothing says" in str(own)
    refusing, _ = control(from_module(Refusing().eval(), tiny.pixels()))
    assert "does not take a smaller picture: no (" in str(refusing)
    assert "Never" not in str(refusing)
    as_many, _ = control(from_module(tiny_timm(), torch.randn(2, 3, 64, 64)), share=1.0)
    assert "as many FLOPs" in str(as_many)
    assert all(isinstance(each, NoSmaller) for each in (own, refusing, as_many))


class Unlike(Refusing):
    """Gives an output of no size that compares."""

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        self.forward = lambda pixels: torch.zeros(len(pixels), 5, 5, 5) @ torch.zeros(5, 5)


def test_outputs_that_do_not_compare_are_a_reason() -> None:
    found, _ = control(from_module(Unlike().eval(), tiny.pixels()))
    assert "[5, 5, 5]" in str(found)


def test_patches_that_are_no_grid() -> None:
    anatomy = compile_source(from_module(tiny.ViT().eval(), tiny.pixels()), tiny.policy()).dense.anatomy
    assert grid_of(anatomy, (20, 20)) == (5, 5)
    assert grid_of(anatomy, (20, 10)) is None
    assert grid_of(anatomy, (21, 21)) is None
