"""Methods that put several tokens into one, between the attention and the MLP of a block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.model import Counts, Groups, Rows, Stream, attention, ranked, take_apart

# `proportional`: the logits of a key rise by the log of the size of its token, in all later attention.
# `weighted`: an average over the patches at the end counts each token by its size.


# --- ToMe -----------------------------------------------------------------------------------


def tome(
    model: nn.Module, image: Tensor, *, sites: Counts, proportional: bool = True, weighted: bool = True
) -> tuple[Tensor, Groups]:
    """Patches at even places merge into the most similar ones at odd places, until `count` are left.

    Afterwards: protected tokens, those left of the even places, those of the odd places.
    """
    stream = Stream(take_apart(model, image))
    plan, groups = dict(sites), []
    for number, layer in enumerate(stream.parts.layers):
        attended = attention(layer, stream.x, stream.size.log() if proportional else 0.0)
        stream.x = stream.x + attended.branch
        if number in plan:
            merges = len(stream.patches) - plan[number]
            even, odd = alternate(stream)
            assert 0 <= merges <= len(even), "only even places can merge"
            matches = match(attended.k.mean(dim=0), even, odd)
            matches.sort(key=lambda pair: (-pair[0], pair[1]))
            into = {source: target for _, source, target in matches[:merges]}
            merge_alternately(stream, into)
            groups.append(stream.groups)
        stream.mlp(layer)
    return stream.finish(weighted=weighted), groups


def merge_alternately(stream: Stream, into: dict[int, int]) -> None:
    """What is left of the even places stands before the odd ones."""
    even, odd = alternate(stream)
    left = [place for place in even if place not in into]
    prefix = stream.parts.prefix
    merge(stream, into, [*stream.protected[:prefix], *left, *odd, *stream.protected[prefix:]])


def alternate(stream: Stream) -> tuple[list[int], list[int]]:
    """Patches at even and at odd places of the sequence; the class token stands at place 0."""
    even = [place for place in stream.patches if place % 2 == 0]
    odd = [place for place in stream.patches if place % 2 == 1]
    return even, odd


def match(metric: Tensor, sources: list[int], targets: list[int]) -> list[tuple[float, int, int]]:
    """For each source its most similar target: (cosine, source, target). metric: [n, d]."""
    unit = F.normalize(metric, dim=-1)
    matches = []
    for source in sources:
        similarity = {target: float(unit[source] @ unit[target]) for target in targets}
        best = max(targets, key=similarity.__getitem__)  # the first of equals
        matches.append((similarity[best], source, best))
    return matches


def merge(stream: Stream, into: dict[int, int], order: list[int]) -> None:
    """Each source goes into its target, by a mean that counts tokens by size; `order`: of what is left."""
    values, groups, sizes = [], [], []
    for target in order:
        members = [target, *(source for source in into if into[source] == target)]
        size = stream.size[members]
        values.append((size[:, None] * stream.x[members]).sum(dim=0) / size.sum())
        groups.append([row for member in members for row in stream.groups[member]])
        sizes.append(size.sum())
    stream.become(torch.stack(values), groups, torch.stack(sizes))


# --- DiffRate -------------------------------------------------------------------------------


def diffrate(
    model: nn.Module,
    image: Tensor,
    *,
    sites: Sequence[tuple[int, int, int]],
    proportional: bool = True,
    weighted: bool = True,
) -> tuple[Tensor, Groups]:
    """Sites are (block, count, merged): the best `count` by class attention stay, the next `merged` merge.

    Each of these goes into the stayer most similar to it; what comes after them is gone.
    """
    stream = Stream(take_apart(model, image))
    plan, groups = {block: (count, merged) for block, count, merged in sites}, []
    for number, layer in enumerate(stream.parts.layers):
        attended = attention(layer, stream.x, stream.size.log() if proportional else 0.0)
        stream.x = stream.x + attended.branch
        if number in plan:
            count, merged = plan[number]
            order = ranked(attended.weights[:, 0].mean(dim=0), stream.patches)
            matches = match(stream.x, order[count : count + merged], sorted(order[:count]))
            _absorb(stream, order[:count], matches)
            groups.append(stream.groups)
        stream.mlp(layer)
    return stream.finish(weighted=weighted), groups


def _absorb(stream: Stream, kept: list[int], matches: list[tuple[float, int, int]]) -> None:
    """A plain mean of the values, and sizes that count what was merged by how similar it was."""
    values, groups, sizes = [], [], []
    for target in sorted([*stream.protected, *kept]):
        merged = [(similarity, source) for similarity, source, place in matches if place == target]
        members = [target, *(source for _, source in merged)]
        values.append(stream.x[members].mean(dim=0))
        groups.append([row for member in members for row in stream.groups[member]])
        size = stream.size[target]
        for similarity, source in merged:
            size = size + stream.size[source] * similarity
        sizes.append(size)
    stream.become(torch.stack(values), groups, torch.stack(sizes))


# --- ALGM -----------------------------------------------------------------------------------


def algm(
    model: nn.Module,
    image: Tensor,
    *,
    grid: tuple[int, int],
    local: tuple[int, float] | None,
    adaptive: int | None,
    proportional: bool = False,
    weighted: bool = True,
) -> tuple[Tensor, Groups]:
    """`local` (block, tau): windows of 2 x 2 patches that are alike become one token each.

    `adaptive` (block): even places merge into odd ones, as many as are more alike than is usual here.
    Windows leave the tokens in ascending order of their places, pairs as `tome` does.
    """
    stream, groups = Stream(take_apart(model, image)), []
    for number, layer in enumerate(stream.parts.layers):
        attended = attention(layer, stream.x, stream.size.log() if proportional else 0.0)
        stream.x = stream.x + attended.branch
        if local is not None and number == local[0]:
            into = algm_windows(stream, grid, local[1])
            merge(stream, into, [place for place in range(len(stream.x)) if place not in into])
            groups.append(stream.groups)
        if number == adaptive:
            merge_alternately(stream, algm_matches(stream, number))
            groups.append(stream.groups)
        stream.mlp(layer)
    return stream.finish(weighted=weighted), groups


def algm_windows(stream: Stream, grid: tuple[int, int], tau: float) -> dict[int, int]:
    """What goes into the first of its window, where the six pairs of the window are alike in the mean."""
    h, w = grid
    assert len(stream.patches) == h * w, "windows need all patches of the grid"
    into = {}
    for top in range(0, h - 1, 2):
        for left in range(0, w - 1, 2):
            cells = [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]
            places = [stream.parts.prefix + y * w + x for y, x in cells]
            unit = F.normalize(stream.x[places], dim=-1)
            pairs = [float(unit[i] @ unit[j]) for i, j in itertools.combinations(range(4), 2)]
            if sum(pairs) / len(pairs) >= tau:
                into |= dict.fromkeys(places[1:], places[0])
    return into


def algm_matches(stream: Stream, block: int) -> dict[int, int]:
    """What goes where: even places whose best match is above the mean of these by a part of their spread."""
    matches = match(stream.x, *alternate(stream))
    best = torch.tensor([similarity for similarity, _, _ in matches], dtype=torch.float64)
    threshold = best.mean() + best.std(correction=1) / (block + 1)
    return {source: target for similarity, source, target in matches if similarity >= threshold}


# --- POMT -----------------------------------------------------------------------------------


def pomt(model: nn.Module, image: Tensor, *, sites: Counts) -> tuple[Tensor, Rows]:
    """The best patches stay, and one token after them: the plain mean of the others.

    A dense output gives each of the others what became of that token.
    """
    stream = Stream(take_apart(model, image))
    plan, rows = dict(sites), []
    assert len(plan) <= 1, "it prunes once"
    for number, layer in enumerate(stream.parts.layers):
        attended = attention(layer, stream.x)
        stream.x = stream.x + attended.branch
        if number in plan:
            score = pomt_scores(attended.weights, attended.v, stream.patches)
            order = ranked(score, stream.patches)
            rows.append(_pool_the_others(stream, order[: plan[number]], order[plan[number] :]))
        stream.mlp(layer)
    return stream.finish(), rows


def pomt_scores(weights: Tensor, v: Tensor, patches: list[int]) -> Tensor:
    """How much the patches look at each, and how much it says; weights: [h, n, n], v: [h, n, d] -> [n]."""
    strongest = weights.amax(dim=0)[patches][:, patches]  # [N, N]: queries, keys
    seen = strongest.sum(dim=0)
    says = v.amax(dim=0)[patches].sum(dim=-1)
    score = torch.zeros_like(weights[0, 0])
    score[patches] = seen / seen.max() + says.softmax(dim=0)
    return score


def _pool_the_others(stream: Stream, kept: list[int], others: list[int]) -> list[int]:
    """Changes the stream; the original rows that stayed."""
    if not others:
        return stream.rows
    prefix = stream.parts.prefix
    front, back = stream.protected[:prefix], stream.protected[prefix:]
    before = [*front, *sorted(kept)]
    x = torch.cat([stream.x[before], stream.x[others].mean(dim=0)[None], stream.x[back]])
    pooled = [row for place in others for row in stream.groups[place]]
    groups = [*(stream.groups[place] for place in before), pooled, *(stream.groups[place] for place in back)]
    stayed = [stream.groups[place][0] for place in [*before, *back]]
    stream.become(x, groups, stream.x.new_ones(len(x)))
    return stayed
