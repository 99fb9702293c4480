from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunec import ops
from tests.ops.cases import BATCH, ENDS, TOKENS, best_rows, cheap, masks, quick, rows, scored, streams


@quick
@given(streams(), st.booleans())
def test_select_takes_the_best_in_ascending_order_and_leaves_protected_rows_alone(
    stream: dict[str, Any], fused: bool
) -> None:
    score, keep, prefix, suffix = (stream[name] for name in ("score", "keep", "prefix", "suffix"))
    index = ops.select(score, keep, prefix, suffix, fused)
    for found, scores in zip(index.tolist(), score.tolist(), strict=True):
        kept, rest = best_rows(scores, keep, prefix, suffix)
        last = list(range(len(scores) - suffix, len(scores)))
        assert found == [*range(prefix), *kept, *(rest[:1] if fused else []), *last]


def test_ties_go_to_the_lower_row() -> None:
    score = torch.tensor([[9.0, 1.0, 2.0, 1.0, 2.0, 1.0, 9.0]])
    assert ops.select(score, 3, 1, 1).tolist() == [[0, 1, 2, 4, 6]]
    assert ops.select(torch.zeros(1, 7), 3, 1, 1).tolist() == [[0, 1, 2, 3, 6]]
    assert ops.select(torch.zeros(1, 7), 3, 1, 1, True).tolist() == [[0, 1, 2, 3, 4, 6]]


@pytest.mark.parametrize("fused", [False, True])
def test_keeping_everything_is_every_row_in_order(fused: bool) -> None:
    assert ops.select(torch.rand(2, 7), 4, 2, 1, fused).tolist() == [list(range(7))] * 2


def test_a_protected_row_of_the_lowest_score_stays_and_its_score_counts_for_nothing() -> None:
    score = torch.tensor([[-9.0, 0.0, 1.0, 2.0, 99.0]])
    assert ops.select(score, 1, 1, 1).tolist() == [[0, 3, 4]]


@cheap
@given(score=scored(), count=st.integers(1, 6))
def test_best_is_what_select_has(score: Tensor, count: int) -> None:
    assert rows(ops.topk_mask(score, count, *ENDS)) == ops.select(score, count, *ENDS).sort().values.tolist()


@cheap
@given(score=scored(), valid=masks(), count=st.integers(1, 6))
def test_what_has_left_is_not_among_the_best(score: Tensor, valid: Tensor, count: int) -> None:
    expected = []
    for numbers, there in zip(score.tolist(), valid.tolist(), strict=True):
        patches = [place for place in range(1, TOKENS - 2) if there[place]]
        best = sorted(patches, key=lambda place: (-numbers[place], place))[:count]
        expected.append(sorted([0, *best, TOKENS - 2, TOKENS - 1]))
    assert rows(ops.topk_mask(score, count, *ENDS, 1, valid)) == expected


@cheap
@given(score=scored(), count=st.integers(2, 6), least=st.integers(1, 2))
def test_best_of_batch(score: Tensor, count: int, least: int) -> None:
    places = [(image, place) for image in range(BATCH) for place in range(1, TOKENS - 2)]
    order = sorted(places, key=lambda at: (-float(score[at]), at))
    kept = []
    for image in range(BATCH):
        kept += [at for at in order if at[0] == image][:least]
    kept += [at for at in order if at not in kept][: count * BATCH - len(kept)]
    found = ops.topk_mask_of_batch(score, count, *ENDS, least)
    assert found[:, 1:-2].nonzero().add(torch.tensor([0, 1])).tolist() == sorted(map(list, kept))
    assert int(found.sum()) == BATCH * (count + 3)


@cheap
@given(kept=masks(), score=scored())
def test_joined_is_the_best_of_those_that_leave(kept: Tensor, score: Tensor) -> None:
    expected = []
    for stays, numbers in zip(rows(kept), score.tolist(), strict=True):
        leaving = [place for place in range(TOKENS) if place not in stays]
        first = [max(leaving, key=lambda place: (numbers[place], -place))] if leaving else []
        expected.append(sorted([*stays, *first]))
    assert rows(ops.with_best_dropped(kept, score, *ENDS)) == expected


@cheap
@given(kept=masks(), pairs=st.booleans())
def test_packed_rows_are_the_kept_ones_and_then_others(kept: Tensor, pairs: bool) -> None:
    longest = max(2, int(kept[:, 1:-2].sum(dim=1).max()))
    for index, length in ((ops.pack(kept, *ENDS, 1, pairs), longest), (ops.pack_all(kept, *ENDS, pairs), 6)):
        assert index.shape == (BATCH, length + 3)
        for row, stays in zip(index.tolist(), rows(kept), strict=True):
            patches = [place for place in stays if 1 <= place < TOKENS - 2]
            others = [place for place in range(1, TOKENS - 2) if place not in patches]
            if pairs:
                patches, others = (sorted(each, key=lambda place: place % 2) for each in (patches, others))
            assert row == [0, *(patches + others)[:length], TOKENS - 2, TOKENS - 1]
        assert int(ops.valid_mask(kept, index).sum()) == int(kept.sum())


@pytest.mark.parametrize(("most", "length"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6)])
def test_lengths_go_up_to_the_next_bucket(most: int, length: int) -> None:
    kept = torch.zeros(1, TOKENS, dtype=torch.bool)
    kept[:, : 1 + most] = kept[:, -2:] = True
    assert ops.pack(kept, *ENDS, 1, False, (2, 4, 6)).shape[1] == length + 3


def test_only_is_the_rows_of_one_image_and_every_all_of_them() -> None:
    kept = torch.tensor([[True, False, True, True, False]])
    assert ops.kept_rows(kept).tolist() == [[0, 2, 3]]
    assert ops.all_rows(kept).tolist() == [[0, 1, 2, 3, 4]]
