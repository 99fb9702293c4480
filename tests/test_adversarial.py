"""Models that mislead: each comes out equal to one pruned by hand, or is refused with a reason."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import prunec
from prunec.compiler import Compiled
from prunec.ir.program import ProgramModule
from tests.families import difference
from tests.own_models import (
    HEADS,
    WIDTH,
    Block,
    Fused,
    Model,
    compiled,
    counts,
    file_and_line,
    images,
    mlp,
    ready,
    right,
)
from tests.references import EVIT, NORM, Layer, Pruning, Stream, attend, heads, walk

pytestmark = pytest.mark.usefixtures("recognised_once")

TOLERANCE = 1e-5
POLICIES = pytest.mark.parametrize(("policy", "pruning"), [("evit", EVIT), ("norm", NORM)])


def agree(model: nn.Module, result: Compiled, by_hand: Callable[[Tensor], Tensor], prefix: int = 1) -> None:
    """Right when everything is kept; at its own counts equal to the model pruned by hand, image by image."""
    right(model, result, prefix)
    with torch.no_grad():
        expected = torch.stack([by_hand(image) for image in images()])
        assert difference(ProgramModule(result.pruned)(images()), expected) <= TOLERANCE


def fused(module: Fused, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (heads(part, HEADS) for part in module.qkv(x).chunk(3, dim=-1))
    y, weights = attend(q, k, v)
    return module.proj(y), weights


def plain_layer(block: Block, extra: Tensor | None = None) -> Layer:
    """A block of `Model`; what `extra` has for each row is added to the input of its attention."""

    def attention(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return fused(block.attention, block.norm1(x) + (0 if extra is None else extra[rows]))

    return Layer(attention, lambda x: block.mlp(block.norm2(x)))


def start(model: Model, image: Tensor, prefix: int = 1) -> Stream:
    return Stream(model.embed(image[None])[0], prefix)


def finish(model: Model, stream: Stream) -> Tensor:
    return model.classifier(model.norm(stream.x[0]))


def rest(stream: Stream, layers: Sequence[Layer]) -> Stream:
    return walk(stream, list(layers), replace(NORM, blocks=()))


# --- a context that enters every block --------------------------------------------------------------


class Modulated(nn.Module):
    """adaLN: shift, scale and gate of both branches are computed from a context [B, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.attention, self.mlp = Fused(), mlp()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(context)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Adaptive(Model):
    """The context is read from the image, all tokens or the class token, before the first block."""

    def __init__(self, source: str) -> None:
        super().__init__(Modulated)
        self.source, self.pool = source, nn.Conv2d(3, WIDTH, 8, 8)

    def context(self, image: Tensor, x: Tensor) -> Tensor:
        if self.source == "image":
            return self.pool(image).mean(dim=(2, 3))
        return x.mean(dim=1) if self.source == "tokens" else x[:, 0]

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        context = self.context(image, x)
        for block in self.blocks:
            x = block(x, context)
        return self.classifier(self.norm(x)[:, 0])

    def by_hand(self, image: Tensor, pruning: Pruning) -> Tensor:
        context = self.context(image[None], self.embed(image[None]))[0]
        layers = [modulated_layer(block, context) for block in self.blocks]
        return finish(self, walk(start(self, image), layers, pruning))


def modulated_layer(block: Modulated, context: Tensor) -> Layer:
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(context).chunk(6)

    def attention(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = fused(block.attention, block.norm1(x) * (1 + scale1) + shift1)
        return gate1 * y, weights

    return Layer(attention, lambda x: gate2 * block.mlp(block.norm2(x) * (1 + scale2) + shift2))


@POLICIES
@pytest.mark.parametrize("source", ["image", "tokens", "class"])
def test_a_context_that_modulates_every_block(source: str, policy: str, pruning: Pruning) -> None:
    model = ready(Adaptive(source))
    result = compiled(model, policy)
    assert [block.sequential for block in result.dense.anatomy.blocks] == [True] * 4
    agree(model, result, lambda image: model.by_hand(image, pruning))


class Reminded(Model):
    """Every block sees its tokens with what they were at the start, of each image its own."""

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        first = torch.tanh(x)
        for block in self.blocks:
            x = x + block.attention(block.norm1(x) + first)
            x = x + block.mlp(block.norm2(x))
        return self.classifier(self.norm(x)[:, 0])

    def by_hand(self, image: Tensor, pruning: Pruning) -> Tensor:
        stream = start(self, image)
        layers = [plain_layer(block, torch.tanh(stream.x)) for block in self.blocks]
        return finish(self, walk(stream, layers, pruning))


@POLICIES
def test_a_context_of_each_token_moves_with_it(policy: str, pruning: Pruning) -> None:
    model = ready(Reminded())
    result = compiled(model, policy)
    assert counts(result)["gathered"] == {"evit": 2, "norm": 3}[policy]
    agree(model, result, lambda image: model.by_hand(image, pruning))


# --- class tokens in unusual places -------------------------------------------------------------------


class Middle(Model):
    """A class token between the patches."""

    def embed(self, image: Tensor) -> Tensor:
        x = super().embed(image)
        return torch.cat([x[:, 1:11], x[:, :1], x[:, 11:]], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x)[:, 10])


@POLICIES
def test_a_class_token_in_the_middle_stays_with_the_patches_in_front_of_it(
    policy: str, pruning: Pruning
) -> None:
    model = ready(Middle())
    result = compiled(model, policy)
    found = result.dense.anatomy
    assert found is not None
    assert (found.class_token, found.head) == (10, ("token 10",))
    (note,) = found.notes
    assert note.startswith(
        "row 10 of the stream is read by itself and stands between patches, so all 10 in front of it stay "
        "too: put it in front of all patches (node select"
    )
    assert file_and_line(Middle.forward, "[:, 10]") in note
    assert note in result.pruned.plan.notes

    def by_hand(image: Tensor) -> Tensor:
        layers = [scored_by(plain_layer(block), 10) for block in model.blocks]
        return model.classifier(model.norm(walk(start(model, image, 11), layers, pruning).x[10]))

    agree(model, result, by_hand, prefix=11)


def scored_by(layer: Layer, row: int) -> Layer:
    """The same with the weights of this row in the place of the first one's, which references look at."""

    def attention(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = layer.attention(x, rows)
        return y, torch.cat([weights[:, row : row + 1], weights[:, 1:]], dim=1)

    return Layer(attention, layer.mlp)


def test_a_class_token_that_a_dense_head_leaves_out_scores() -> None:
    model = ready(Model(head=lambda x: x[:, 1:]))
    result = compiled(model, "evit")
    assert (result.dense.anatomy.class_token, result.dense.anatomy.head) == (None, ("tokens",))

    def by_hand(image: Tensor) -> Tensor:
        layers = [plain_layer(block) for block in model.blocks]
        return model.classifier(model.norm(walk(start(model, image), layers, EVIT).whole()))[1:]

    agree(model, result, by_hand)


# --- a long skip ----------------------------------------------------------------------------------


class Skip(Model):
    """What block 0 made comes in again after block 2: added, added by a projection, or in its place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.join = how, nn.Linear(2 * WIDTH, WIDTH)

    def joined(self, x: Tensor, first: Tensor) -> Tensor:
        if self.how == "add":
            return x + first
        y = self.join(torch.cat([x, first], dim=-1))
        return x + y if self.how == "projected" else y

    def forward(self, image: Tensor) -> Tensor:
        first = self.blocks[0](self.embed(image))
        x = self.joined(self.blocks[2](self.blocks[1](first)), first)
        return self.classifier(self.norm(self.blocks[3](x))[:, 0])

    def by_hand(self, image: Tensor, pruning: Pruning) -> Tensor:
        layers = [plain_layer(block) for block in self.blocks]
        first = rest(start(self, image), layers[:1]).x
        stream = walk(start(self, image), layers[:3], pruning)
        stream.x = self.joined(stream.x, first[stream.rows])
        return finish(self, rest(stream, layers[3:]))


@POLICIES
@pytest.mark.parametrize("how", ["add", "projected", "replaced"])
def test_a_long_skip_over_blocks_with_sites(how: str, policy: str, pruning: Pruning) -> None:
    model = ready(Skip(how))
    result = compiled(model, policy)
    assert counts(result)["gathered"] == 1  # what block 0 made
    agree(model, result, lambda image: model.by_hand(image, pruning))


# --- a token drop of the model's own -----------------------------------------------------------------


def best(x: Tensor, count: int = 8) -> Tensor:
    """The class token and the patches of the largest norm; x: [B, T, C]."""
    keep = x[:, 1:].norm(dim=-1).topk(count, dim=1).indices.sort(dim=1).values + 1
    return torch.cat([x[:, :1], x.gather(1, keep[..., None].expand(-1, -1, x.shape[2]))], dim=1)


def every_other(x: Tensor) -> Tensor:
    return torch.cat([x[:, :1], x[:, 1::2]], dim=1)


def first_half(x: Tensor) -> Tensor:
    return x[:, :11]


class Dropping(Model):
    """Drops tokens by itself after block 1."""

    def by_hand(self, image: Tensor, pruning: Pruning, prefix: int = 1) -> Tensor:
        layers = [plain_layer(block) for block in self.blocks]
        stream = walk(start(self, image, prefix), layers[:2], pruning)
        x = stream.x if self.between is best else stream.whole()  # the others read rows of the whole grid
        stream.x = self.between(x[None])[0]
        return finish(self, rest(stream, layers[2:]))


@POLICIES
@pytest.mark.parametrize("drop", [best, every_other])
def test_a_drop_of_the_models_own_ends_the_stream(
    drop: Callable[[Tensor], Tensor], policy: str, pruning: Pruning
) -> None:
    model, pruning = ready(Dropping(between=drop)), replace(pruning, blocks=(1,), keep=0.75)
    result = compiled(model, policy, blocks=(1,), keep=0.75)
    assert counts(result)["region_ends"] == (0 if drop is best else 1)
    agree(model, result, lambda image: model.by_hand(image, pruning))


@pytest.mark.parametrize("drop", [best, every_other])
def test_blocks_past_a_drop_of_the_models_own_are_refused_by_name(drop: Callable[[Tensor], Tensor]) -> None:
    model = ready(Dropping(between=drop))
    found = prunec.anatomy(model, example=images(2))
    assert (found.depth, len(found.unmatched)) == (2, 2)
    assert all("this attention is in another stream" in miss.reason for miss in found.unmatched)
    with pytest.raises(prunec.PolicyError, match=r"block 2 .* 0 to 1"):
        compiled(model, blocks=(1, 2))


def test_a_slice_of_the_models_own_reads_the_rows_that_it_reads_without_sites() -> None:
    model, pruning = ready(Dropping(between=first_half)), replace(NORM, blocks=(1,))
    found = prunec.anatomy(model, example=images(2))
    assert found.suffix == 0
    by_hand = functools.partial(model.by_hand, pruning=pruning, prefix=found.prefix)
    agree(model, compiled(model, blocks=(1,)), by_hand, found.prefix)


# --- fused residuals, post-norm, einsum ------------------------------------------------------------


class Addcmul(nn.Module):
    """LayerScale and the residual add in one operator, either way round."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Fused()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), mlp()
        self.scale1, self.scale2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self.scale1, self.attention(self.norm1(x)))
        return torch.addcmul(x, self.mlp(self.norm2(x)), self.scale2, value=0.5)


def addcmul_layer(block: Addcmul) -> Layer:
    def attention(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = fused(block.attention, block.norm1(x))
        return block.scale1 * y, weights

    return Layer(attention, lambda x: 0.5 * block.scale2 * block.mlp(block.norm2(x)))


@POLICIES
def test_fused_residuals(policy: str, pruning: Pruning) -> None:
    model = ready(Model(Addcmul))
    result = compiled(model, policy)
    assert counts(result)["region_ends"] == 0
    layers = [addcmul_layer(block) for block in model.blocks]
    agree(model, result, lambda image: finish(model, walk(start(model, image), layers, pruning)))


class Einsum(nn.Module):
    """Attention in einsums with weights [3, C, h, d] and [h, d, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(3, WIDTH, HEADS, WIDTH // HEADS))
        self.out = nn.Parameter(torch.zeros(HEADS, WIDTH // HEADS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("btc,schd->sbhtd", x, self.qkv)
        weights = torch.einsum("bhqd,bhkd->bhqk", q, k).mul((WIDTH // HEADS) ** -0.5).softmax(dim=-1)
        return torch.einsum("bhqd,hdc->bqc", torch.einsum("bhqk,bhkd->bhqd", weights, v), self.out)


def einsum_layer(block: Block) -> Layer:
    def attention(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        x = block.norm1(x)
        projected = (x @ weight.flatten(1) for weight in block.attention.qkv)
        y, weights = attend(*(heads(part, HEADS) for part in projected))
        return y @ block.attention.out.flatten(0, 1), weights

    return Layer(attention, lambda x: block.mlp(block.norm2(x)))


@POLICIES
def test_attention_in_einsums(policy: str, pruning: Pruning) -> None:
    model = ready(Model(lambda: Block(Einsum(), mlp())))
    result = compiled(model, policy)
    assert {core.form for block in result.dense.anatomy.blocks for core in block.branches[0].cores} == {
        "spelled"
    }
    layers = [einsum_layer(block) for block in model.blocks]
    agree(model, result, lambda image: finish(model, walk(start(model, image), layers, pruning)))


def multihead(module: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    projected = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    y, weights = attend(*(heads(part, module.num_heads) for part in projected))
    return module.out_proj(y), weights


class Encoder(Model):
    """torch's own nn.TransformerEncoder, post-norm or pre-norm, batch or tokens first."""

    def __init__(self, norm_first: bool, batch_first: bool) -> None:
        super().__init__(nn.Identity)
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 40, activation="gelu", batch_first=batch_first, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 4, nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        x = self.encoder(x)[:, 0] if self.batch_first else self.encoder(x.transpose(0, 1))[0]
        return self.classifier(x)

    def by_hand(self, image: Tensor, pruning: Pruning) -> Tensor:
        stream = start(self, image)
        for index, layer in enumerate(self.encoder.layers):
            here = index in pruning.blocks
            if here and pruning == NORM:
                stream.prune(stream.x.norm(dim=-1), pruning.keep, pruning.fate)
            before = layer.norm_first
            y, weights = multihead(layer.self_attn, layer.norm1(stream.x) if before else stream.x)
            stream.x = stream.x + y if before else layer.norm1(stream.x + y)
            if here and pruning == EVIT:
                stream.prune(weights[:, 0].mean(dim=0), pruning.keep, pruning.fate)
            y = layer.linear2(F.gelu(layer.linear1(layer.norm2(stream.x) if before else stream.x)))
            stream.x = stream.x + y if before else layer.norm2(stream.x + y)
        return self.classifier(self.encoder.norm(stream.x)[0])


@POLICIES
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_encoder_of_torch(norm_first: bool, batch_first: bool, policy: str, pruning: Pruning) -> None:
    model = ready(Encoder(norm_first, batch_first))
    result = compiled(model, policy)
    places = {branch.norm for block in result.dense.anatomy.blocks for branch in block.branches}
    assert places == {"pre" if norm_first else "post"}
    agree(model, result, lambda image: model.by_hand(image, pruning))


@POLICIES
def test_the_vit_of_torchvision_equals_one_pruned_by_hand(policy: str, pruning: Pruning) -> None:
    model = ready(
        VisionTransformer(40, 8, num_layers=4, num_heads=2, hidden_dim=24, mlp_dim=40, num_classes=7)
    )
    layers = [
        Layer(
            lambda x, _rows, block=block: multihead(block.self_attention, block.ln_1(x)),
            lambda x, block=block: block.mlp(block.ln_2(x)),
        )
        for block in model.encoder.layers
    ]

    def by_hand(image: Tensor) -> Tensor:
        patches = model.conv_proj(image[None]).flatten(2)[0].T
        x = torch.cat([model.class_token[0], patches]) + model.encoder.pos_embedding[0]
        return model.heads(model.encoder.ln(walk(Stream(x, prefix=1), layers, pruning).x[0]))

    fast = prunec.transform(model, prunec.Policy.load(policy, keep_per_site=0.5, blocks=(1, 2)))
    batch = torch.randn(3, 3, 40, 40)
    with torch.no_grad():
        expected = torch.stack([by_hand(image) for image in batch])
        assert difference(fast(batch), expected) <= TOLERANCE
        assert difference(expected, model(batch)) > 0.01
