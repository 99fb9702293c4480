"""The dialect: the few token operations that prunec puts into a graph.

They are plain differentiable PyTorch functions, used as `call_function` targets: they run as they are (the
reference semantics), inline under torch.compile and torch.export, and print readably in a diff.

    x ---------------------------- gather/fuse -- x'      index: [B, n], rows of x in ascending order
     '-- score -- select -- index --'  '-- take (tables), compose (origins), scatter (way back)

A selection whose count differs from image to image is padded to the longest; `live` says which rows count:

    score -- passing -- pack -- index     [B, n], each image's kept rows first, then rows that it dropped
                    '-- live  -- live      [B, n], true for kept ones; attention, scatter look at it

One file for each kind: scores, selections, streams, masks, merging (tokens into others), canvas (early exit),
packing (the tokens of all images as rows of one), attention (of such rows), training (masks with gradients),
absorbed (attention without keys and values), counting (numbers that follow how many tokens there are).
"""

from typing import Any

from prunec.ops.absorbed import attend_states
from prunec.ops.attention import attend
from prunec.ops.canvas import paint, remaining
from prunec.ops.counting import counts, for_images, log, throughout
from prunec.ops.learned import Learned, tensors_of
from prunec.ops.masks import bias_keys, fill, key_bias, key_mask, live_among, mask_keys, rescale
from prunec.ops.merging import (
    members,
    merge,
    nearest,
    pairs,
    remembered,
    sizes,
    token_keys,
    unmerge,
    windows,
)
from prunec.ops.packing import (
    TOO_MANY,
    fixed_rows_of,
    keep,
    numbers,
    pick,
    places,
    places_among,
    put,
    put_among,
    rows_of,
    slots,
    spread,
)
from prunec.ops.scores import (
    attention_map,
    beside,
    change,
    class_attention,
    class_row,
    doubt,
    random_among,
    random_score,
    received,
    times_values,
    token_norm,
)
from prunec.ops.selections import (
    best,
    best_of_batch,
    every,
    joined,
    live,
    only,
    pack,
    pack_all,
    passing,
    sampled,
    select,
    select_pairs,
    shuffled,
    spared,
    typical,
)
from prunec.ops.streams import (
    compose,
    fuse,
    fuse_each,
    gather,
    put_first,
    reconstruct,
    rows,
    scatter,
    take,
    whole,
)
from prunec.ops.training import attend_kept, blend, softmax_kept, straight_through

#: What each operation is, for the printer and for the checks between passes.
SCORES = (class_attention, class_row, attention_map, received, times_values, token_norm, random_score, change)
#: As many rows of every image: (scores, count, prefix, suffix, ..).
FIXED = (select, select_pairs)
#: Rows where images may differ, out of a mask of those that are kept.
RAGGED = (pack, pack_all, only, every)
SELECTIONS = (*FIXED, *RAGGED)
#: What says which rows are kept, where images may differ: (scores, bound, prefix, suffix, least, live).
PASSING = (passing, sampled, best, best_of_batch)
DIALECT = (
    *SCORES, *SELECTIONS, *PASSING, typical, spared, joined, doubt, beside, random_among, shuffled, live,
    live_among, key_mask, mask_keys, key_bias, bias_keys, fill, rescale, whole, gather, fuse, fuse_each,
    scatter, reconstruct, rows, put_first, compose, take, token_keys, pairs, windows, nearest, members,
    remembered, sizes, merge, unmerge, remaining, paint, attend, rows_of, fixed_rows_of, slots, places,
    places_among, numbers, pick, keep, spread, put, put_among, straight_through, blend, attend_kept,
    softmax_kept, attend_states, counts, log, for_images, throughout,
)  # fmt: skip


def is_ours(target: Any) -> bool:
    """Whether a call is of the dialect."""
    return target in DIALECT or isinstance(target, Learned)


__all__ = [
    "DIALECT",
    "FIXED",
    "PASSING",
    "RAGGED",
    "SCORES",
    "SELECTIONS",
    "TOO_MANY",
    "Learned",
    "attend",
    "attend_kept",
    "attend_states",
    "attention_map",
    "beside",
    "best",
    "best_of_batch",
    "bias_keys",
    "blend",
    "change",
    "class_attention",
    "class_row",
    "compose",
    "counts",
    "doubt",
    "every",
    "fill",
    "fixed_rows_of",
    "for_images",
    "fuse",
    "fuse_each",
    "gather",
    "is_ours",
    "joined",
    "keep",
    "key_bias",
    "key_mask",
    "live",
    "live_among",
    "log",
    "mask_keys",
    "members",
    "merge",
    "nearest",
    "numbers",
    "only",
    "pack",
    "pack_all",
    "paint",
    "pairs",
    "passing",
    "pick",
    "places",
    "places_among",
    "put",
    "put_among",
    "put_first",
    "random_among",
    "random_score",
    "received",
    "reconstruct",
    "remaining",
    "remembered",
    "rescale",
    "rows",
    "rows_of",
    "sampled",
    "scatter",
    "select",
    "select_pairs",
    "shuffled",
    "sizes",
    "slots",
    "softmax_kept",
    "spared",
    "spread",
    "straight_through",
    "take",
    "tensors_of",
    "throughout",
    "times_values",
    "token_keys",
    "token_norm",
    "typical",
    "unmerge",
    "whole",
    "windows",
]
