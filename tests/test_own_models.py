"""Models that no library ships, written here: each comes out right, or is refused with the proper reason."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import prunec
from prunec import ops
from tests.families import difference
from tests.own_models import (
    GRID,
    HEADS,
    TOKENS,
    TOLERANCE,
    WIDTH,
    Block,
    Distance,
    Fused,
    Grouped,
    Masked,
    Model,
    Parallel,
    Shuffled,
    Spelled,
    SwiGLU,
    agree,
    compiled,
    counts,
    file_and_line,
    images,
    mlp,
    ready,
    right,
)
from tests.references import EVIT, NORM, Layer, Pruning, attend, heads

pytestmark = pytest.mark.usefixtures("recognised_once")


def spelled_layer(block: Block) -> Layer:
    def attention(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (heads(part, HEADS) for part in block.attention.qkv(block.norm1(x)).chunk(3, dim=-1))
        bias = block.attention.bias[:, rows][:, :, rows]
        if getattr(block.attention, "boolean", False):
            bias = torch.zeros_like(bias).masked_fill(bias <= -0.5, float("-inf"))
        y, weights = attend(q, k, v, bias)
        return block.attention.proj(y), weights

    return Layer(attention, lambda x: block.mlp(block.norm2(x)))


@pytest.mark.parametrize(("policy", "pruning"), [("evit", EVIT), ("norm", NORM)])
def test_attention_spelled_out_with_an_additive_mask(policy: str, pruning: Pruning) -> None:
    model = ready(Model(lambda: Block(Spelled(), mlp())))
    result = compiled(model, policy)
    # The bias of blocks 2 and 3 (and 1, when the site stands before it), along both axes.
    assert counts(result)["gathered"] == {"evit": 2, "norm": 3}[policy]
    right(model, result)
    agree(model, [spelled_layer(block) for block in model.blocks], policy, pruning)


@pytest.mark.parametrize("boolean", [False, True], ids=["additive", "boolean"])
def test_a_mask_of_the_fused_call_moves_with_the_tokens_and_enters_the_score(boolean: bool) -> None:
    model = ready(Model(lambda: Block(Masked(boolean), mlp())))
    right(model, compiled(model, "evit"))
    agree(model, [spelled_layer(block) for block in model.blocks], "evit", EVIT)


def test_a_gated_mlp() -> None:
    model = ready(Model(lambda: Block(Spelled(), SwiGLU())))
    result = compiled(model, "evit")
    assert [block.mlp.activation for block in result.dense.anatomy.blocks if block.mlp] == ["silu gated"] * 4
    right(model, result)
    agree(model, [spelled_layer(block) for block in model.blocks], "evit", EVIT)


def grouped_layer(block: Block) -> Layer:
    def attention(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        x = block.norm1(x)
        q = heads(block.attention.q(x), 4)
        k, v = (heads(part, 2)[[0, 0, 1, 1]] for part in block.attention.kv(x).chunk(2, dim=-1))
        weights = (0.7 * q @ k.mT).softmax(dim=-1)
        return block.attention.proj((weights @ v).transpose(0, 1).flatten(1)), weights

    return Layer(attention, lambda x: block.mlp(block.norm2(x)))


def test_grouped_queries_and_a_scale_of_its_own() -> None:
    model = ready(Model(lambda: Block(Grouped(), mlp())))
    right(model, compiled(model, "evit"))
    agree(model, [grouped_layer(block) for block in model.blocks], "evit", EVIT)


def test_a_key_mask_that_each_image_makes_of_its_pixels_moves_with_its_tokens() -> None:
    class KeyMask(Model):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            seen = torch.cat([torch.ones_like(x[:, :1, 0]) > 0, x[:, 1:, 0] > -0.5], dim=1)[:, None, None]
            for block in self.blocks:
                q, k, v = (
                    block.attention.qkv(block.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
                )
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
                x = x + block.attention.proj(y.transpose(1, 2).flatten(2))
                x = x + block.mlp(block.norm2(x))
            return self.classifier(self.norm(x)[:, 0])

    model = ready(KeyMask())
    right(model, compiled(model))
    right(model, compiled(model, "evit"))


def test_parallel_blocks() -> None:
    model = ready(Model(lambda: Parallel(Fused(), mlp())))
    result = compiled(model)
    assert [block.sequential for block in result.dense.anatomy.blocks] == [False] * 4
    right(model, result)
    with pytest.raises(prunec.PolicyError, match="block 1 computes both from the same state"):
        compiled(model, "evit")


@pytest.mark.parametrize("batch_first", [True, False])
def test_post_norm_blocks_of_torch(batch_first: bool) -> None:
    class PostNorm(Model):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            x = x if batch_first else x.transpose(0, 1)
            for block in self.blocks:
                x = block(x)
            return self.classifier(x[:, 0] if batch_first else x[0])

    model = ready(
        PostNorm(
            lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 40, activation="gelu", batch_first=batch_first)
        )
    )
    result = compiled(model)
    assert result.dense.anatomy.token_dim == (1 if batch_first else 0)
    assert {branch.norm for block in result.dense.anatomy.blocks for branch in block.branches} == {"post"}
    right(model, result)


@pytest.mark.parametrize("policy", ["evit", "norm"])
def test_the_vit_of_torchvision(policy: str) -> None:
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=24, mlp_dim=40, num_classes=7
    )
    pruned = prunec.transform(ready(model), prunec.Policy.load(policy, keep_per_site=0.5, blocks=(1, 2)))
    with torch.no_grad():
        x = torch.randn(2, 3, 32, 32)
        assert difference(pruned(x), model(x)) > 0.01
        expected = [site.leaves for site in pruned.program.plan.sites]
        assert expected == {"evit": [10, 7], "norm": [9, 5]}[policy]
        shuffled = Shuffled(pruned.program.module, 1, 0).run(x)
        assert difference(shuffled, model(x)) <= TOLERANCE


def test_a_bias_computed_from_row_numbers_moves_with_its_tokens() -> None:
    model = ready(Model(lambda: Block(Distance(), mlp())))
    result = compiled(model)
    assert counts(result)["gathered"] == 3
    right(model, result)


@pytest.mark.parametrize("width", [20, 42, 84], ids=["patches", "twice the tokens", "four times the tokens"])
def test_a_width_that_equals_a_number_of_tokens(width: int) -> None:
    # Heads of 10, 21 and 42 numbers in a stream of 21 tokens: sizes alone cannot tell the axes apart.
    model = ready(Model(lambda: Block(Spelled(width=width), mlp(width), width), width=width))
    right(model, compiled(model, "evit"))


def test_a_head_that_reads_one_patch_protects_all_up_to_it() -> None:
    model = ready(Model(head=lambda x: x[:, 5]))
    result = compiled(model)
    assert result.dense.anatomy.head == ("token 5",)
    right(model, result, prefix=6)


def test_a_head_that_reads_the_last_patch_protects_it() -> None:
    model = ready(Model(head=lambda x: x[:, -1]))
    right(model, compiled(model), prefix=1, suffix=1)


def test_a_head_that_pools_patches_and_reads_the_class_token() -> None:
    model = ready(Model(head=lambda x: x[:, 0] + x[:, 1:].mean(dim=1) + x.amax(dim=1)))
    right(model, compiled(model))


def test_a_mean_that_divides_by_the_number_of_tokens_follows_it() -> None:
    means = [lambda x: x.mean(dim=1), lambda x: x.sum(dim=1) / x.shape[1]]
    model, outputs = ready(Model()), []
    for model.read in means:  # the same weights: what ready() leaves of a bias is drawn anew
        module = prunec.transform(model, prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=images(2))
        with torch.no_grad():
            outputs.append(module(images()))
    assert difference(*outputs) <= TOLERANCE


def test_an_output_of_all_tokens_in_a_nest_of_containers() -> None:
    class Nested(Model):
        def forward(self, x: Tensor) -> dict[str, Any]:
            x, taps = self.embed(x), []
            for block in self.blocks:
                x = block(x)
                taps.append(x)
            return {"logits": self.classifier(x[:, 0]), "features": (taps[0], [taps[2], taps[3]])}

    model = ready(Nested())
    result = compiled(model)
    assert len(result.dense.anatomy.taps) == 2  # after blocks 0 and 2; after block 3 it is the head
    right(model, result)
    module = prunec.transform(
        model, prunec.Policy.load("norm", keep_per_site=0.5, blocks=(1, 2)), example=images(2)
    )
    with torch.no_grad():
        found, expected = module(images()), model(images())
    assert list(found) == ["logits", "features"]
    assert type(found["features"][1]) is list
    assert difference(found["features"][0], expected["features"][0]) <= TOLERANCE  # before the first site


class Grid(nn.Module):
    """A depthwise convolution over the patches in their grid, beside the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        token, patches = x[:, :1], x[:, 1:]
        grid = patches.transpose(1, 2).reshape(-1, WIDTH, *GRID)
        return torch.cat([token, patches + self.conv(grid).flatten(2).transpose(1, 2)], dim=1)


