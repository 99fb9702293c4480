"""Token pruning written by hand in plain PyTorch: one image at a time, boolean masks, nothing of prunec.

Each reference takes an unmodified model and one image, walks the model's layers itself, prunes between them,
and returns what the model would return and the rows that went on at each site.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Pruning:
    """Where tokens are scored, by what, how many stay and what becomes of the others."""

    where: str  # before_block | after_attention
    scorer: str  # cls_attention | norm
    fate: str  # drop | fuse
    blocks: tuple[int, ...] = (1, 2)
    keep: float = 0.5


EVIT = Pruning("after_attention", "cls_attention", "fuse")
NORM = Pruning("before_block", "norm", "drop")


@dataclass(frozen=True)
class Layer:
    """One block: attention(x, rows) gives its branch and the weights [h, T, T]; mlp(x) gives the other one.

    `rows` are the original rows of the tokens in x, for tables that are indexed by token.
    """

    attention: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    mlp: Callable[[Tensor], Tensor]


class Stream:
    """The tokens of one image, with the way back to the rows that they came from."""

    def __init__(self, x: Tensor, prefix: int, suffix: int = 0) -> None:
        self.x, self.prefix, self.suffix = x, prefix, suffix  # x: [T, C]
        self.rows = torch.arange(len(x))
        self.full = x.clone()
        self.kept: list[list[int]] = []

    def prune(self, score: Tensor, keep: float, fate: str) -> None:
        """Keep the best patches in ascending order; drop the others, or fuse them into one after the kept."""
        end = len(self.x) - self.suffix
        best = sorted(range(self.prefix, end), key=lambda row: -float(score[row]))
        count = math.ceil(keep * len(best))
        stays = torch.zeros(len(self.x), dtype=torch.bool)
        stays[: self.prefix] = stays[end:] = True
        stays[best[:count]] = True
        self.kept.append(stays.nonzero().flatten().tolist())
        self.full = self.whole()  # those that go no further keep the value that they have here
        if fate == "fuse":
            extra = sum(score[row] * self.x[row] for row in range(len(self.x)) if not stays[row])
            place = self.prefix + count
            stand_in = self.rows[best[count]][
                None
            ]  # where the extra token returns to: the best of the others
            self.x = _insert(self.x[stays], extra[None], place)
            self.rows = _insert(self.rows[stays], stand_in, place)
        else:
            self.x, self.rows = self.x[stays], self.rows[stays]

    def whole(self) -> Tensor:
        """All rows in their old order."""
        full = self.full.clone()
        full[self.rows] = self.x
        return full


def _insert(rows: Tensor, row: Tensor, place: int) -> Tensor:
    return torch.cat([rows[:place], row, rows[place:]])


def walk(stream: Stream, layers: list[Layer], pruning: Pruning) -> Stream:
    """All blocks, with the sites between them."""
    weights = torch.empty(0)
    for index, layer in enumerate(layers):
        here = index in pruning.blocks
        if here and pruning.where == "before_block":
            stream.prune(_score(stream, weights, pruning), pruning.keep, pruning.fate)
        branch, weights = layer.attention(stream.x, stream.rows)
        stream.x = stream.x + branch
        if here and pruning.where == "after_attention":
            stream.prune(_score(stream, weights, pruning), pruning.keep, pruning.fate)
        stream.x = stream.x + layer.mlp(stream.x)
    return stream


def _score(stream: Stream, weights: Tensor, pruning: Pruning) -> Tensor:
    if pruning.scorer == "norm":
        return stream.x.pow(2).sum(dim=-1).sqrt()
    return weights[:, 0].mean(dim=0)  # what the class token looks at, averaged over heads


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Spelled-out attention; q, k, v: [h, T, d] -> [T, h * d] and the weights [h, T, T]."""
    weights = (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(dim=-1)
    return (weights @ v).transpose(0, 1).flatten(1), weights


def heads(x: Tensor, number: int) -> Tensor:
    """[T, h * d] -> [h, T, d]."""
    return x.unflatten(-1, (number, -1)).transpose(0, 1)


# --- timm: the embedding --------------------------------------------------------------------


def timm_embedding(model: nn.Module, image: Tensor) -> tuple[Tensor, int]:
    """[3, H, W] -> tokens [T, C] and how many stand in front of the patches."""
    patches = model.patch_embed.proj(image[None]).flatten(2)[0].T
    names = ("cls_token", "dist_token", "reg_token")
    found = [getattr(model, name, None) for name in names]
    front = [token[0] for token in found if token is not None]
    prefix = sum(map(len, front))
    position = None if model.pos_embed is None else model.pos_embed[0]
    if position is not None and len(position) == len(patches):
        patches = patches + position
    x = torch.cat([*front, patches])
    if position is not None and len(position) == len(x) and prefix:
        x = x + position
    return x, prefix


# --- timm: plain ViT ------------------------------------------------------------------------


def plain(model: nn.Module, image: Tensor, pruning: Pruning) -> tuple[Tensor, list[list[int]]]:
    """timm VisionTransformer: class token, distillation token, registers, LayerScale, attention pooling."""
    stream = walk(
        Stream(*timm_embedding(model, image)), [plain_layer(block) for block in model.blocks], pruning
    )
    x = model.norm(stream.x)
    if model.attn_pool is not None:
        x = model.attn_pool(x[None])[0]
    elif hasattr(model, "head_dist"):
        return (model.head(x[0]) + model.head_dist(x[1])) / 2, stream.kept
    else:
        x = x[0]
    return model.head(model.fc_norm(x)), stream.kept


def plain_layer(block: nn.Module) -> Layer:
    def attention(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        qkv = F.linear(block.norm1(x), block.attn.qkv.weight, block.attn.qkv.bias)
        q, k, v = (heads(part, block.attn.num_heads) for part in qkv.chunk(3, dim=-1))
        y, weights = attend(q, k, v)
        return block.attn.proj(y) * getattr(block.ls1, "gamma", 1.0), weights

    def mlp(x: Tensor) -> Tensor:
        return block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x)))) * getattr(block.ls2, "gamma", 1.0)

    return Layer(attention, mlp)


