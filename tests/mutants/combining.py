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


def fuse_also_what_stays(
    fuse: Any, x: Any, index: Any, score: Any, suffix: int, dim: int, chosen: Any, valid: Any = None
) -> Any:
    kept, joined = chosen
    made = fuse(x, index, score, suffix, dim, (torch.zeros_like(kept), joined), valid)
    here = (joined & ~kept).gather(1, index).unsqueeze(2)
    return torch.where(here, made, ops.gather(x, index, dim))


def fuse_revives(
    fuse: Any, x: Any, index: Any, score: Any, suffix: int, dim: int, chosen: Any, valid: Any = None
) -> Any:
    return fuse(x, index, score, suffix, dim, chosen, None)


# --- pool --------------------------------------------------------------------------------------


def pool_sums(pool: Any, x: Any, index: Any, group: Any, weight: Any = None, dim: int = 1) -> Any:
    count = torch.zeros(index.shape).scatter_add(1, group, torch.ones(group.shape))
    return pool(x, index, group, weight, dim) * count.unsqueeze(-1)


def pool_plainly(pool: Any, x: Any, index: Any, group: Any, weight: Any = None, dim: int = 1) -> Any:
    return pool(x, index, group, None, dim)


def pool_drops_sources(pool: Any, x: Any, index: Any, group: Any, weight: Any = None, dim: int = 1) -> Any:
    return ops.gather(x, index, dim)


def pool_with_another_image(pool: Any, x: Any, index: Any, group: Any, *rest: Any) -> Any:
    kept = ops.gather(x, index)
    made = pool(x.roll(1, 0), index, group, *rest)
    return torch.where((made == kept.roll(1, 0)).all(-1, keepdim=True), kept, made)


def sizes_stay_one(sizes: Any, group: Any, index: Any, like: Any, *rest: Any) -> Any:
    return torch.ones(index.shape)


def sizes_forget(sizes: Any, group: Any, index: Any, like: Any, size: Any = None, *rest: Any) -> Any:
    return sizes(group, index, like, None, *rest)


def sizes_counted(sizes: Any, group: Any, index: Any, like: Any, size: Any, alike: Any, *rest: Any) -> Any:
    return sizes(group, index, like, size, None, *rest)


def assigned_to_the_first(assign: Any, partner: Tensor, index: Tensor, *rest: Any) -> Any:
    return assign(index[:, 1:2].expand_as(partner), index, *rest)


def assigned_one_row_off(assign: Any, partner: Tensor, index: Tensor, *rest: Any) -> Any:
    return assign(partner.roll(1, 1), index, *rest)


def nearest_but_one(nearest: Any, similar: Tensor, index: Tensor, prefix: int, *rest: Any) -> Any:
    alike, partner = nearest(similar, index, prefix, *rest)
    return alike, index[:, prefix : prefix + 1].expand_as(partner)


def nearest_protected(nearest: Any, similar: Tensor, index: Tensor, prefix: int, *rest: Any) -> Any:
    alike, partner = nearest(similar, index, prefix, *rest)
    return alike, torch.zeros_like(partner)


def similarities_not_centred(similarities: Any, metric: Tensor, centre: Any = None, *rest: Any) -> Any:
    return similarities(metric, None, *rest)


def similarities_not_normalised(
    similarities: Any, metric: Tensor, centre: Any = None, dim: int = 1, valid: Any = None
) -> Any:
    rows = metric.movedim(dim, 1)
    return similarities(metric, centre, dim, valid) * rows.norm(dim=-1).unsqueeze(1)


def similarities_of_another_image(similarities: Any, metric: Tensor, *rest: Any) -> Any:
    return similarities(metric.roll(1, 0), *rest)


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
_fuse_by_masks = mistakes_in(ops.fuse, "class token, fuse by thresholds")
_pool = mistakes_in(ops.pool, "merging pairs", "merging windows", "merging into the nearest")
_sizes = mistakes_in(ops.sizes, "merging pairs", "merging pairs, spelled out")
_assign = mistakes_in(ops.assign, "merging pairs", "merging into the nearest")
_nearest = mistakes_in(ops.nearest, "merging into the nearest", "dense output, copy", "dense output, cover")
_similar = mistakes_in(
    ops.similarities, "merging into the nearest", "dense output, share", "dense output, cover"
)

MUTANTS = (
    _fuse("fuse without weights", fuse_unweighted, "class token, fuse"),
    _fuse("fuse with half the weights", fuse_halved, "class token, fuse"),
    _fuse("fuse with its neighbours' weights", fuse_swapped, "class token, fuse"),
    _fuse("fuse with another image's weights", fuse_of_another_image, "class token, fuse"),
    _fuse("fuse drops what leaves", fuse_nothing),
    _fuse("fuse takes the mean for the sum, and the sum for the mean", fuse_the_other_way),
    _fuse("fuse scales by n / T", fuse_scaled),
    _fuse_by_masks("fuse sums up what stays too", fuse_also_what_stays),
    _fuse_by_masks("fuse sums up what had left before", fuse_revives),
    _pool("pool sums", pool_sums),
    _pool("pool ignores sizes", pool_plainly, "merging pairs", "merging into the nearest"),
    _pool("pool drops its sources", pool_drops_sources),
    _pool("pool takes sources of another image", pool_with_another_image, "merging pairs"),
    _sizes("sizes stay one", sizes_stay_one),
    _sizes("sizes forget the merge before", sizes_forget),
    _sizes("sizes ignore the likeness", sizes_counted, "merging into the nearest"),
    _assign("all are merged into the first", assigned_to_the_first),
    _assign("partners are one row off", assigned_one_row_off),
    _nearest("nearest takes some other patch", nearest_but_one),
    _nearest("nearest takes the class token", nearest_protected),
    _similar("similarities are not normalised", similarities_not_normalised),
    _similar("similarities are those of another image", similarities_of_another_image),
    _similar("similarities are not centred", similarities_not_centred, "dense output, cover"),
    Mutant("nothing is forgotten", ("merging into the nearest",), ops.remembered, remembers_all),
    Mutant("all that leaves is forgotten", ("merging into the nearest",), ops.remembered, remembers_none),
    Mutant("keys do not count by size", ("merging pairs",), ops.key_bias, bias_left_out),
    Mutant("keys count by size, not its logarithm", ("merging pairs",), ops.key_bias, bias_by_size),
    Mutant("logits do not count by size", ("merging pairs, spelled out",), ops.bias_keys, logits_unbiased),
    Mutant("a pair is a token and itself", ("merging pairs",), ops.pairs, pairs_the_same_row),
)
