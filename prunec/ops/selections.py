"""Selections: which rows of a stream go on, the same number of each image or as many as each needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunec import compat

__all__ = [
    "all_rows",
    "context_mask",
    "kept_rows",
    "mean_threshold",
    "pack",
    "pack_all",
    "random_mask",
    "sampled_mask",
    "select",
    "select_pairs",
    "threshold_mask",
    "topk_mask",
    "topk_mask_of_batch",
    "valid_mask",
    "with_best_dropped",
]

# --- the same number of every image --------------------------------------------------------------


def select(score: Tensor, keep: int, prefix: int, suffix: int, fused: bool = False) -> Tensor:
    """Rows that go on: protected ones in place, the `keep` best patches in ascending order.

    With `fused`, the best of the remaining patches follows them: `fuse` puts the extra token in its place.
    Ties go to the lower index. Keeping everything yields 0 .. T-1.
    """
    tokens = score.shape[1]  # score: [B, T]
    rows = torch.arange(tokens, device=score.device).expand(score.shape[0], -1)
    patches = score[:, prefix : tokens - suffix]
    order = patches.argsort(dim=1, descending=True, stable=True) + prefix
    kept = order[:, :keep].sort(dim=1).values
    middle = [kept, order[:, keep : keep + 1]] if fused else [kept]
    return torch.cat([rows[:, :prefix], *middle, rows[:, tokens - suffix :]], dim=1)


def select_pairs(score: Tensor, keep: int, prefix: int, suffix: int) -> Tensor:
    """Rows that go on where each patch at an even place may go into one at an odd place.

    Those at odd places all stay (their score is infinite) and come last, so that the next pairing has other
    pairs.
    """
    index = select(score, keep, prefix, suffix)
    end = index.shape[1] - suffix
    patches = index[:, prefix:end]
    patches = patches.gather(1, (patches % 2).argsort(dim=1, stable=True))
    return torch.cat([index[:, :prefix], patches, index[:, end:]], dim=1)


# --- as many as every image needs ----------------------------------------------------------------
#
# Masks have one form: (score, threshold or count, prefix, suffix, least, valid) -> [B, T].


def topk_mask(
    score: Tensor, count: int, prefix: int, suffix: int, least: int = 1, valid: Tensor | None = None
) -> Tensor:
    """Which rows go on: the `count` best patches of each image, as `select` has them, and protected ones."""
    patches, there = _patches(score, prefix, suffix, valid)
    return _with_ends(_highest(patches, max(count, least)) & there, prefix, suffix)


def topk_mask_of_batch(
    score: Tensor, count: int, prefix: int, suffix: int, least: int = 1, valid: Tensor | None = None
) -> Tensor:
    """Which rows go on: the best patches of all images together, `count` of each on average.

    The `least` best ones of each image always go on, so every batch has the same number.
    """
    patches, there = _patches(score, prefix, suffix, valid)
    surely = _highest(patches, least) & there
    ranked = patches.masked_fill(surely, float("inf")).reshape(1, -1)
    kept = _highest(ranked, score.shape[0] * count).view_as(there)
    return _with_ends(kept & there, prefix, suffix)


def threshold_mask(
    score: Tensor, threshold: Tensor, prefix: int, suffix: int, least: int = 1, valid: Tensor | None = None
) -> Tensor:
    """Which rows go on: patches that score above the threshold, the `least` best ones, protected ones.

    Rows that an earlier selection has dropped (not `valid`) stay dropped.
    """
    patches, there = _patches(score, prefix, suffix, valid)
    kept = (patches > threshold) | _highest(patches, least)
    return _with_ends(kept & there, prefix, suffix)  # [B, T]


def _highest(score: Tensor, count: int) -> Tensor:
    """Which `count` of each row are the highest; ties go to the lower index.

    By comparing ranks, which works where the length is symbolic; a slice of the order would need its value.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.zeros_like(order).scatter(1, order, places) < count


