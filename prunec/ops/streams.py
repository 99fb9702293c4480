"""The stream: rows are taken out, put back and summed, and operands indexed by token follow them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "compose",
    "fuse",
    "fuse_each",
    "gather",
    "put_first",
    "reconstruct",
    "rows",
    "scatter",
    "take",
    "whole",
]


def whole(x: Tensor) -> Tensor:
    """A mark in the graph: from here on the stream has all its tokens again."""
    return x


# --- gather, fuse, scatter: the stream itself -------------------------------------------------


def gather(x: Tensor, index: Tensor, dim: int = 1) -> Tensor:
    """Rows `index` of a stream, each image its own."""
    return x.gather(dim, spread_over(index, x, dim))  # [B, T, C], [B, n] -> [B, n, C]


def fuse(x: Tensor, index: Tensor, score: Tensor | None, suffix: int, dim: int = 1) -> Tensor:
    """Rows `index` of a stream; the last patch row becomes the sum of dropped tokens, weighted by score.

    Without a score it becomes their mean.
    """
    kept = gather(x, index, dim)
    if index.shape[1] == x.shape[dim]:  # nothing was dropped
        return kept
    place = index.shape[1] - suffix - 1
    others = torch.cat([index[:, :place], index[:, place + 1 :]], dim=1)
    weight = torch.ones_like(x.movedim(dim, 1)[..., 0]) if score is None else score
    weight = weight.scatter(1, others, 0.0).to(x.dtype)  # [B, T], zero where a token goes on by itself
    weight = weight / weight.sum(dim=1, keepdim=True) if score is None else weight
    extra = (weight.unsqueeze(1) @ x.movedim(dim, 1)).movedim(1, dim)  # [B, 1, C]
    return torch.cat([kept.narrow(dim, 0, place), extra, kept.narrow(dim, place + 1, suffix)], dim=dim)


def fuse_each(
    x: Tensor,
    index: Tensor,
    score: Tensor | None,
    kept: Tensor,
    joined: Tensor,
    dim: int = 1,
    valid: Tensor | None = None,
) -> Tensor:
    """The same where images keep different numbers: the row in `joined` but not in `kept` becomes the sum.

    Rows that an earlier selection has dropped (not `valid`) are not in it.
    """
    leaving = ~kept if valid is None else valid & ~kept  # [B, T]
    weight = torch.where(leaving, 1.0 if score is None else score, 0.0).to(x.dtype)
    weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-12) if score is None else weight
    extra = (weight.unsqueeze(1) @ x.movedim(dim, 1)).movedim(1, dim)  # [B, 1, C]
    here = (joined & ~kept).gather(1, index)  # [B, n]
    rows = gather(x, index, dim)
    return torch.where(spread_over(here, rows, dim), extra, rows)


def scatter(base: Tensor, x: Tensor, index: Tensor, dim: int = 1, valid: Tensor | None = None) -> Tensor:
    """The full stream again: `base`, with rows `index` replaced by the pruned stream's `valid` ones."""
    rows = spread_over(index, x, dim)
    if valid is not None:
        x = torch.where(spread_over(valid, x, dim), x, base.gather(dim, rows))
    return base.scatter(dim, rows, x)


def reconstruct(
    base: Tensor,
    x: Tensor,
    index: Tensor,
    ends: tuple[int, int],
    mixture: tuple[int, float],
    dim: int = 1,
    valid: Tensor | None = None,
) -> Tensor:
    """The full stream again, where a token that did not go on is a mixture of kept tokens.

    Args:
        base: the stream before the selection, [B, T, C].
        x: the rows that went on, [B, n, C].
        index: where they were, [B, n].
        ends: how many protected rows there are in front and at the end; they are in no mixture.
        mixture: of how many kept tokens, those most similar in `base`, and how sharply weights fall with
            distance: exp(-sharpness * distance squared) between unit vectors.
        dim: the token axis.
        valid: which of the rows count, [B, n].
    """
    (prefix, suffix), (near, sharpness) = ends, mixture
    unit = torch.nn.functional.normalize(base.movedim(dim, 1), dim=-1)  # [B, T, C]
    kept = slice(prefix, index.shape[1] - suffix)
    alike = unit @ gather(unit, index[:, kept]).transpose(1, 2)  # [B, T, n]
    if valid is not None:
        alike = alike.masked_fill(~valid[:, None, kept], float("-inf"))
    alike, place = alike.topk(min(near, alike.shape[-1]), dim=-1)
    weight = (2 * sharpness * (alike - 1)).softmax(dim=-1)  # distance squared is 2 - 2 cosine
    others = x.movedim(dim, 1)[:, kept]  # [B, n, C]
    share = alike.new_zeros((*alike.shape[:2], others.shape[1])).scatter(2, place, weight.to(alike.dtype))
    mixtures = (share @ others).to(x.dtype)  # under autocast the product is in lower precision
    return scatter(mixtures.movedim(1, dim), x, index, dim, valid)


def rows(x: Tensor, dim: int, start: int, stop: int | None = None) -> Tensor:
    """Neighbouring rows at a constant place, as a view. Negative places count from the end."""
    stop = x.shape[dim] if stop is None else stop
    start, stop = (place + x.shape[dim] if place < 0 else place for place in (start, stop))
    return x.narrow(dim, start, stop - start)


def put_first(base: Tensor, x: Tensor, dim: int = 1) -> Tensor:
    """`scatter` where the first rows went on, the cheapest way back (for the ideal control)."""
    length = x.shape[dim]
    return torch.cat([x, base.narrow(dim, length, base.shape[dim] - length)], dim=dim)


# --- operands indexed by token ----------------------------------------------------------------


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Original rows of a stream that was pruned twice: outer[inner]."""
    return outer.gather(1, inner)  # [B, n1], [B, n2] -> [B, n2]


def take(
    table: Tensor, index: Tensor, dim: int, batch_dim: int = 0, skip_prefix: int = 0, skip_suffix: int = 0
) -> Tensor:
    """Rows of a token-indexed table (rotary, position, bias) for the tokens that are left.

    A table that has no rows for `skip_prefix` protected tokens shifts the index by as many.
    """
    index = index[:, skip_prefix : index.shape[1] - skip_suffix] - skip_prefix
    shape, target = [1] * table.dim(), list(table.shape)
    shape[batch_dim], shape[dim] = index.shape
    target[batch_dim] = index.shape[0]
    table = table.expand(target)
    target[dim] = index.shape[1]
    index = index.T if dim < batch_dim else index
    return table.gather(dim, index.reshape(shape).expand(target))


def spread_over(index: Tensor, x: Tensor, dim: int) -> Tensor:
    """Numbers of rows [B, n] spread over the other dimensions of a stream [B, .., n, .., C]."""
    batch = 1 if dim == 0 else 0
    index = index.T if dim < batch else index
    shape, target = [1] * x.dim(), list(x.shape)
    first, second = sorted((batch, dim))
    shape[first], shape[second] = index.shape
    target[dim] = shape[dim]
    return index.reshape(shape).expand(target)
