"""Mistakes in the operations of prunec/ops: rows taken out, put back, made up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunec import ops
from tests.mutants.planting import mistakes_in

DROPS = ("class token, drop", "mean head, drop", "rotary, drop", "dense output, stale", "windows, drop")


# --- gather, compose, take ---------------------------------------------------------------------


def gather_the_first(gather: Any, x: Tensor, index: Tensor, dim: int = 1) -> Any:
    return x.narrow(dim, 0, index.shape[1])


def gather_of_another_image(gather: Any, x: Tensor, index: Tensor, dim: int = 1) -> Any:
    return gather(x.roll(1, 0), index, dim)


def gather_one_off(gather: Any, x: Tensor, index: Tensor, dim: int = 1) -> Any:
    return gather(x, (index + (index.shape[1] < x.shape[dim])).clamp_max(x.shape[dim] - 1), dim)


def gather_scaled(gather: Any, x: Tensor, index: Tensor, dim: int = 1) -> Any:
    return gather(x, index, dim) * (index.shape[1] / x.shape[dim])


def gather_the_last_twice(gather: Any, x: Tensor, index: Tensor, dim: int = 1) -> Any:
    if index.shape[1] == x.shape[dim]:
        return gather(x, index, dim)
    return gather(x, torch.cat([index[:, :-1], index[:, -2:-1]], dim=1), dim)


def compose_inner(compose: Any, outer: Tensor, inner: Tensor) -> Any:
    return inner


def compose_outer(compose: Any, outer: Tensor, inner: Tensor) -> Any:
    return outer[:, : inner.shape[1]]


def take_the_first(take: Any, table: Tensor, index: Tensor, dim: int, *rest: Any) -> Any:
    index = torch.arange(index.shape[1]).expand_as(index) if index.shape[1] < 26 else index
    return take(table, index, dim, *rest)


def take_of_another_image(take: Any, table: Tensor, index: Tensor, *rest: Any) -> Any:
    return take(table, index.roll(1, 0) if index.shape[1] < 26 else index, *rest)


def take_without_its_prefix(
    take: Any, table: Tensor, index: Tensor, dim: int, batch: int = 0, *rest: int
) -> Any:
    if not rest or index.shape[1] == 26:
        return take(table, index, dim, batch, *rest)
    return take(table, index[:, rest[0] :].clamp_max(table.shape[dim] - 1), dim, batch)


# --- scatter -----------------------------------------------------------------------------------


def scatter_into_zeros(scatter: Any, base: Tensor, *rest: Any) -> Any:
    return scatter(torch.zeros_like(base), *rest)


def scatter_into_the_mean(scatter: Any, base: Tensor, *rest: Any) -> Any:
    return scatter(base.mean(1, keepdim=True).expand_as(base).contiguous(), *rest)


def scatter_into_another_image(scatter: Any, base: Tensor, *rest: Any) -> Any:
    return scatter(base.roll(1, 0), *rest)


def scatter_nothing(scatter: Any, base: Tensor, x: Tensor, index: Tensor, *rest: Any) -> Any:
    return base if index.shape[1] < base.shape[1] else scatter(base, x, index, *rest)


def scatter_adds(
    scatter: Any, base: Tensor, x: Tensor, index: Tensor, dim: int = 1, valid: Any = None
) -> Any:
    whole = scatter(base, x, index, dim, valid)
    return whole if index.shape[1] == base.shape[dim] else whole + 0.1 * (whole - base)


def scatter_padding_too(
    scatter: Any, base: Tensor, x: Tensor, index: Tensor, dim: int = 1, valid: Any = None
) -> Any:
    return scatter(base, x, index, dim)


# --- share -------------------------------------------------------------------------------------


def share_by_place(
    share: Any, x: Tensor, group: Tensor, base: Any = None, at: Any = None, dim: int = 1
) -> Any:
    return share(x, torch.arange(group.shape[1]).clamp_max(x.shape[dim] - 1).expand_as(group), base, at, dim)


def share_for_another_image(share: Any, x: Tensor, group: Tensor, *rest: Any) -> Any:
    return share(x, group.roll(1, 0), *rest)


def share_stale(share: Any, x: Tensor, group: Tensor, base: Any, at: Any, dim: int = 1) -> Any:
    return base


def share_copies(share: Any, x: Tensor, group: Tensor, base: Any, at: Any, dim: int = 1) -> Any:
    return share(x, group, None, None, dim)


def share_updates_of_nothing(share: Any, x: Tensor, group: Tensor, base: Any, at: Any, dim: int = 1) -> Any:
    return share(x, group, base, torch.zeros_like(at), dim)


def share_half(share: Any, x: Tensor, group: Tensor, base: Any, at: Any, dim: int = 1) -> Any:
    return (base + share(x, group, base, at, dim)) / 2


def share_bases_of_others(share: Any, x: Tensor, group: Tensor, base: Any, at: Any, dim: int = 1) -> Any:
    return share(x, group, base.roll(1, 0), at, dim)


_scatter = mistakes_in(ops.scatter, "dense output, stale", "windows, drop")
_share = mistakes_in(ops.share, "dense output, copy", "dense output, share", "dense output, cover")
UPDATES = ("dense output, share", "dense output, share by thresholds", "dense output, cover")
_gather = mistakes_in(ops.gather, *DROPS)
_compose = mistakes_in(ops.compose, "rotary, drop")
_take = mistakes_in(ops.take, "rotary, drop")

MUTANTS = (
    _gather("gather ignores its index", gather_the_first),
    _gather("gather takes rows of another image", gather_of_another_image),
    _gather("gather is one row off", gather_one_off),
    _gather("gather scales by n / T", gather_scaled),
    _gather("gather takes one row twice and leaves the last out", gather_the_last_twice),
    _compose("compose forgets the first selection", compose_inner),
    _compose("compose forgets the second selection", compose_outer),
    _take("take ignores its index", take_the_first),
    _take("take by the index of another image", take_of_another_image),
    _take("take forgets that the table has no row for the prefix", take_without_its_prefix),
    _scatter("scatter into zeros", scatter_into_zeros),
    _scatter("scatter into the mean", scatter_into_the_mean),
    _scatter("scatter into another image", scatter_into_another_image),
    _scatter("scatter puts nothing back", scatter_nothing),
    _scatter("scatter adds a little", scatter_adds),
    _scatter(
        "scatter puts padding back", scatter_padding_too, "dense output, thresholds", "dense output, anew"
    ),
    _share("share by place", share_by_place),
    _share("share for another image", share_for_another_image),
    _share("share gives stale values", share_stale, *UPDATES),
    _share("share copies instead of updating", share_copies, *UPDATES),
    _share("share forgets the start of an update", share_updates_of_nothing, *UPDATES),
    _share("share gives half the update", share_half, *UPDATES),
    _share("share updates another image's tokens", share_bases_of_others, *UPDATES),
)
