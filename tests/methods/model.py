"""What the references share: a model taken apart for one image, and the tokens on their way through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.references import attend, heads, plain_layer, timm_embedding

Learned = Mapping[str, Tensor]  # the parameters of a scorer, by name
Counts = Sequence[tuple[int, int]]  # sites: (block, how many patches stay)
Thresholds = Sequence[tuple[int, float]]  # sites: (block, threshold)
Rows = list[list[int]]  # for each site, the original rows that went on, protected ones too, ascending
Groups = list[list[list[int]]]  # for each site and each token after it, the original rows that it stands for

EPSILON = 1e-5  # of every layer norm in a learned part


# --- models ---------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """A timm backbone, a linear head on every patch, and its class map enlarged to the image."""

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.embed_dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.backbone.patch_embed.grid_size
        logits = self.head(self.backbone.forward_features(x)[:, 1:])  # [B, h * w, K]
        logits = logits.transpose(1, 2).reshape(x.shape[0], -1, h, w)
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def paint(logits: Tensor, grid: Sequence[int], image: Tensor) -> Tensor:
    """Logits of the patches [N, K] as a map of the size of the image [K, H, W]."""
    h, w = grid
    coarse = torch.stack([logits[y * w + x] for y in range(h) for x in range(w)], dim=-1).reshape(-1, h, w)
    return F.interpolate(coarse[None], size=image.shape[-2:], mode="bilinear", align_corners=False)[0]


# --- taking apart ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One block; both branches hold their norm in front and their scale behind, and not the residual add."""

    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # [n, C] -> three of [h, n, d]
    project: Callable[[Tensor], Tensor]  # [n, h * d] -> [n, C]
    mlp: Callable[[Tensor], Tensor]  # [n, C] -> [n, C]
    positions: Tensor | None = None  # [T, C], added behind the block: by original row


@dataclass(frozen=True)
class Parts:
    """A model for one image: the tokens that enter block 0, the blocks, and what becomes of the last tokens.

    `head(x, size)` takes the tokens behind the last block, and how much each counts in an average.
    A dense head takes all tokens in their original order.
    """

    tokens: Tensor  # [T, C]
    prefix: int  # protected rows at the front
    suffix: int  # and at the end
    layers: list[Layer]
    head: Callable[[Tensor, Tensor], Tensor]
    dense: bool = False


def take_apart(model: nn.Module, image: Tensor) -> Parts:
    """A timm VisionTransformer, a `Segmenter` on one, or YOLOS of Hugging Face."""
    if isinstance(model, Segmenter):
        return _segmenter(model, image)
    if isinstance(model, transformers.YolosForObjectDetection):
        return _yolos(model, image)
    return _classifier(model, image)


def _classifier(model: nn.Module, image: Tensor) -> Parts:
    x, prefix = timm_embedding(model, image)

    def head(x: Tensor, size: Tensor) -> Tensor:
        x = model.norm(x)
        if model.global_pool == "avg":
            weight = size[prefix:, None]
            pooled = (weight * x[prefix:]).sum(dim=0) / weight.sum()
        else:
            pooled = x[0]
        return model.head(model.fc_norm(pooled))

    return Parts(x, prefix, 0, [_layer(block) for block in model.blocks], head)


def _segmenter(model: Segmenter, image: Tensor) -> Parts:
    x, prefix = timm_embedding(model.backbone, image)

    def head(x: Tensor, _size: Tensor) -> Tensor:
        logits = model.head(model.backbone.norm(x[prefix:]))  # [N, K]
        return paint(logits, model.backbone.patch_embed.grid_size, image)

    return Parts(x, prefix, 0, [_layer(block) for block in model.backbone.blocks], head, dense=True)


def _layer(block: nn.Module) -> Layer:
    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = F.linear(block.norm1(x), block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, dim=-1)
        q, k, v = (heads(part, block.attn.num_heads) for part in parts)
        return q, k, v

    def project(y: Tensor) -> Tensor:
        return block.attn.proj(y) * getattr(block.ls1, "gamma", 1.0)

    return Layer(qkv, project, plain_layer(block).mlp)


def _yolos(model: nn.Module, image: Tensor) -> Parts:
    """Its head gives class logits and boxes, side by side: [detections, classes + 1 + 4]."""
    x = model.vit.embeddings(image[None])[0]
    suffix = model.config.num_detection_tokens
    middle: list[Tensor | None] = [None] * len(model.vit.encoder.layer)
    if model.config.use_mid_position_embeddings:
        tables = model.vit.encoder.interpolation(tuple(image.shape[-2:]))  # [depth - 1, 1, T, C]
        middle = [*(table[0] for table in tables), None]

    def head(x: Tensor, _size: Tensor) -> Tensor:
        x = model.vit.layernorm(x[len(x) - suffix :])
        boxes = model.bbox_predictor(x).sigmoid()
        return torch.cat([model.class_labels_classifier(x), boxes], dim=-1)

    layers = [_yolos_layer(*pair) for pair in zip(model.vit.encoder.layer, middle, strict=True)]
    return Parts(x, 1, suffix, layers, head)


