"""Packing: the tokens that all images keep as rows of one image, one after the other.

    valid [B, n] -- rows_of -- rows [1, S]     where in the padded stream [B * n] each packed row stands
               '-- slots                      and where in the packed one each padded row stands: [B, n]

    padded [B, n, C] -- unpad -- packed [1, S, C] -- pad -- padded

Operators that work on each row alone run on packed rows unchanged. After `pad`, padding rows are copies of
other rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunec import compat

__all__ = [
    "fixed_rows_of",
    "keep",
    "pad",
    "places",
    "places_among",
    "put",
    "put_among",
    "rows_of",
    "slots",
    "token_numbers",
    "unpad",
]


def rows_of(valid: Tensor, bound: int | None = None) -> Tensor:
    """The places of valid rows among the rows of all images: [B, n] to [1, S]."""
    found = valid.flatten().nonzero()[:, 0].unsqueeze(0)
    total = found.shape[1]
    compat.assume(total >= 2)  # compilers treat a size of one in another way
    compat.assume(total <= valid.numel())
    if bound is not None:
        compat.assume(total <= bound, f"a batch has more than the {bound} {TOO_MANY}")
    return found


#: By these words in its message an error says that a batch is above its bound.
TOO_MANY = "packed rows that it may have"


def fixed_rows_of(valid: Tensor, each: int) -> Tensor:
    """The same where every batch has `each` valid rows for each image on average."""
    order = (~valid).to(torch.uint8).flatten().argsort(stable=True)
    return order[: valid.shape[0] * each].sort().values.unsqueeze(0)


def slots(valid: Tensor) -> Tensor:
    """The place of each padded row among the packed ones; padding points at a row before it: [B, n]."""
    return (valid.flatten().cumsum(0) - 1).clamp_min(0).view_as(valid)


def places(index: Tensor, rows: Tensor, tokens: int) -> Tensor:
    """The places of packed rows in the whole stream [B * T] that `index` [B, n] was chosen from: [1, S]."""
    first = torch.arange(index.shape[0], device=index.device).unsqueeze(1) * tokens
    return (index + first).flatten()[rows]


def places_among(slots: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """The places of packed rows among those that were packed before: [1, S]."""
    return slots.gather(1, index).flatten()[rows]


def token_numbers(index: Tensor, rows: Tensor) -> Tensor:
    """The number of each packed row's token, from `index` [B, n]: [1, S]."""
    return index.flatten()[rows]


def unpad(x: Tensor, places: Tensor, dim: int = 1, batch_dim: int = 0) -> Tensor:
    """Rows of all images, one after the other: [B, T, C] and places in B * T to [1, S, C]."""
    rows = x.movedim((batch_dim, dim), (0, 1)).flatten(0, 1)
    return rows.index_select(0, places[0]).unsqueeze(0).movedim((0, 1), (batch_dim, dim))


def keep(x: Tensor, places: Tensor, dim: int = 1) -> Tensor:
    """Some of the packed rows: [1, S, C] to [1, S', C]."""
    return x.index_select(dim, places[0])


def pad(x: Tensor, slots: Tensor, dim: int = 1, batch_dim: int = 0) -> Tensor:
    """Packed rows as padded ones: [1, S, C] to [B, n, C]."""
    return x.movedim((batch_dim, dim), (0, 1))[0][slots].movedim((0, 1), (batch_dim, dim))


def put(base: Tensor, x: Tensor, places: Tensor, dim: int = 1, batch_dim: int = 0) -> Tensor:
    """The whole stream with packed rows in their places: [B, T, C]."""
    whole = base.movedim((batch_dim, dim), (0, 1))
    rows = x.movedim((batch_dim, dim), (0, 1))[0]
    filled = whole.flatten(0, 1).index_copy(0, places[0], rows)
    return filled.view_as(whole).movedim((0, 1), (batch_dim, dim))


def put_among(base: Tensor, x: Tensor, places: Tensor, dim: int = 1) -> Tensor:
    """Packed rows with fewer packed rows in their places: [1, S, C]."""
    return base.index_copy(dim, places[0], x)
