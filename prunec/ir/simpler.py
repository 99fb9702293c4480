"""Operators by simpler ones, for engines that lack them, are slow at them, or get them wrong.

    sort, argsort, topk    by ranks: how many are larger, and of equal ones how many stand before
    gather                 rows of one long table, `index_select`
    scatter_add            a product with ones where the groups are

Each computes what the operator does, equal values in the order of a stable sort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def order_by_rank(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Sorted values and their places: what `torch.sort(stable=True)` gives, by comparing all with all."""
    dim = dim % x.dim()
    line = x.movedim(dim, -1)  # [.., n]
    one, other = line.unsqueeze(-1), line.unsqueeze(-2)
    places = torch.arange(line.shape[-1], device=x.device)
    before = (other > one) if descending else (other < one)
    before = torch.logical_or(before, torch.logical_and(other == one, places[None, :] < places[:, None]))
    rank = before.to(torch.int64).sum(dim=-1)  # [.., n]
    here = rank.unsqueeze(-2) == places[:, None]  # [.., to, from]
    values = torch.where(here, other, torch.zeros_like(other)).sum(dim=-1).to(x.dtype)
    index = torch.where(here, places, 0).sum(dim=-1)
    return values.movedim(-1, dim), index.movedim(-1, dim)


def flat_gather(x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Tensor:
    """`x.gather(dim, index)` as rows of one long table.

    An index that was spread over channels takes whole rows.
    """
    dim = dim % x.dim()
    spread = [axis for axis in range(x.dim()) if axis != dim and _is_spread(x, index, axis)]
    own = [axis for axis in range(x.dim()) if axis != dim and axis not in spread]
    for axis in own:
        x = x.narrow(axis, 0, index.shape[axis])
    for axis in spread:
        index = index.narrow(axis, 0, 1)
    order = [*own, dim, *spread]
    sizes = [*(index.shape[axis] for axis in (*own, dim)), *(x.shape[axis] for axis in spread)]
    images, length = math.prod(index.shape[axis] for axis in own), x.shape[dim]
    table = x.permute(order).reshape(images * length, math.prod(x.shape[axis] for axis in spread))
    starts = torch.arange(0, images * length, length, device=x.device)[:, None]
    rows = index.permute(order).reshape(images, index.shape[dim]) + starts
    found = table.index_select(0, rows.reshape(-1)).reshape(sizes)
    return found.permute([order.index(axis) for axis in range(len(order))])


def _is_spread(x: Tensor, index: Tensor, axis: int) -> bool:
    """Whether an index is the same all along an axis, and takes all of it."""
    return index.stride(axis) == 0 and index.shape[axis] == x.shape[axis]


def scatter_add_by_product(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    """`x.scatter_add(1, index, source)` of [B, n], or of [B, n, C] with one index for all channels."""
    dim = dim % x.dim()
    if dim != 1 or x.dim() > 3 or (x.dim() == 3 and not _is_spread(x, index, 2)):
        return NotImplemented
    group = index if index.dim() == 2 else index[..., 0]  # [B, T]
    there = group.unsqueeze(1) == torch.arange(x.shape[1], device=x.device)[:, None]  # [B, n, T]
    if x.dim() == 2:
        return x + torch.where(there, source.unsqueeze(1), torch.zeros_like(source).unsqueeze(1)).sum(dim=-1)
    return x + there.to(x.dtype) @ source


def _argsort(x: Tensor, *, stable: bool = False, dim: int = -1, descending: bool = False) -> Tensor:
    return order_by_rank(x, dim, descending)[1]


def _argsort_plain(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    return order_by_rank(x, dim, descending)[1]


def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    return order_by_rank(x, dim, descending)


def _sort_stable(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    return order_by_rank(x, dim, descending)


def _topk(
    x: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,  # noqa: A002
) -> tuple[Tensor, Tensor]:
    values, places = order_by_rank(x, dim, largest)
    return values.narrow(dim, 0, k), places.narrow(dim, 0, k)


#: operator -> what computes it, as torch.export takes them.
Table = Mapping[Any, Callable[..., Any]]
BY_RANK: Table = {
    aten.argsort.stable: _argsort,
    aten.argsort.default: _argsort_plain,
    aten.sort.default: _sort,
    aten.sort.stable: _sort_stable,
    aten.topk.default: _topk,
}
BY_ROWS: Table = {aten.gather.default: flat_gather, aten.scatter_add.default: scatter_add_by_product}