class AddedGrid(Grid):
    """The same as one more residual branch."""

    def forward(self, x: Tensor) -> Tensor:
        grid = x[:, 1:].transpose(1, 2).reshape(-1, WIDTH, *GRID)
        return x + F.pad(self.conv(grid).flatten(2).transpose(1, 2), (0, 0, 1, 0))


def test_a_grid_convolution_in_the_middle_ends_the_region() -> None:
    model = ready(Model(between=Grid()))
    result = compiled(model, blocks=(0, 1))
    assert counts(result)["scatters"] == 2  # what the second selection left out, then what the first did
    assert counts(result)["region_ends"] == 1
    right(model, result)


def test_past_a_grid_convolution_that_is_added_the_stream_is_short_again() -> None:
    model = ready(Model(between=AddedGrid()))
    result = compiled(model, blocks=(1, 3))
    assert counts(result)["region_ends"] == 1
    assert (
        sum(node.target is ops.take for node in result.pruned.graph.nodes) == 1
    )  # of the convolution's result
    right(model, result)


def test_attention_after_the_end_of_the_stream_is_reported() -> None:
    found = prunec.anatomy(ready(Model(between=Grid())), example=images(2))
    assert found.depth + len(found.unmatched) == 4


ORDERED = {
    "flip": lambda x: torch.cat([x[:, :1], x[:, 1:].flip(1)], dim=1),
    "roll": lambda x: torch.cat([x[:, :1], x[:, 1:].roll(3, dims=1)], dim=1),
    "cumulative sum": lambda x: x + x.cumsum(dim=1) / 10,
    "neighbours": lambda x: x + F.avg_pool1d(x.transpose(1, 2), 3, stride=1, padding=1).transpose(1, 2),
}