def _patches(score: Tensor, prefix: int, suffix: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores of the patches, the lowest for those dropped before, and which were not dropped: [B, N]."""
    patches = score[:, prefix : score.shape[1] - suffix]
    if valid is None:
        return patches, torch.ones_like(patches, dtype=torch.bool)
    there = valid[:, prefix : score.shape[1] - suffix]
    return patches.masked_fill(~there, float("-inf")), there


def _with_ends(patches: Tensor, prefix: int, suffix: int) -> Tensor:
    """Protected rows pass: [B, N] to [B, T]."""
    front, back = (patches.new_ones((patches.shape[0], count)) for count in (prefix, suffix))
    return torch.cat([front, patches, back], dim=1)


def random_mask(
    kept: Tensor, prefix: int, suffix: int, valid: Tensor | None = None, score: Tensor | None = None
) -> Tensor:
    """As many rows of each image as `kept` has, chosen at random among valid ones: the random control.

    Rows whose score is infinite stay: others are merged into them.
    """
    end = kept.shape[1] - suffix
    chance = torch.rand(kept[:, prefix:end].shape, device=kept.device)
    if valid is not None:
        chance = chance.masked_fill(~valid[:, prefix:end], -1.0)
    if score is not None:
        chance = chance.masked_fill(score[:, prefix:end].isposinf() & kept[:, prefix:end], 2.0)
    place = chance.argsort(dim=1, descending=True).argsort(dim=1)  # 0 for the luckiest row
    lucky = place < kept[:, prefix:end].sum(dim=1, keepdim=True)
    return _with_ends(lucky, prefix, suffix)


def with_best_dropped(
    kept: Tensor, score: Tensor, prefix: int, suffix: int, valid: Tensor | None = None
) -> Tensor:
    """The kept rows and the best dropped patch of each image, in whose place the dropped ones are summed."""
    patches, there = _patches(score, prefix, suffix, valid)
    leaving = there & ~kept[:, prefix : kept.shape[1] - suffix]
    first = _highest(patches.masked_fill(~leaving, float("-inf")), 1) & leaving  # none where none leaves
    return kept | torch.nn.functional.pad(first, (prefix, suffix))


def pack(
    kept: Tensor,
    prefix: int,
    suffix: int,
    multiple_of: int = 1,
    in_pairs: bool = False,
    buckets: tuple[int, ...] = (),
) -> Tensor:
    """Rows of every image, as many as the longest needs, rounded up: kept ones first, in order.

    `buckets` are the numbers of patches to round up to, the last one large enough for all. With `in_pairs`,
    rows at odd places come after those at even ones, as `select_pairs` has them.
    """
    patches = kept[:, prefix : kept.shape[1] - suffix]
    longest = patches.sum(dim=1).amax(dim=0)
    if buckets:
        sizes = torch.tensor(buckets, device=kept.device)
        longest = sizes[(sizes >= longest).to(torch.uint8).argmax()]
    rounded = (longest + multiple_of - 1) // multiple_of * multiple_of
    ends = prefix + suffix
    # The compiler sees one number that is read off a tensor: sizes computed of it would not compare as equal.
    length: Any = (rounded.clamp(2, patches.shape[1]) + ends).item()  # not int(..): exported, it is a symbol
    compat.assume(length >= 2)  # compilers treat a size of one in another way
    compat.assume(length <= kept.shape[1])
    return _in_order(kept, prefix, suffix, length, in_pairs)


def pack_all(kept: Tensor, prefix: int, suffix: int, in_pairs: bool = False) -> Tensor:
    """The same with all rows: the length is the same for every batch, and not read off a tensor."""
    return _in_order(kept, prefix, suffix, kept.shape[1], in_pairs)


def _in_order(kept: Tensor, prefix: int, suffix: int, length: int, in_pairs: bool) -> Tensor:
    """Kept patches, then dropped ones, both in ascending order; protected rows around them: [B, length]."""
    tokens = kept.shape[1]
    rank = (~kept[:, prefix : tokens - suffix]).to(torch.uint8)
    if in_pairs:
        odd = torch.arange(prefix, tokens - suffix, device=kept.device) % 2
        rank = 2 * rank + odd.to(torch.uint8)
    order = rank.argsort(dim=1, stable=True) + prefix  # [B, N]
    place = torch.arange(length, device=kept.device)
    patches = order[:, (place - prefix).clamp(0, order.shape[1] - 1)]
    last = torch.where(place < length - suffix, patches, place + tokens - length)
    return torch.where(place < prefix, place, last)


def kept_rows(kept: Tensor) -> Tensor:
    """The kept rows of a single image, which needs no padding."""
    index = kept[0].nonzero()[:, 0].unsqueeze(0)  # [1, T] -> [1, n]
    compat.assume(index.shape[1] >= 2)
    compat.assume(index.shape[1] <= kept.shape[1])
    return index


def all_rows(kept: Tensor) -> Tensor:
    """All rows in place, for mode masked, which computes them all and hides those that are not kept."""
    return torch.arange(kept.shape[1], device=kept.device).expand(kept.shape[0], -1)


def valid_mask(kept: Tensor, index: Tensor) -> Tensor:
    """Which rows of a padded selection are kept ones; the others are padding."""
    return kept.gather(1, index)  # [B, T], [B, n] -> [B, n]


def sampled_mask(
    score: Tensor, count: int, prefix: int, suffix: int, least: int = 1, valid: Tensor | None = None
) -> Tensor:
    """Which rows go on: those hit by `count` regular steps over the cumulated scores, and protected ones.

    A row with a high score is hit by several steps, so fewer rows go on. Where fewer than `least` are hit,
    the best others join them.
    """
    patches = score[:, prefix : score.shape[1] - suffix]  # [B, N]
    there = torch.ones_like(patches, dtype=torch.bool)
    if valid is not None:
        there = valid[:, prefix : score.shape[1] - suffix]
    ordered, order = patches.masked_fill(~there, 0.0).sort(dim=1, stable=True)
    reached = ordered.cumsum(dim=1) / ordered.sum(dim=1, keepdim=True)
    reached = reached.masked_fill(~there.gather(1, order), float("inf"))  # no step is near to those
    steps = (torch.arange(count, device=score.device, dtype=score.dtype) * 2 + 1) / (2 * count)
    hit = (reached[:, None, :] - steps[None, :, None]).abs().argmin(dim=2)  # [B, count]
    hits = torch.zeros_like(there).scatter(1, order.gather(1, hit), True)
    rank = patches.masked_fill(~there, float("-inf")).masked_fill(hits, float("inf"))
    return _with_ends((hits | _highest(rank, least)) & there, prefix, suffix)


def mean_threshold(
    score: Tensor, divisor: int, prefix: int, suffix: int, valid: Tensor | None = None
) -> Tensor:
    """The threshold of every image: the mean of its finite scores, less their spread over `divisor`."""
    patches = score[:, prefix : score.shape[1] - suffix]  # [B, N]
    counts = patches.isfinite()
    if valid is not None:
        counts = counts & valid[:, prefix : score.shape[1] - suffix]
    number = counts.sum(dim=1, keepdim=True)
    mean = patches.masked_fill(~counts, 0.0).sum(dim=1, keepdim=True) / number.clamp_min(1)
    square = (patches - mean).masked_fill(~counts, 0.0).square().sum(dim=1, keepdim=True)
    return mean - (square / (number - 1).clamp_min(1)).sqrt() / divisor  # [B, 1]


def context_mask(
    kept: Tensor, logits: Tensor, count: int, prefix: int, suffix: int, valid: Tensor | None = None
) -> Tensor:
    """The kept rows and, as context, the `count` most certain dropped patches of each class."""
    end = kept.shape[1] - suffix
    confidence, classes = logits[:, prefix:end].softmax(dim=-1).max(dim=-1)  # [B, N]
    leaving = ~kept[:, prefix:end]
    if valid is not None:
        leaving = leaving & valid[:, prefix:end]
    # by class, the most certain first; those that stay come after all classes
    order = confidence.argsort(dim=1, descending=True, stable=True)
    group = torch.where(leaving, classes, logits.shape[-1]).gather(1, order)
    by_class = group.argsort(dim=1, stable=True)
    order, group = order.gather(1, by_class), group.gather(1, by_class)
    first = torch.searchsorted(group, group)  # where the row's class begins
    place = torch.arange(group.shape[1], device=group.device) - first
    stays = (place < count) & (group < logits.shape[-1])
    patches = kept[:, prefix:end] | torch.zeros_like(stays).scatter(1, order, stays)
    return _with_ends(patches, prefix, suffix)


#: As many rows of every image: (score, keep, prefix, suffix, ..).
FIXED = (select, select_pairs)
#: Rows of which images may keep different numbers: (kept, ..).
RAGGED = (pack, pack_all, kept_rows, all_rows)
SELECTIONS = (*FIXED, *RAGGED)
#: Which rows are kept, where images may differ: (score, threshold or count, prefix, suffix, least, valid).
MASKS = (threshold_mask, sampled_mask, topk_mask, topk_mask_of_batch)
