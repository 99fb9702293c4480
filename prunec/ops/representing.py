"""Who stands for whom: each token that does not go on is represented by one that does.

metric -- similarities -- novelty -- score            score: how unlike the patches earlier in an order
                      '-- nearest -- partner          partner: the patch that each row is most like
metric -- pairs | windows -- score, partner           score: minus the similarity; infinite for targets
index, partner -- assign -- group                     group: [B, T], the place of each row in index
x, group, size -- pool -- x'                          a token that goes on is the mean of its group
x', group -- share -- x                               each token takes what became of its representative
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prunec.ops.selections import topk_mask
from prunec.ops.streams import gather

__all__ = [
    "assign",
    "nearest",
    "novelty",
    "pairs",
    "pool",
    "remembered",
    "share",
    "similarities",
    "sizes",
    "token_keys",
    "windows",
]


def token_keys(key: Tensor) -> Tensor:
    """The keys of an attention as one vector for each token: their mean over heads."""
    return key.mean(dim=1)  # [B, h, T, d] -> [B, T, d]


def pairs(metric: Tensor, prefix: int, suffix: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """For each patch at an even place the most similar one at an odd place: score [B, T], partner [B, T]."""
    unit = normalize(metric, dim=-1)  # [B, T, d]
    tokens = metric.shape[1]
    rows = torch.arange(tokens, device=metric.device)
    if valid is not None:  # a length that is read off a tensor cannot be halved before it is known
        odd = (rows % 2 == 1) & (rows >= prefix) & (rows < tokens - suffix)
        even = (rows % 2 == 0) & (rows >= prefix) & (rows < tokens - suffix)
        alike = (unit @ unit.transpose(1, 2)).masked_fill(~(odd & valid)[:, None], float("-inf"))
        likest, place = alike.max(dim=-1)
        return torch.where(even, -likest, float("inf")), torch.where(even, place, rows)
    first, other = prefix + prefix % 2, prefix + 1 - prefix % 2
    halves = slice(first, tokens - suffix, 2), slice(other, tokens - suffix, 2)
    likest, place = (unit[:, halves[0]] @ unit[:, halves[1]].transpose(1, 2)).max(dim=-1)  # [B, N / 2]
    score = likest.new_full((metric.shape[0], tokens), float("inf"))
    # Repeated, not expanded: Inductor of PyTorch 2.11 would write all images' partners into one row.
    partner, movable = rows.repeat(metric.shape[0], 1), rows[halves[0]]
    return score.index_copy(1, movable, -likest), partner.index_copy(1, movable, other + 2 * place)


def windows(metric: Tensor, height: int, width: int, prefix: int) -> tuple[Tensor, Tensor]:
    """For the other three patches of each window of 2 x 2 its first: score [B, T], partner [B, T].

    The similarity of a window is the mean over its six pairs. Windows cut by the border are not merged.
    """
    rows = torch.arange(height * width, device=metric.device).view(height, width) + prefix
    rows = rows[: height // 2 * 2, : width // 2 * 2].unflatten(1, (-1, 2)).unflatten(0, (-1, 2))
    rows = rows.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # [W, 4]
    quads = normalize(metric, dim=-1)[:, rows]  # [B, W, 4, d]
    alike = quads @ quads.transpose(-2, -1)
    alike = (alike.sum(dim=(-2, -1)) - alike.diagonal(dim1=-2, dim2=-1).sum(dim=-1)) / 12  # [B, W]
    others = rows[:, 1:].flatten()
    score = alike.new_full(metric.shape[:2], float("inf"))
    score = score.index_copy(1, others, -alike.repeat_interleave(3, dim=1))
    partner = torch.arange(metric.shape[1], device=metric.device).repeat(metric.shape[0], 1)
    firsts = rows[:, 0].repeat_interleave(3).expand(metric.shape[0], -1)
    return score, partner.index_copy(1, others, firsts)


def similarities(
    metric: Tensor, centre: tuple[int, int] | None = None, dim: int = 1, valid: Tensor | None = None
) -> Tensor:
    """How alike any two tokens are: 1 less half their squared distance, [B, T, T].

    Distances are between unit vectors, so that it is the cosine. With `centre`, how many protected rows stand
    in front and at the end, the mean patch is taken off, and of lengths the square root is left: a token that
    stands out counts, though not as much as it stands out.
    """
    x = metric.movedim(dim, 1)  # [B, T, C]
    x = normalize(x, dim=-1) if centre is None else _contrasts(x, *centre, valid)
    square = x.square().sum(dim=-1)
    return x @ x.transpose(1, 2) - (square.unsqueeze(1) + square.unsqueeze(2)) / 2 + 1


def _contrasts(x: Tensor, prefix: int, suffix: int, valid: Tensor | None) -> Tensor:
    """What sets each token off from the mean patch: [B, T, C]."""
    counts = _patches(x, prefix, suffix, valid).unsqueeze(-1).to(x.dtype)
    number = counts.sum(dim=1, keepdim=True).clamp_min(1)
    x = x - (x * counts).sum(dim=1, keepdim=True) / number
    return x * torch.rsqrt(x.norm(dim=-1, keepdim=True).clamp_min(1e-6))


def novelty(
    similar: Tensor,
    prefix: int,
    suffix: int,
    valid: Tensor | None = None,
    importance: Tensor | None = None,
    power: float = 1.0,
) -> Tensor:
    """How unlike each patch is to those before it in an order: 1 less the largest similarity; [B, T].

    The order is a fixed one that jumps about the image. A token's place in it depends on how many stand
    before it in the stream, not on how many there are. With the logarithm of its `importance`, that to a
    power multiplies its novelty: what it costs to leave a token out grows with both.
    """
    place = torch.arange(similar.shape[1], device=similar.device) * _JUMP % 2**32
    before = (place.unsqueeze(0) < place.unsqueeze(1)).unsqueeze(0)  # whether a column comes before a row
    counts = _patches(similar, prefix, suffix, valid).unsqueeze(1)
    score = 1 - similar.masked_fill(~(before & counts), float("-inf")).amax(dim=-1)
    return score if importance is None else score * (power * importance).exp()


#: 2 to the 32 over the golden ratio: its multiples, modulo 2 to the 32, are spread evenly however many.
_JUMP = 2654435769


def _patches(x: Tensor, prefix: int, suffix: int, valid: Tensor | None) -> Tensor:
    """Which rows are patches that count: [1, T] or [B, T]."""
    places = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
    inner = (places >= prefix) & (places < x.shape[1] - suffix)
    return inner if valid is None else inner & (valid > 0)


def nearest(
    similar: Tensor, index: Tensor, prefix: int, suffix: int, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """For each token the most similar patch that stays: similarity [B, T], partner [B, T]."""
    stays = stay(index, similar.shape[1]) if kept is None else kept
    there = _patches(similar, prefix, suffix, stays).unsqueeze(1)
    alike, partner = similar.masked_fill(~there, float("-inf")).max(dim=-1)
    return alike, partner


def assign(partner: Tensor, index: Tensor, kept: Tensor | None = None) -> Tensor:
    """The place of each row's group in `index`: its own where it stays, else its partner's."""
    places = torch.arange(index.shape[1], device=index.device).expand(index.shape[0], -1)
    place = torch.zeros_like(partner).scatter(1, index, places)  # [B, T]
    stays = stay(index, partner.shape[1]) if kept is None else kept
    return torch.where(stays, place, place.gather(1, partner))


def stay(index: Tensor, tokens: int) -> Tensor:
    """Which of `tokens` rows are in a selection: [B, n] to [B, T]."""
    nothing = torch.zeros((index.shape[0], tokens), dtype=torch.bool, device=index.device)
    return nothing.scatter(1, index, True)


def remembered(
    score: Tensor,
    index: Tensor,
    count: int,
    prefix: int,
    suffix: int,
    kept: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """1 for rows that stay and for others among the `count` best patches, 0 for dropped ones. No gradient."""
    stays = stay(index, score.shape[1]) if kept is None else kept
    return (stays | topk_mask(score, count, prefix, suffix, valid=valid)).to(score.dtype)


def sizes(
    group: Tensor,
    index: Tensor,
    like: Tensor,
    size: Tensor | None = None,
    alike: Tensor | None = None,
    weight: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """How many tokens each row of a merged stream stands for: [B, n].

    With `alike`, a merged token counts by its similarity to the token that it was merged into.
    """
    counts = like.new_ones(group.shape) if size is None else size
    if alike is not None:
        stays = stay(index, group.shape[1]) if kept is None else kept
        counts = torch.where(stays, counts, counts * alike.clamp_min(0.0))
    if weight is not None:
        counts = counts * weight
    return counts.new_zeros(index.shape).scatter_add(1, group, counts)


def pool(x: Tensor, index: Tensor, group: Tensor, weight: Tensor | None = None, dim: int = 1) -> Tensor:
    """The weighted mean of each group, in the order of `index`."""
    x = x.movedim(dim, 1)  # [B, T, C]
    weight = x.new_ones(group.shape) if weight is None else weight.to(x.dtype)
    total = x.new_zeros((x.shape[0], index.shape[1], x.shape[2]))
    total = total.scatter_add(1, group.unsqueeze(-1).expand_as(x), x * weight.unsqueeze(-1))
    count = weight.new_zeros(index.shape).scatter_add(1, group, weight).clamp_min(1e-12)
    return (total / count.unsqueeze(-1)).movedim(1, dim)


def share(
    x: Tensor, group: Tensor, base: Tensor | None = None, at: Tensor | None = None, dim: int = 1
) -> Tensor:
    """The full stream again, [B, T, C] of [B, n, C]: each token becomes what its representative has become.

    With the stream as it was, `base`, and the rows that went on as they were then, `at`, each token keeps its
    own value and takes the update of its representative.
    """
    if base is None or at is None:
        return gather(x, group, dim)
    return base + gather(x - at, group, dim)
