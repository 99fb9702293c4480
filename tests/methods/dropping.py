"""Methods that choose tokens by a score: the others are skipped, set aside, or gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.model import (
    Counts,
    Learned,
    Rows,
    Stream,
    Thresholds,
    attention,
    layer_norm,
    linear,
    ranked,
    run,
    take_apart,
)
from tests.references import attend, heads

# --- SViT -----------------------------------------------------------------------------------


def svit(
    model: nn.Module, image: Tensor, *, sites: Thresholds, parameters: Sequence[Learned]
) -> tuple[Tensor, Rows]:
    """Before each site's block a gate reads all tokens; the block runs on those above the threshold only.

    The others keep their value, and the next gate may choose them again.
    """
    parts = take_apart(model, image)
    plan = {block: (value, learned) for (block, value), learned in zip(sites, parameters, strict=True)}
    x, rows = parts.tokens, []
    for number, layer in enumerate(parts.layers):
        stays = torch.ones(len(x), dtype=torch.bool)
        if number in plan:
            threshold, learned = plan[number]
            score = svit_gate(x, learned)
            for row in range(parts.prefix, len(x) - parts.suffix):
                stays[row] = score[row] > threshold
            rows.append(stays.nonzero().flatten().tolist())
        after = x.clone()
        after[stays] = run(layer, x[stays])
        x = after if layer.positions is None else after + layer.positions
    return parts.head(x, torch.ones_like(x[:, 0])), rows


def svit_gate(x: Tensor, learned: Learned) -> Tensor:
    """By how much the logit to keep (0) exceeds the logit to drop (1); x: [n, D] -> [n]."""
    logits = linear(F.gelu(linear(layer_norm(x, learned, "norm"), learned, "up")), learned, "down")
    return logits[:, 0] - logits[:, 1]


# --- Token Cropr ----------------------------------------------------------------------------


def cropr(
    model: nn.Module, image: Tensor, *, sites: Counts, parameters: Sequence[Learned], fusion: bool
) -> tuple[Tensor, Rows]:
    """The patches that the queries like best go on; with `fusion` all others rejoin before the last block."""
    stream = Stream(take_apart(model, image))
    layers = stream.parts.layers
    plan = {block: (count, learned) for (block, count), learned in zip(sites, parameters, strict=True)}
    last = len(layers) - 1
    assert not (fusion and last in plan), "the last block runs on all tokens"
    rows = []
    for number, layer in enumerate(layers):
        if number in plan:
            count, learned = plan[number]
            score = cropr_scores(stream.x, learned["queries"])
            stream.keep(ranked(score, stream.patches)[:count])
            rows.append(stream.rows)
        if fusion and number == last:
            stream.rejoin()
        stream.run(layer)
    return stream.finish(), rows


def cropr_scores(x: Tensor, queries: Tensor) -> Tensor:
    """The products with all queries, summed; x: [n, D], queries: [Nq, D] -> [n]."""
    score = torch.zeros_like(x[:, 0])
    for query in queries:
        score = score + x @ query
    return score


def cropr_scores_folded(x: Tensor, queries: Tensor) -> Tensor:
    """The same with the queries summed first: one product for each token."""
    return x @ queries.sum(dim=0)


# --- BAViT ----------------------------------------------------------------------------------


def bavit(
    model: nn.Module,
    image: Tensor,
    *,
    sites: Thresholds,
    parameters: Sequence[Learned],
    number_of_heads: int,
    prefix: int | None = None,
    suffix: int | None = None,
) -> tuple[Tensor, Rows]:
    """A small network decides in front of block 0 which patches are foreground; the others are gone.

    `prefix` and `suffix` say how many rows are protected at both ends, where these are not the model's own.
    """
    parts = take_apart(model, image)
    parts = replace(
        parts,
        prefix=parts.prefix if prefix is None else prefix,
        suffix=parts.suffix if suffix is None else suffix,
    )
    stream, rows = Stream(parts), []
    for (block, threshold), learned in zip(sites, parameters, strict=True):
        assert block == 0, "it stands in front of the model"
        patches = stream.patches
        tokens = bavit_embedding(image, learned) if "embed.weight" in learned else stream.x[patches]
        score = bavit_scores(tokens, learned, number_of_heads)
        stays = [place for place, value in zip(patches, score, strict=True) if value > threshold]
        stream.keep(stays)
        rows.append(stream.rows)
    for layer in parts.layers:
        stream.run(layer)
    return stream.finish(), rows


def bavit_embedding(image: Tensor, learned: Learned) -> Tensor:
    """The patches of the variant that does not share the model's embedding; [3, H, W] -> [N, D]."""
    patch = learned["embed.weight"].shape[-1]
    grid = F.conv2d(image[None], learned["embed.weight"], learned["embed.bias"], stride=patch)[0]  # [D, h, w]
    return grid.flatten(1).T + learned["position"]


