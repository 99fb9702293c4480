"""Windowed models: attention stays as it is, the MLPs see fewer tokens; compared with plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import prunec
from prunec.errors import RecognitionError
from prunec.ir import graph
from prunec.measure import figures
from prunec.verify.certificate import certify
from tests.tiny import counts, pixels, policy, pruned, recognised
from tests.windows import DIM, SIDE, GridBlock, GridViT, WindowAttention, windowed

pytestmark = pytest.mark.usefixtures("recognised_once")


def reference(model: GridViT, image: Tensor, sites: tuple[int, ...], keep: float) -> tuple[Tensor, list[int]]:
    """One image, written out: tokens that are dropped keep their value, and windows go on seeing it."""
    x = model.embed(image[None])
    kept = torch.arange(SIDE * SIDE)
    for index, block in enumerate(model.blocks):
        if index in sites:
            norms = x.flatten(1, 2)[0, kept].norm(dim=-1)
            best = norms.argsort(descending=True, stable=True)[: math.ceil(len(kept) * keep)]
            kept = kept[best.sort().values]
        flat = x.flatten(1, 2)[0]  # [N, C]
        if isinstance(block.attn, WindowAttention):
            attended = block.attn(block.norm1(x)).flatten(1, 2)[0, kept]
        else:  # over the tokens that are left
            attended = super(type(block.attn), block.attn).forward(block.norm1(flat[kept])[None])[0]
        rows = flat[kept] + attended
        rows = rows + block.mlp(block.norm2(rows))
        flat = flat.clone()
        flat[kept] = rows
        x = flat.view(1, SIDE, SIDE, DIM)
    return model.neck(x.permute(0, 3, 1, 2))[0], kept.tolist()


@pytest.mark.parametrize("in_a_row", [False, True])
@pytest.mark.parametrize("sites", [(0,), (1,), (2,), (1, 3), (0, 1, 2, 3)])
def test_the_pruned_model_equals_plain_loops(sites: tuple[int, ...], in_a_row: bool) -> None:
    model = windowed(in_a_row=in_a_row)
    chosen = policy(keep=0.5, blocks=list(sites))
    fast = prunec.transform(model, chosen, example=pixels(side=SIDE))
    images = pixels(3, side=SIDE)
    with torch.no_grad():
        found = fast(images)
        expected = torch.stack([reference(model, image, sites, 0.5)[0] for image in images])
        everything = torch.stack([reference(model, image, (), 0.5)[0] for image in images])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(everything, model(images), rtol=0, atol=1e-5)
    assert not torch.allclose(found, everything, rtol=0, atol=1e-2)


def test_windows_in_mode_masked_where_nobody_asks_how_many_are_kept() -> None:
    model, chosen = windowed(), policy(keep=0.5, blocks=[1, 3])
    padded, masked = (
        prunec.transform(model, chosen, example=pixels(side=SIDE), mode=mode) for mode in ("padded", "masked")
    )
    images = pixels(3, side=SIDE)
    with torch.no_grad():
        torch.testing.assert_close(masked(images), padded(images), rtol=0, atol=1e-5)


def test_what_is_found_is_said() -> None:
    dense = recognised(windowed(), pixels(side=SIDE))
    anatomy = dense.anatomy
    assert anatomy.depth == 4
    assert (anatomy.tokens, anatomy.prefix, anatomy.suffix, anatomy.head) == (36, 0, 0, ("grid",))
    assert anatomy.summary().startswith("4/4 blocks (attention not over tokens in 3), 36 patch tokens")
    assert {miss.reason for miss in anatomy.unmatched} == {
        "attention within windows or on a map of the whole grid, which stays dense"
    }


def test_the_mlps_and_the_global_attention_shrink_and_the_windows_do_not() -> None:
    dense = recognised(windowed(), pixels(side=SIDE))
    half = pruned(dense, blocks=[0])
    assert certify(dense, half).permutation < 1e-5
    ups = [node for node in half.graph.nodes if graph.op(node) == "gelu"]
    assert all(str(graph.shape(node)[1]) != "36" for node in ups)
    windows = [node for node in half.graph.nodes if graph.op(node) == "scaled_dot_product_attention"]
    assert [graph.shape(node)[2] for node in windows if graph.shape(node)[2] == 9] == [9, 9, 9]
    saved = figures.flops(dense) - figures.flops(half)
    # per image: 18 tokens less in four MLPs, and in the global attention's two linears and both its products
    mlps = 4 * 18 * 2 * (DIM * 2 * DIM) * 2
    linears = 18 * (3 * DIM * DIM + DIM * DIM) * 2
    products = 2 * (36 * 36 - 18 * 18) * DIM * 2
    assert saved == mlps + linears + products
    assert counts(half, "repair tokens")["scatters"] >= 1


class NoMlp(nn.Module):
    """Windowed attention alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(DIM), WindowAttention()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


def test_windows_without_an_mlp_gain_nothing_and_are_refused() -> None:
    with pytest.raises(RecognitionError, match="no block of this model gains from fewer tokens") as caught:
        recognised(GridViT(NoMlp(), NoMlp()), pixels(side=SIDE))
    assert "2 blocks" in str(caught.value.where)


def test_one_block_with_an_mlp_is_enough() -> None:
    dense = recognised(GridViT(NoMlp(), GridBlock(WindowAttention())), pixels(side=SIDE))
    assert dense.anatomy.depth == 2
