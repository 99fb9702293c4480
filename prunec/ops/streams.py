"""The stream: rows are taken out, put back and summed, and operands indexed by token follow them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "compose",
    "fuse",
    "gather",
    "put_first",
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


def fuse(
    x: Tensor,
    index: Tensor,
    score: Tensor | None,
    suffix: int,
    dim: int = 1,
    chosen: tuple[Tensor, Tensor] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Rows `index` of a stream, one of them the sum of those that leave, weighted by score.

    Without a score it is their mean. It stands in the place of the last patch row, or, where images keep
    different numbers, in that of the row which is only in the second of the masks `chosen` (rows that stay by
    themselves, and that one too). Rows that an earlier selection has dropped (not `valid`) are not in it.
    """
    rows = gather(x, index, dim)
    if chosen is not None:
        kept, joined = chosen
        leaving = ~kept if valid is None else valid & ~kept  # [B, T]
        here = (joined & ~kept).gather(1, index)  # [B, n]
        return torch.where(spread_over(here, rows, dim), _fused(x, score, leaving, dim), rows)
    if index.shape[1] == x.shape[dim]:  # nothing was dropped
        return rows
    place = index.shape[1] - suffix - 1
    others = torch.cat([index[:, :place], index[:, place + 1 :]], dim=1)
    tokens = torch.ones((index.shape[0], x.shape[dim]), dtype=torch.bool, device=x.device)
    extra = _fused(x, score, tokens.scatter(1, others, False), dim)
    return torch.cat([rows.narrow(dim, 0, place), extra, rows.narrow(dim, place + 1, suffix)], dim=dim)


def _fused(x: Tensor, score: Tensor | None, leaving: Tensor, dim: int) -> Tensor:
    """The rows that leave as one: [B, 1, C]."""
    weight = torch.where(leaving, 1.0 if score is None else score, 0.0).to(x.dtype)  # [B, T]
    weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-12) if score is None else weight
    return (weight.unsqueeze(1) @ x.movedim(dim, 1)).movedim(1, dim)


def scatter(base: Tensor, x: Tensor, index: Tensor, dim: int = 1, valid: Tensor | None = None) -> Tensor:
    """The full stream again: `base`, with rows `index` replaced by the pruned stream's `valid` ones."""
    rows = spread_over(index, x, dim)
    if valid is not None:
        x = torch.where(spread_over(valid, x, dim), x, base.gather(dim, rows))
    return base.scatter(dim, rows, x)


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
