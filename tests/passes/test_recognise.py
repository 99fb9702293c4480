from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.errors import RecognitionError
from prunec.ir import graph
from prunec.passes.recognise import recognise
from prunec.structure import Anatomy
from tests.tiny import Attention, Block, Mlp, ViT, captured, counts, pixels, recognised


def anatomy(block: Callable[[], nn.Module] = Block, model: type[ViT] = ViT) -> Anatomy:
    found = recognised(model(block)).anatomy
    assert found is not None
    return found


def kinds(found: Anatomy) -> list[list[str]]:
    return [[branch.kind for branch in block.branches] for block in found.blocks]


def activations(found: Anatomy) -> list[list[str | None]]:
    return [[branch.activation for branch in block.branches] for block in found.blocks]


# --- attention --------------------------------------------------------------------------------


def test_the_parts_of_a_plain_block() -> None:
    program = recognised(ViT())
    found = program.anatomy
    assert found is not None
    assert counts(program, "recognise") == {"blocks": 2, "tokens": 26, "protected": 1}
    assert kinds(found) == [["attention", "mlp"]] * 2
    assert [block.path for block in found.blocks] == ["blocks.0", "blocks.1"]
    assert all(block.sequential for block in found.blocks)
    assert {branch.norm for block in found.blocks for branch in block.branches} == {"pre"}
    assert found.unmatched == ()
    assert found.pixels == "pixels"
    chain = [(branch.state, branch.add) for block in found.blocks for branch in block.branches]
    assert found.states == (chain[0][0], *(add for _, add in chain))
    assert [state for state, _ in chain[1:]] == [add for _, add in chain[:-1]]


def test_fused_attention_names_its_operands() -> None:
    program = recognised(ViT())
    nodes = graph.by_name(program.graph)
    for block in program.anatomy.blocks:
        (core,) = block.attention.cores
        assert core.form == "fused"
        assert [str(arg) for arg in nodes[core.node].args[:3]] == [core.query, core.key, core.value]
        assert (core.mask, core.scale) == (None, None)


class Masked(Attention):
    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        bias = query[:, :, :1, :1] * torch.ones(26, 26)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.1)
        return self.proj(out.transpose(1, 2).flatten(2))


def test_fused_attention_names_its_mask_and_scale() -> None:
    (core,) = anatomy(lambda: Block(Masked)).blocks[0].attention.cores
    assert core.scale == 0.1
    assert core.mask is not None
    assert core.mask.startswith("mul")


def test_attention_that_is_spelled_out_is_found_too() -> None:
    program = recognised(ViT(lambda: Block(lambda: Attention(form="spelled"))))
    nodes = graph.by_name(program.graph)
    assert kinds(program.anatomy) == [["attention", "mlp"]] * 2
    for block in program.anatomy.blocks:
        (core,) = block.attention.cores
        assert core.form == "spelled"
        assert graph.op(nodes[core.node]) == "softmax"
        assert tuple(graph.shape(nodes[core.query]))[1:] == (2, 26, 8)
        assert tuple(graph.shape(nodes[core.key]))[1:] == (2, 8, 26)
        assert tuple(graph.shape(nodes[core.value]))[1:] == (2, 26, 8)


