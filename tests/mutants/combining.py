"""Mistakes in the operations of prunec/ops: tokens summed up, merged, and pulled apart again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunec import ops
from tests.mutants.planting import Mutant, mistakes_in

# --- fuse --------------------------------------------------------------------------------------


def fuse_unweighted(fuse: Any, x: Tensor, index: Tensor, score: Tensor, *rest: Any) -> Any:
    return fuse(x, index, torch.ones_like(score), *rest)


def fuse_halved(fuse: Any, x: Tensor, index: Tensor, score: Tensor, *rest: Any) -> Any:
    return fuse(x, index, score / 2, *rest)


def fuse_swapped(fuse: Any, x: Tensor, index: Tensor, score: Tensor, *rest: Any) -> Any:
    return fuse(x, index, score.roll(1, 1), *rest)


def fuse_of_another_image(fuse: Any, x: Tensor, index: Tensor, score: Tensor, *rest: Any) -> Any:
    return fuse(x, index, score.roll(1, 0), *rest)


def fuse_nothing(fuse: Any, x: Tensor, index: Tensor, score: Tensor | None, suffix: int, dim: int = 1) -> Any:
    return ops.gather(x, index, dim)


def fuse_the_other_way(
    fuse: Any, x: Tensor, index: Tensor, score: Tensor | None, suffix: int, dim: int = 1
) -> Any:
    return fuse(x, index, torch.ones(x.shape[:2]) if score is None else None, suffix, dim)


def fuse_scaled(fuse: Any, x: Tensor, index: Tensor, *rest: Any) -> Any:
    made = fuse(x, index, *rest)
    return made * (index.shape[1] / x.shape[1])


def fuse_each_of_kept(fuse: Any, x: Any, index: Any, score: Any, kept: Any, *rest: Any) -> Any:
    return fuse(x, index, score, torch.zeros_like(kept), *rest)


def fuse_each_revives(
    fuse: Any, x: Any, index: Any, score: Any, kept: Any, joined: Any, dim: int, valid: Any
) -> Any:
    return fuse(x, index, score, kept, joined, dim, None)


# --- merge -------------------------------------------------------------------------------------


def merge_sums(merge: Any, x: Any, index: Any, group: Any, weight: Any = None, dim: int = 1) -> Any:
    count = torch.zeros(index.shape).scatter_add(1, group, torch.ones(group.shape))
    return merge(x, index, group, weight, dim) * count.unsqueeze(-1)


def merge_plainly(merge: Any, x: Any, index: Any, group: Any, weight: Any = None, dim: int = 1) -> Any:
    return merge(x, index, group, None, dim)


def merge_drops_sources(merge: Any, x: Any, index: Any, group: Any, weight: Any = None, dim: int = 1) -> Any:
    return ops.gather(x, index, dim)


def merge_with_another_image(merge: Any, x: Any, index: Any, group: Any, *rest: Any) -> Any:
    kept = ops.gather(x, index)
    made = merge(x.roll(1, 0), index, group, *rest)
    return torch.where((made == kept.roll(1, 0)).all(-1, keepdim=True), kept, made)


def sizes_stay_one(sizes: Any, group: Any, index: Any, like: Any, *rest: Any) -> Any:
    return torch.ones(index.shape)


def sizes_forget(sizes: Any, group: Any, index: Any, like: Any, size: Any = None, *rest: Any) -> Any:
    return sizes(group, index, like, None, *rest)


def sizes_counted(sizes: Any, group: Any, index: Any, like: Any, size: Any, alike: Any, *rest: Any) -> Any:
    return sizes(group, index, like, size, None, *rest)


def members_of_the_first(members: Any, partner: Tensor, index: Tensor, *rest: Any) -> Any:
    return members(index[:, 1:2].expand_as(partner), index, *rest)


def members_of_the_next(members: Any, partner: Tensor, index: Tensor, *rest: Any) -> Any:
    return members(partner.roll(1, 1), index, *rest)


def unmerge_by_place(unmerge: Any, x: Tensor, group: Tensor, dim: int = 1) -> Any:
    rows = torch.arange(group.shape[1]).clamp_max(x.shape[dim] - 1)
    return x.index_select(dim, rows) if x.shape[dim] < group.shape[1] else unmerge(x, group, dim)


def unmerge_for_another_image(unmerge: Any, x: Tensor, group: Tensor, dim: int = 1) -> Any:
    return unmerge(x, group.roll(1, 0) if x.shape[dim] < group.shape[1] else group, dim)


def nearest_but_one(nearest: Any, x: Tensor, index: Tensor, prefix: int, *rest: Any) -> Any:
    alike, partner = nearest(x, index, prefix, *rest)
    return alike, index[:, prefix : prefix + 1].expand_as(partner)


def remembers_all(remembered: Any, score: Tensor, *rest: Any) -> Any:
    return torch.ones_like(score)


def remembers_none(remembered: Any, score: Tensor, index: Tensor, *rest: Any) -> Any:
    return torch.zeros_like(score).scatter(1, index, 1.0)


def bias_left_out(key_bias: Any, size: Tensor, mask: Any = None) -> Any:
    return torch.zeros_like(size)[:, None, None, :]


def bias_by_size(key_bias: Any, size: Tensor, mask: Any = None) -> Any:
    return size[:, None, None, :] - 1


def logits_unbiased(bias_keys: Any, logits: Tensor, size: Tensor) -> Any:
    return logits


def pairs_the_same_row(pairs: Any, metric: Tensor, *rest: Any) -> Any:
    score, partner = pairs(metric, *rest)
    return score, torch.arange(metric.shape[1]).expand_as(partner)


_fuse = mistakes_in(ops.fuse, "class token, fuse", "class token, fuse the mean")
_fuse_each = mistakes_in(ops.fuse_each, "class token, fuse by thresholds")
_merge = mistakes_in(ops.pool, "merging pairs", "merging windows", "merging into the nearest")
_sizes = mistakes_in(ops.sizes, "merging pairs", "merging pairs, spelled out")
_members = mistakes_in(ops.assign, "merging pairs", "merging into the nearest")

MUTANTS = (
    _fuse("fuse without weights", fuse_unweighted, "class token, fuse"),
    _fuse("fuse with half the weights", fuse_halved, "class token, fuse"),
    _fuse("fuse with its neighbours' weights", fuse_swapped, "class token, fuse"),
    _fuse("fuse with another image's weights", fuse_of_another_image, "class token, fuse"),
    _fuse("fuse drops what leaves", fuse_nothing),
    _fuse("fuse takes the mean for the sum, and the sum for the mean", fuse_the_other_way),
    _fuse("fuse scales by n / T", fuse_scaled),
    _fuse_each("fuse sums up what stays too", fuse_each_of_kept),
    _fuse_each("fuse sums up what had left before", fuse_each_revives),
    _merge("merge sums", merge_sums),
    _merge("merge ignores sizes", merge_plainly, "merging pairs", "merging into the nearest"),
    _merge("merge drops its sources", merge_drops_sources),
    _merge("merge takes sources of another image", merge_with_another_image, "merging pairs"),
    _sizes("sizes stay one", sizes_stay_one),
    _sizes("sizes forget the merge before", sizes_forget),
    _sizes("sizes ignore the likeness", sizes_counted, "merging into the nearest"),
    _members("all are merged into the first", members_of_the_first),
    _members("partners are one row off", members_of_the_next),
    Mutant("unmerge by place", ("merging pairs, dense output",), ops.unmerge, unmerge_by_place),
    Mutant(
        "unmerge by another image", ("merging pairs, dense output",), ops.unmerge, unmerge_for_another_image
    ),
    Mutant("nearest takes some other patch", ("merging into the nearest",), ops.nearest, nearest_but_one),
    Mutant("nothing is forgotten", ("merging into the nearest",), ops.remembered, remembers_all),
    Mutant("all that leaves is forgotten", ("merging into the nearest",), ops.remembered, remembers_none),
    Mutant("keys do not count by size", ("merging pairs",), ops.key_bias, bias_left_out),
    Mutant("keys count by size, not its logarithm", ("merging pairs",), ops.key_bias, bias_by_size),
    Mutant("logits do not count by size", ("merging pairs, spelled out",), ops.bias_keys, logits_unbiased),
    Mutant("a pair is a token and itself", ("merging pairs",), ops.pairs, pairs_the_same_row),
)
