"""Mistakes in the operations of prunec/ops: which rows go on, and which of them count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunec import ops
from tests.mutants.planting import Mutant, mistakes_in

# --- selections --------------------------------------------------------------------------------


def select_the_worst(select: Any, score: Tensor, *rest: Any) -> Any:
    return select(-score, *rest)


def select_the_first(select: Any, score: Tensor, *rest: Any) -> Any:
    return select(-torch.arange(score.shape[1]).expand_as(score).float(), *rest)


def select_one_less(select: Any, score: Tensor, keep: int, *rest: Any) -> Any:
    return select(score, keep - 1, *rest)


def select_one_more(select: Any, score: Tensor, keep: int, *rest: Any) -> Any:
    return select(score, keep + 1, *rest)


def select_out_of_order(select: Any, *args: Any) -> Any:
    index = select(*args)
    return torch.cat([index[:, :1], index[:, 1:].flip(1)], dim=1)


def select_twice_the_same(select: Any, *args: Any) -> Any:
    index = select(*args).clone()
    index[:, 3] = index[:, 2]
    return index


def select_no_class_token(select: Any, score: Tensor, keep: int, prefix: int, *rest: Any) -> Any:
    score = score.index_fill(1, torch.arange(prefix), -1e9)
    return select(score, keep + prefix, 0, *rest)


def select_class_token_last(select: Any, *args: Any) -> Any:
    return select(*args).roll(-1, 1)


def select_for_another_image(select: Any, *args: Any) -> Any:
    return select(*args).roll(1, 0)


def select_for_the_first_image(select: Any, *args: Any) -> Any:
    index = select(*args)
    return index[:1].expand_as(index).contiguous()


def select_beyond_the_end(select: Any, score: Tensor, *rest: Any) -> Any:
    index = select(score, *rest).clone()
    index[:, -1] = score.shape[1]
    return index


def fused_place_in_front(select: Any, *args: Any) -> Any:
    index = select(*args)
    return torch.cat([index[:, :1], index[:, -1:], index[:, 1:-1]], dim=1) if args[4:] and args[4] else index


def passing_revives(passing: Any, score: Tensor, bound: Tensor, prefix: int, suffix: int, *rest: Any) -> Any:
    return passing(score, bound, prefix, suffix, *rest[:1])


def pack_loses_one(pack: Any, kept: Tensor, *rest: Any) -> Any:
    first = kept.to(torch.uint8).cumsum(1) == 3
    return pack(kept & ~first, *rest)


def pack_backwards(pack: Any, *args: Any) -> Any:
    index = pack(*args)
    return torch.cat([index[:, :1], index[:, 1:].flip(1)], dim=1)


def everything_lives(valid: Any, kept: Tensor, index: Tensor) -> Any:
    return torch.ones_like(index, dtype=torch.bool)


def valid_of_another_image(valid: Any, kept: Tensor, index: Tensor) -> Any:
    return valid(kept, index).roll(1, 0)


def nothing_joins(joined: Any, kept: Tensor, *rest: Any) -> Any:
    return kept


# --- scores: what is chosen, not what is done with it ------------------------------------------


def negated(score: Any, *args: Any) -> Any:
    return -score(*args)


def of_the_next_row(score: Any, query: Any, key: Any, row: int, *rest: Any) -> Any:
    return score(query, key, row + 1, *rest)


_select = mistakes_in(ops.select, "class token, drop", "dense output, stale")
_pack = mistakes_in(ops.pack, "class token, thresholds")
_valid = mistakes_in(ops.valid_mask, "class token, thresholds")

MUTANTS = (
    _select("select takes the worst", select_the_worst),
    _select("select ignores scores", select_the_first),
    _select("select keeps one less", select_one_less),
    _select("select keeps one more", select_one_more),
    _select("select turns the order round", select_out_of_order),
    _select("select takes a row twice", select_twice_the_same),
    _select("select does not protect the class token", select_no_class_token),
    _select("select puts the class token last", select_class_token_last),
    _select("select takes the index of another image", select_for_another_image),
    _select("select takes the index of the first image for all", select_for_the_first_image),
    _select("select goes beyond the end", select_beyond_the_end),
    _select("the fused token stands in front", fused_place_in_front, "class token, fuse"),
    Mutant(
        "thresholds let dropped rows come back",
        ("class token, thresholds",),
        ops.threshold_mask,
        passing_revives,
    ),
    _pack("pack loses a row", pack_loses_one),
    _pack("pack turns the order round", pack_backwards),
    _valid("all rows of a padded stream count", everything_lives),
    _valid("rows count by another image", valid_of_another_image),
    Mutant(
        "no row joins for the fused token",
        ("class token, fuse by thresholds",),
        ops.with_best_dropped,
        nothing_joins,
    ),
)

SCORING = (
    Mutant("the norm is negated", ("class token, drop",), ops.token_norm, negated, scoring=True),
    Mutant(
        "the class token's attention is negated",
        ("class token, fuse",),
        ops.class_attention,
        negated,
        scoring=True,
    ),
    Mutant(
        "another token's attention",
        ("class token, fuse",),
        ops.class_attention,
        of_the_next_row,
        scoring=True,
    ),
)