class OverChannels(Attention):
    """Cross-covariance attention: the softmax runs over channels."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        query, key, value = self.qkv(x).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 4, 1).unbind(0)
        weights = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT).softmax(dim=-1)
        return self.proj((weights @ value).permute(0, 3, 1, 2).reshape(b, t, c))


def test_a_softmax_over_channels_is_not_taken_for_attention_over_tokens() -> None:
    found = anatomy(lambda: Block(OverChannels))
    assert [miss.reason for miss in found.unmatched] == ["its softmax does not run over the token axis"] * 2
    assert found.summary().startswith("2/2 blocks (attention not over tokens in 2)")


def test_a_miss_carries_the_node_and_the_line_of_the_model() -> None:
    first, second = anatomy(lambda: Block(OverChannels)).unmatched
    assert not first
    assert (first.node, second.node) == ("softmax", "softmax_1")
    lines, start = inspect.getsourcelines(OverChannels)
    line = start + next(offset for offset, text in enumerate(lines) if "softmax(dim=-1)" in text)
    assert first.place.startswith(
        f"node softmax in blocks.0.attn, {__file__}:{line}  weights = (F.normalize("
    )
    assert str(first) == f"{first.reason} ({first.place})"


class SoftmaxMlp(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).softmax(dim=-1))


def test_a_softmax_without_products_is_no_attention() -> None:
    assert kinds(anatomy(lambda: Block(mlp=SoftmaxMlp))) == [["attention", "other"]] * 2


class OverTokens(nn.Module):
    """An MLP over the token axis, as in MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(26, 20), nn.Linear(20, 26)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x.mT))).mT


@pytest.mark.parametrize("attention", [OverTokens, SoftmaxMlp])
def test_a_model_without_attention_is_refused_with_what_was_there(attention: type[nn.Module]) -> None:
    with pytest.raises(RecognitionError, match="no residual stream with attention was found") as caught:
        anatomy(lambda: Block(attention))
    softmaxes = 2 if attention is SoftmaxMlp else 0
    assert caught.value.where == f"4 residual adds, 0 attention cores, {softmaxes} softmaxes in all"
    assert caught.value.remedy is not None


class NoResidual(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(self.attn(self.norm1(x))))


def test_attention_without_a_residual_stream_is_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(RecognitionError) as caught:
        anatomy(NoResidual)
    assert caught.value.where is not None
    assert caught.value.where.startswith(
        "0 residual adds, 2 attention cores, 0 softmaxes in all; node scaled_dot"
    )
    assert f"{Path(__file__).with_name('tiny.py').name}" in caught.value.where


def test_a_model_without_an_image_is_refused() -> None:
    with pytest.raises(RecognitionError, match="the model takes no image tensor"):
        recognised(nn.Linear(4, 4), torch.randn(2, 4))


def test_the_image_is_the_largest_input() -> None:
    class Two(ViT):
        def forward(self, mask: Tensor, image: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(image) + mask.mean(dim=(1, 2))[:, None]

    program = captured(Two(), torch.randn(2, 9, 9), pixels())
    assert recognised(Two(), torch.randn(2, 9, 9), pixels()).anatomy.pixels == "image"
    assert program.interface.parameters == ("mask", "image")


# --- the MLP ----------------------------------------------------------------------------------


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class SwiGLUInOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 48), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * x)


class QuickGELU(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x * torch.sigmoid(1.702 * x))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv1d(16, 32, 1), nn.Conv1d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x.mT))).mT


@pytest.mark.parametrize(
    ("mlp", "activation"),
    [
        (Mlp, "gelu"),
        (SwiGLU, "silu gated"),
        (SwiGLUInOne, "silu gated"),
        (QuickGELU, "sigmoid gated"),
        (Convolutions, "relu"),
    ],
)
def test_an_mlp_goes_linear_activation_linear(mlp: type[nn.Module], activation: str) -> None:
    found = anatomy(lambda: Block(mlp=mlp))
    assert kinds(found) == [["attention", "mlp"]] * 2
    assert activations(found) == [[None, activation]] * 2


class NoActivation(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


class NothingBefore(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(torch.cat([x, x], dim=-1)))


class NothingAfter(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.up(x))[..., :16]


@pytest.mark.parametrize("mlp", [NoActivation, NothingBefore, NothingAfter])
def test_without_one_of_the_three_it_is_no_mlp(mlp: type[nn.Module]) -> None:
    found = anatomy(lambda: Block(mlp=mlp))
    assert kinds(found) == [["attention", "other"]] * 2
    assert activations(found) == [[None, None]] * 2


class Gated(Attention):
    """A sigmoid gate on the output of the attention."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.gate, self.last = nn.Linear(16, 16), last

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.proj(out) * gate if self.last else self.proj(out * gate)


class Projected(Attention):
    """A non-linear projection in front of the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.gelu(self.first(x)))