# --- timm: rotary position ------------------------------------------------------------------


def rotary(model: nn.Module, image: Tensor, pruning: Pruning) -> tuple[Tensor, list[list[int]]]:
    """timm Eva (EVA-02, DINOv3): a table of sines and cosines without rows for the prefix; mean pooling."""
    x, prefix = timm_embedding(model, image)
    cached = getattr(model.rope, "feat_shape", None) is not None
    table = model.rope.get_embed() if cached else model.rope.get_embed((4, 7))  # [N, 2 * d], sines first
    layers = [_rotary_layer(block, table, prefix) for block in model.blocks]
    stream = walk(Stream(x, prefix), layers, pruning)
    x = model.norm(stream.x)[prefix:].mean(dim=0)
    return model.head(model.fc_norm(x)), stream.kept


def _rotary_layer(block: nn.Module, table: Tensor, prefix: int) -> Layer:
    def turn(x: Tensor, rows: Tensor) -> Tensor:
        sin, cos = table[rows[prefix:] - prefix].chunk(2, dim=-1)
        patches = x[:, prefix:]
        if block.attn.rotate_half:
            first, second = patches.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        else:
            turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
        return torch.cat([x[:, :prefix], patches * cos + turned * sin], dim=1)

    def attention(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        attn = block.attn
        bias = (
            None
            if attn.q_bias is None
            else torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
        )
        qkv = F.linear(block.norm1(x), attn.qkv.weight, bias)
        q, k, v = (heads(part, attn.num_heads) for part in qkv.chunk(3, dim=-1))
        y, weights = attend(turn(q, rows), turn(k, rows), v)
        return attn.proj(y) * _gamma(block.gamma_1), weights

    def mlp(x: Tensor) -> Tensor:
        hidden = block.mlp.fc1(block.norm2(x))
        if hidden.shape[-1] == block.mlp.fc2.in_features:
            hidden = F.gelu(hidden)
        else:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        return block.mlp.fc2(hidden) * _gamma(block.gamma_2)

    return Layer(attention, mlp)


def _gamma(gamma: Tensor | None) -> Tensor | float:
    return 1.0 if gamma is None else gamma


# --- timm: relative position bias -----------------------------------------------------------


def relative(model: nn.Module, image: Tensor, pruning: Pruning) -> tuple[Tensor, list[list[int]]]:
    """timm BEiT: a bias [h, T, T] looked up for each pair of tokens; mean pooling."""
    x, prefix = timm_embedding(model, image)
    stream = walk(Stream(x, prefix), [_relative_layer(block) for block in model.blocks], pruning)
    return model.head(model.fc_norm(stream.x[prefix:].mean(dim=0))), stream.kept


def _relative_layer(block: nn.Module) -> Layer:
    attn = block.attn

    def attention(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
        qkv = F.linear(block.norm1(x), attn.qkv.weight, bias)
        q, k, v = (heads(part, attn.num_heads) for part in qkv.chunk(3, dim=-1))
        pairs = attn.relative_position_index[rows][:, rows]  # [n, n]
        y, weights = attend(q, k, v, attn.relative_position_bias_table[pairs].permute(2, 0, 1))
        return block.gamma_1 * attn.proj(y), weights

    def mlp(x: Tensor) -> Tensor:
        return block.gamma_2 * block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))

    return Layer(attention, mlp)


# --- Hugging Face: dense outputs --------------------------------------------------------------


def hf_vit(model: nn.Module, image: Tensor, pruning: Pruning) -> tuple[Tensor, list[list[int]]]:
    """ViTModel: last_hidden_state [T, C], in the old order."""
    layers = [_hf_layer(layer, "layernorm_before", "layernorm_after") for layer in model.layers]
    return _hf_dense(model, image, layers, pruning)


def hf_dinov2(model: nn.Module, image: Tensor, pruning: Pruning) -> tuple[Tensor, list[list[int]]]:
    """Dinov2Model: last_hidden_state [T, C], in the old order."""
    layers = [_hf_layer(layer, "norm1", "norm2") for layer in model.encoder.layer]
    return _hf_dense(model, image, layers, pruning)


def _hf_dense(
    model: nn.Module, image: Tensor, layers: list[Layer], pruning: Pruning
) -> tuple[Tensor, list[list[int]]]:
    embedding = model.embeddings
    patches = embedding.patch_embeddings.projection(image[None]).flatten(2)[0].T
    x = torch.cat([embedding.cls_token[0], patches]) + embedding.position_embeddings[0]
    stream = walk(Stream(x, prefix=1), layers, pruning)
    return model.layernorm(stream.whole()), stream.kept


def _hf_layer(layer: nn.Module, before: str, after: str) -> Layer:
    attn, number = layer.attention, 3

    def attention(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        x = getattr(layer, before)(x)
        y, weights = attend(*(heads(part(x), number) for part in (attn.q_proj, attn.k_proj, attn.v_proj)))
        return attn.o_proj(y) * _scale(layer, "layer_scale1"), weights

    def mlp(x: Tensor) -> Tensor:
        hidden = F.gelu(layer.mlp.fc1(getattr(layer, after)(x)))
        return layer.mlp.fc2(hidden) * _scale(layer, "layer_scale2")

    return Layer(attention, mlp)


def _scale(layer: nn.Module, name: str) -> Tensor | float:
    return getattr(layer, name).lambda1 if hasattr(layer, name) else 1.0