def bavit_scores(x: Tensor, learned: Learned, number_of_heads: int) -> Tensor:
    """By how much the logit of foreground (0) exceeds that of background (1); x: [N, D] -> [N]."""
    number = 0
    while f"layers.{number}.qkv.weight" in learned:
        name = f"layers.{number}"
        qkv = linear(layer_norm(x, learned, f"{name}.norm1"), learned, f"{name}.qkv")
        q, k, v = (heads(part, number_of_heads) for part in qkv.chunk(3, dim=-1))
        x = x + linear(attend(q, k, v)[0], learned, f"{name}.proj")
        hidden = F.gelu(linear(layer_norm(x, learned, f"{name}.norm2"), learned, f"{name}.up"))
        x = x + linear(hidden, learned, f"{name}.down")
        number += 1
    logits = linear(layer_norm(x, learned, "norm"), learned, "head")
    return logits[:, 0] - logits[:, 1]


# --- DynamicViT -----------------------------------------------------------------------------


def dynamicvit(
    model: nn.Module, image: Tensor, *, sites: Counts, parameters: Sequence[Learned]
) -> tuple[Tensor, Rows]:
    """Before each site's block a predictor, which sees the mean of what is left, ranks the patches."""
    stream = Stream(take_apart(model, image))
    plan = {block: (count, learned) for (block, count), learned in zip(sites, parameters, strict=True)}
    rows = []
    for number, layer in enumerate(stream.parts.layers):
        if number in plan:
            count, learned = plan[number]
            score = torch.zeros_like(stream.x[:, 0])
            score[stream.patches] = dynamicvit_predictor(stream.x[stream.patches], learned)
            stream.keep(ranked(score, stream.patches)[:count])
            rows.append(stream.rows)
        stream.run(layer)
    return stream.finish(), rows


def dynamicvit_predictor(patches: Tensor, learned: Learned) -> Tensor:
    """By how much the logit to keep (0) exceeds the logit to drop (1); patches: [n, D] -> [n]."""
    x = F.gelu(linear(layer_norm(patches, learned, "norm"), learned, "embed"))
    half = x.shape[-1] // 2
    everywhere = x[:, half:].mean(dim=0)  # [D - half]
    x = torch.stack([torch.cat([own, everywhere]) for own in x[:, :half]])
    x = F.gelu(linear(x, learned, "first"))
    x = F.gelu(linear(x, learned, "second"))
    logits = linear(x, learned, "last")
    return logits[:, 0] - logits[:, 1]


# --- ATS ------------------------------------------------------------------------------------


def ats(model: nn.Module, image: Tensor, *, sites: Counts, least: int = 8) -> tuple[Tensor, Rows]:
    """Patches are sampled by their significance: at most the count of the site, and at least `least`.

    The others are keys and values of the site's block for the last time, and ask no more.
    """
    stream = Stream(take_apart(model, image))
    plan, rows = dict(sites), []
    for number, layer in enumerate(stream.parts.layers):
        if number not in plan:
            stream.run(layer)
            continue
        attended = attention(layer, stream.x)
        score = ats_scores(attended.weights, attended.v)
        chosen = ats_sample(score, stream.patches, plan[number])
        for place in ranked(score, stream.patches):
            if len(chosen) < least and place not in chosen:
                chosen.append(place)
        asking = sorted([*stream.protected, *chosen])
        branch = attention(layer, stream.x, queries=asking).branch
        stream.keep(chosen)
        rows.append(stream.rows)
        stream.x = stream.x + branch
        stream.mlp(layer)
    return stream.finish(), rows


def ats_scores(weights: Tensor, v: Tensor) -> Tensor:
    """The class token's attention times the length of the value; weights: [h, n, n], v: [h, n, d] -> [n]."""
    length = v.transpose(0, 1).flatten(1).pow(2).sum(dim=-1).sqrt()  # over all heads
    return weights[:, 0].sum(dim=0) * length


def ats_sample(score: Tensor, places: list[int], count: int) -> list[int]:
    """Where `count` evenly spaced points fall on the cumulative score of the patches; each place once."""
    total = sum(float(score[place]) for place in places)
    order = sorted(places, key=lambda place: (float(score[place]), place))
    cumulative, reached = [], 0.0
    for place in order:
        reached += float(score[place]) / total
        cumulative.append(reached)
    chosen: list[int] = []
    for k in range(1, count + 1):
        point = (2 * k - 1) / (2 * count)
        distance = [abs(value - point) for value in cumulative]
        nearest = order[distance.index(min(distance))]
        if nearest not in chosen:
            chosen.append(nearest)
    return chosen


# --- representation shift -------------------------------------------------------------------


def representation_shift(model: nn.Module, image: Tensor, *, sites: Counts) -> tuple[Tensor, Rows]:
    """The patches that the MLP of the block before changed most go on."""
    stream = Stream(take_apart(model, image))
    plan, rows = dict(sites), []
    shift = torch.empty(0)
    for number, layer in enumerate(stream.parts.layers):
        if number in plan:
            assert number > 0, "there is no block before the first"
            stream.keep(ranked(shift, stream.patches)[: plan[number]])
            rows.append(stream.rows)
        stream.x = stream.x + attention(layer, stream.x).branch
        shift = layer.mlp(stream.x).pow(2).sum(dim=-1).sqrt()  # [n]
        stream.mlp(layer)
    return stream.finish(), rows