@pytest.mark.parametrize("attention", [lambda: Gated(True), lambda: Gated(False), Projected])
def test_an_activation_that_serves_the_attention_is_no_mlp(attention: Callable[[], nn.Module]) -> None:
    found = anatomy(lambda: Block(attention))
    assert kinds(found) == [["attention", "mlp"]] * 2
    assert activations(found) == [[None, "gelu"]] * 2
    assert all(block.sequential for block in found.blocks)


class Chained(Block):
    """An MLP behind the attention, in one branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.attn(self.norm1(x)))


def test_an_mlp_behind_the_attention_stands_not_beside_it() -> None:
    found = anatomy(Chained)
    assert kinds(found) == [["attention"]] * 2
    assert not any(block.sequential for block in found.blocks)


# --- how blocks are wired ---------------------------------------------------------------------


class SideBySide(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        return x + self.attn(y) + self.mlp(y)


class SummedFirst(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        return x + (self.attn(y) + self.mlp(y))


class OneProjection(Block):
    """Attention and MLP share the last linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(16 + 32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        return x + self.both(torch.cat([self.attn(y), F.gelu(self.mlp.up(y))], dim=-1))


@pytest.mark.parametrize(
    ("block", "expected"),
    [(SideBySide, ["attention", "mlp"]), (SummedFirst, ["parallel"]), (OneProjection, ["parallel"])],
)
def test_parallel_blocks(block: type[Block], expected: list[str]) -> None:
    found = anatomy(block)
    assert kinds(found) == [expected] * 2
    assert not any(block.sequential for block in found.blocks)
    assert all(block.mlp is not None for block in found.blocks)


class TwoAttentions(Block):
    def __init__(self) -> None:
        super().__init__()
        self.other = Attention()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) + self.other(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def test_attentions_side_by_side_are_one_block() -> None:
    assert kinds(anatomy(TwoAttentions)) == [["attention", "attention", "mlp"]] * 2


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class NormOfBranch(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class NoNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class BranchFirst(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x)) + x
        return self.mlp(self.norm2(x)) + x


@pytest.mark.parametrize(
    ("block", "norm"),
    [(Block, "pre"), (PostNorm, "post"), (NormOfBranch, "post"), (NoNorm, "none"), (BranchFirst, "pre")],
)
def test_where_the_norm_stands(block: type[Block], norm: str) -> None:
    found = anatomy(block)
    assert kinds(found) == [["attention", "mlp"]] * 2
    assert {branch.norm for branch in found.blocks[0].branches} == {
        norm
    }  # after the last comes the head's norm
    assert all(block.sequential for block in found.blocks)


class Scaled(Block):
    def __init__(self, attention: bool = True, mlp: bool = True) -> None:
        super().__init__()
        self.scale1 = nn.Parameter(torch.rand(16)) if attention else 2.0
        self.scale2 = nn.Parameter(torch.rand(16)) if mlp else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attn(self.norm1(x))
        y = self.mlp(self.norm2(x))
        return x + (y if self.scale2 is None else F.dropout(y * self.scale2, 0.1, self.training))


@pytest.mark.parametrize(("attention", "mlp"), [(True, True), (True, False), (False, True)])
def test_layer_scale_is_a_product_with_a_learned_vector(attention: bool, mlp: bool) -> None:
    found = anatomy(lambda: Scaled(attention, mlp))
    assert [[branch.layer_scale for branch in block.branches] for block in found.blocks] == [
        [attention, mlp]
    ] * 2


class LongSkip(ViT):
    """A skip over both blocks."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        x = x + self.blocks(x)
        return self.head(self.norm(x)[:, 0])


class SkipOverTwo(ViT):
    """The first state comes in again, concatenated and projected, as in U-shaped transformers."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__(block, depth=3)
        self.join = nn.Linear(32, 16)

    def forward(self, pixels: Tensor) -> Tensor:
        first = self.blocks[0](self.embed(pixels))
        x = self.blocks[1](first)
        x = x + self.join(torch.cat([x, first], dim=-1))
        return self.head(self.norm(self.blocks[2](x))[:, 0])


def test_a_skip_over_blocks_is_no_block() -> None:
    assert kinds(anatomy(Block, LongSkip)) == [["attention", "mlp"]] * 2
    assert anatomy(Block, LongSkip).unmatched == ()


def test_a_skip_that_comes_in_by_a_projection_breaks_no_chain() -> None:
    found = anatomy(Block, SkipOverTwo)
    assert [part[0] for part in kinds(found)] == ["attention"] * 3
    assert found.unmatched == ()


class InnerAdd(Attention):
    """`x + f(x)` inside the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.tanh(self.extra(x)))


class BiasAdd(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(26, 16))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.bias) + 1.0


@pytest.mark.parametrize("attention", [InnerAdd, BiasAdd])
def test_an_add_inside_a_branch_is_no_block(attention: type[nn.Module]) -> None:
    found = anatomy(lambda: Block(attention))
    assert kinds(found) == [["attention", "mlp"]] * 2
    assert len(found.states) == 5


class Aside(ViT):
    """An attention that belongs to no block."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__(block)
        self.aside = Attention()

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks[0](self.embed(pixels))
        weight = self.aside(x).mean()
        return self.head(self.norm(self.blocks[1](x))[:, 0]) * weight


def test_an_attention_beside_the_stream_is_reported() -> None:
    found = anatomy(Block, Aside)
    assert found.depth == 2
    assert [miss.reason for miss in found.unmatched] == [
        "this attention is in no residual branch of the token stream"
    ]


def test_names_of_nodes_do_not_matter() -> None:
    program = recognised(ViT())
    anonymous = graph.copy(program.module)
    for number, node in enumerate(anonymous.graph.nodes):
        node._rename(f"v{number:03}")
    found, expected = recognise(anonymous), program.anatomy
    assert kinds(found) == kinds(expected)
    assert (found.tokens, found.prefix, found.head) == (expected.tokens, expected.prefix, expected.head)


class ScaledSkip(Block):
    """x * scale + f(x), as MetaFormers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(2, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale[0] + self.attn(self.norm1(x))
        return x * self.scale[1] + self.mlp(self.norm2(x))


def test_a_skip_scaled_by_a_learned_vector_is_a_residual_add() -> None:
    found = anatomy(ScaledSkip)
    assert kinds(found) == [["attention", "mlp"]] * 2
    assert found.unmatched == ()


class GatedSkip(Block):
    """x * g(x) + f(x): the skip depends on the image, so this is no residual add."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * x.sigmoid() + self.attn(self.norm1(x))
        return x * x.sigmoid() + self.mlp(self.norm2(x))


def test_a_skip_scaled_by_the_image_is_not() -> None:
    with pytest.raises(RecognitionError, match="no residual stream with attention"):
        anatomy(GatedSkip)


class QueryPooling(Attention):
    """Attention that adds its own queries to what it attends to, as MViTv2's does."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        query, key, value = self.qkv(x).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value) + query
        return self.proj(out.transpose(1, 2).reshape(b, t, c))


def test_an_add_inside_the_attention_is_no_stream_of_its_own() -> None:
    found = anatomy(lambda: Block(QueryPooling))
    assert kinds(found) == [["attention", "mlp"]] * 2
    assert found.unmatched == ()


class Bottleneck(ViT):
    """A long skip around a stream of another width, as a U-Net has it around its middle."""

    def __init__(self) -> None:
        super().__init__(prefix=0)
        self.into, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        x = x + self.out(self.blocks(self.into(x)))
        return self.head(self.norm(x).mean(dim=1))


def test_a_stream_within_a_long_skip_is_found() -> None:
    found = recognised(Bottleneck()).anatomy
    assert found is not None
    assert kinds(found) == [["attention", "mlp"]] * 2