@pytest.mark.parametrize("name", ORDERED)
def test_an_order_that_matters_after_a_site_is_refused(name: str) -> None:
    # Flipped and rolled tokens meet a bias that is indexed by where they stand now.
    model = ready(Model(lambda: Block(Spelled(), mlp()), between=ORDERED[name], head=lambda x: x.mean(dim=1)))
    with pytest.raises(prunec.VerificationError, match="permutation certificate"):
        compiled(model, blocks=(1,))


@pytest.mark.parametrize("name", ["flip", "roll"])
def test_an_order_that_nothing_reads_does_not_matter(name: str) -> None:
    model = ready(Model(between=ORDERED[name], head=lambda x: x.mean(dim=1)))
    right(model, compiled(model, blocks=(1,)))


@pytest.mark.parametrize("name", ["cumulative sum", "neighbours"])
def test_an_order_that_matters_before_the_site_does_not(name: str) -> None:
    model = ready(Model(between=ORDERED[name], head=lambda x: x.mean(dim=1)))
    right(model, compiled(model, blocks=(3,)))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x.transpose(1, 2)).transpose(1, 2)


def test_a_convolution_over_tokens_is_refused_with_its_line() -> None:
    model = ready(Model(between=Convolution()))
    with pytest.raises(prunec.VerificationError, match="permutation certificate") as caught:
        compiled(model)
    assert caught.value.where is not None
    assert file_and_line(Convolution.forward, "self.conv(") in caught.value.where


def test_causal_attention_is_refused() -> None:
    model = ready(Model(lambda: Block(Fused(causal=True), mlp()), head=lambda x: x.mean(dim=1)))
    with pytest.raises(prunec.VerificationError, match="permutation certificate"):
        compiled(model)


def test_a_model_without_attention_is_not_recognised() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.over_tokens = nn.Sequential(nn.Linear(TOKENS, 30), nn.GELU(), nn.Linear(30, TOKENS))

        def forward(self, x: Tensor) -> Tensor:
            return self.over_tokens(x.transpose(1, 2)).transpose(1, 2)

    with pytest.raises(prunec.RecognitionError, match="no residual stream with attention") as caught:
        compiled(ready(Model(lambda: Block(Mixer(), mlp()))))
    assert caught.value.where == "8 residual adds, 0 attention cores, 0 softmaxes in all"
    with pytest.raises(prunec.RecognitionError, match="no residual stream with attention"):
        prunec.anatomy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), example=images(2))


def test_control_flow_on_values_cannot_be_captured_and_its_line_is_named() -> None:
    class Branching(Model):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                x = -x
            return super().forward(x)

    with pytest.raises(prunec.CaptureError, match="could not capture Branching") as caught:
        compiled(ready(Branching()))
    assert caught.value.where is not None
    assert caught.value.where.startswith(file_and_line(Branching.forward, "if x.sum()"))
    assert "if x.sum() > 0:" in caught.value.where


def test_a_batch_that_the_model_fixes_is_named_and_works_at_that_batch() -> None:
    class Fixed(Model):
        def embed(self, x: Tensor) -> Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            return torch.cat([self.token.expand(int(x.shape[0]), -1, -1), x], dim=1) + self.position

    model = ready(Fixed())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = prunec.transform(model, prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=images(2))
    (message,) = [str(warning.message) for warning in caught if "batch" in str(warning.message)]
    assert "the batch is fixed at 2" in message
    assert file_and_line(Fixed.embed, "int(x.shape[0])") in message
    with torch.no_grad():
        pruned, expected = module(images(2)), model(images(2))
        assert pruned.shape == expected.shape
        assert difference(Shuffled(module.program.module, 1, 0).run(images(2)), expected) <= TOLERANCE
    with pytest.raises(prunec.UsageError, match="float32\\[2, 3, 32, 40\\]"):
        module(images(3))