def _yolos_layer(layer: nn.Module, positions: Tensor | None) -> Layer:
    attn = layer.attention.attention

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = layer.layernorm_before(x)
        q, k, v = (heads(part(x), attn.num_attention_heads) for part in (attn.query, attn.key, attn.value))
        return q, k, v

    def mlp(x: Tensor) -> Tensor:
        return layer.output.dense(F.gelu(layer.intermediate.dense(layer.layernorm_after(x))))

    return Layer(qkv, layer.attention.output.dense, mlp, positions)


# --- one block ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attended:
    """What attention gave: its branch of the residual add, and what scorers read."""

    branch: Tensor  # [queries, C]
    weights: Tensor  # [h, queries, n], after the softmax
    q: Tensor  # [h, queries, d]
    k: Tensor  # [h, n, d]
    v: Tensor  # [h, n, d]


def attention(
    layer: Layer, x: Tensor, bias: Tensor | float = 0.0, queries: list[int] | None = None
) -> Attended:
    """Attention of one block; `bias` [n] is added to the logits of each key, `queries` ask (None: all)."""
    q, k, v = layer.qkv(x)
    if queries is not None:
        q = q[:, queries]
    y, weights = attend(q, k, v, bias)
    return Attended(layer.project(y), weights, q, k, v)


def run(layer: Layer, x: Tensor) -> Tensor:
    """A whole block, unchanged."""
    x = x + attention(layer, x).branch
    return x + layer.mlp(x)


# --- tokens ---------------------------------------------------------------------------------


class Stream:
    """The tokens of one image between two blocks, and the original rows that each of them stands for."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.x = parts.tokens  # [n, C]
        self.full = parts.tokens.clone()  # [T, C]: rows that left keep what they were when they left
        self.groups = [[row] for row in range(len(self.x))]
        self.size = self.x.new_ones(len(self.x))  # [n]

    @property
    def patches(self) -> list[int]:
        """Where the tokens stand that may be pruned."""
        return list(range(self.parts.prefix, len(self.x) - self.parts.suffix))

    @property
    def protected(self) -> list[int]:
        """Where the others stand."""
        return [place for place in range(len(self.x)) if place not in self.patches]

    @property
    def rows(self) -> list[int]:
        """The original rows of tokens that each stand for one row."""
        return [row for (row,) in self.groups]

    def keep(self, patches: list[int]) -> None:
        """These patches and the protected tokens go on, in the order in which they stand; others leave."""
        stays = torch.zeros(len(self.x), dtype=torch.bool)
        stays[[*self.protected, *patches]] = True
        groups = [group for group, stay in zip(self.groups, stays.tolist(), strict=True) if stay]
        self.become(self.x[stays], groups, self.size[stays])

    def become(self, x: Tensor, groups: list[list[int]], size: Tensor) -> None:
        """Other tokens take the place of these; rows that are in no group leave with what they are now."""
        self.full = self.whole()
        self.x, self.groups, self.size = x, [sorted(group) for group in groups], size

    def rejoin(self) -> None:
        """All rows, in their original order, with what they were when they left."""
        whole = self.whole()
        self.become(whole, [[row] for row in range(len(whole))], whole.new_ones(len(whole)))

    def run(self, layer: Layer) -> None:
        """A whole block, unchanged, on the tokens that are here."""
        self.x = self.x + attention(layer, self.x).branch
        self.mlp(layer)

    def mlp(self, layer: Layer) -> None:
        """The second half of a block, and whatever is added to each row behind it."""
        self.x = self.x + layer.mlp(self.x)
        if layer.positions is not None:
            self.x = self.x + layer.positions[self.rows]

    def whole(self) -> Tensor:
        """All rows in their original order: each has what its token is, or what it was when it left."""
        full = self.full.clone()
        for value, group in zip(self.x, self.groups, strict=True):
            for row in group:
                full[row] = value
        return full

    def finish(self, *, weighted: bool = False) -> Tensor:
        """What the model returns; `weighted`: an average counts each token by its size."""
        if self.parts.dense:
            return self.parts.head(self.whole(), torch.ones_like(self.full[:, 0]))
        return self.parts.head(self.x, self.size if weighted else torch.ones_like(self.size))


def ranked(score: Tensor, places: list[int]) -> list[int]:
    """These places, highest score first; of equal scores the lower place first. score: [n], of all tokens."""
    return sorted(places, key=lambda place: (-float(score[place]), place))


# --- learned parts --------------------------------------------------------------------------


def linear(x: Tensor, learned: Learned, name: str) -> Tensor:
    return F.linear(x, learned[f"{name}.weight"], learned[f"{name}.bias"])


def layer_norm(x: Tensor, learned: Learned, name: str) -> Tensor:
    weight, bias = learned[f"{name}.weight"], learned[f"{name}.bias"]
    return F.layer_norm(x, (x.shape[-1],), weight, bias, EPSILON)
