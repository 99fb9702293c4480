"""The dialect: the few token operations that prunec puts into a graph.

They are plain differentiable PyTorch functions, used as `call_function` targets: they run as they are (the
reference semantics), inline under torch.compile and torch.export, and print readably in a diff.

    x ---------------------------- gather/fuse -- x'      index: [B, n], rows of x in ascending order
     '-- score -- select -- index --'  '-- take (tables), compose (origins), scatter (way back)

A selection whose count differs from image to image is padded to the longest; `valid` says which rows count:

    score -- threshold_mask -- pack -- index    [B, n], each image's kept rows first, then dropped ones
                            '-- valid_mask -- valid   [B, n], true for kept ones: attention, scatter read it

One file for each kind: scores, selections, streams, masks, merging (tokens into others), canvas (early exit),
packing (the tokens of all images as rows of one), attention (of such rows), training (masks with gradients),
folded (attention without keys and values), counting (numbers that follow how many tokens there are).
"""

from typing import Any

from prunec.ops.attention import attend
from prunec.ops.canvas import paint, remaining
from prunec.ops.counting import counts, for_images, log, throughout
from prunec.ops.folded import attend_states
from prunec.ops.learned import Learned, tensors_of
from prunec.ops.masks import bias_keys, fill, key_bias, key_mask, mask_keys, rescale, valid_mask_among
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
    pad,
    places,
    places_among,
    put,
    put_among,
    rows_of,
    slots,
    token_numbers,
    unpad,
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
    all_rows,
    context_mask,
    kept_rows,
    mean_threshold,
    pack,
    pack_all,
    random_mask,
    sampled_mask,
    select,
    select_pairs,
    threshold_mask,
    topk_mask,
    topk_mask_of_batch,
    valid_mask,
    with_best_dropped,
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
RAGGED = (pack, pack_all, kept_rows, all_rows)
SELECTIONS = (*FIXED, *RAGGED)
#: What says which rows are kept, where images may differ: (scores, bound, prefix, suffix, least, valid).
MASKS = (threshold_mask, sampled_mask, topk_mask, topk_mask_of_batch)
DIALECT = (
    *SCORES, *SELECTIONS, *MASKS, mean_threshold, context_mask, with_best_dropped, doubt, beside,
    random_among, random_mask, valid_mask, valid_mask_among, key_mask, mask_keys, key_bias, bias_keys, fill,
    rescale, whole, gather, fuse, fuse_each, scatter, reconstruct, rows, put_first, compose, take,
    token_keys, pairs, windows, nearest, members, remembered, sizes, merge, unmerge, remaining, paint,
    attend, rows_of, fixed_rows_of, slots, places, places_among, token_numbers, unpad, keep, pad, put,
    put_among, straight_through, blend, attend_kept, softmax_kept, attend_states, counts, log, for_images,
    throughout,
)  # fmt: skip


def is_ours(target: Any) -> bool:
    """Whether a call is of the dialect."""
    return target in DIALECT or isinstance(target, Learned)


__all__ = [
    "DIALECT",
    "FIXED",
    "MASKS",
    "RAGGED",
    "SCORES",
    "SELECTIONS",
    "TOO_MANY",
    "Learned",
    "all_rows",
    "attend",
    "attend_kept",
    "attend_states",
    "attention_map",
    "beside",
    "bias_keys",
    "blend",
    "change",
    "class_attention",
    "class_row",
    "compose",
    "context_mask",
    "counts",
    "doubt",
    "fill",
    "fixed_rows_of",
    "for_images",
    "fuse",
    "fuse_each",
    "gather",
    "is_ours",
    "keep",
    "kept_rows",
    "key_bias",
    "key_mask",
    "log",
    "mask_keys",
    "mean_threshold",
    "members",
    "merge",
    "nearest",
    "pack",
    "pack_all",
    "pad",
    "paint",
    "pairs",
    "places",
    "places_among",
    "put",
    "put_among",
    "put_first",
    "random_among",
    "random_mask",
    "random_score",
    "received",
    "reconstruct",
    "remaining",
    "remembered",
    "rescale",
    "rows",
    "rows_of",
    "sampled_mask",
    "scatter",
    "select",
    "select_pairs",
    "sizes",
    "slots",
    "softmax_kept",
    "straight_through",
    "take",
    "tensors_of",
    "threshold_mask",
    "throughout",
    "times_values",
    "token_keys",
    "token_norm",
    "token_numbers",
    "topk_mask",
    "topk_mask_of_batch",
    "unmerge",
    "unpad",
    "valid_mask",
    "valid_mask_among",
    "whole",
    "windows",
    "with_best_dropped",
]
