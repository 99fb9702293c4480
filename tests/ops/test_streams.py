from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunec import ops
from tests.ops.cases import (
    BATCH,
    ENDS,
    TOKENS,
    as_stream,
    best_rows,
    double,
    equal,
    quick,
    streams,
)


@quick
@given(streams(), st.sampled_from([0, 1]))
def test_gather_picks_rows_and_scatter_puts_them_back(stream: dict[str, Any], dim: int) -> None:
    x = stream["x"]
    index = ops.select(stream["score"], stream["keep"], stream["prefix"], stream["suffix"])
    kept = ops.gather(as_stream(x, dim), index, dim)
    equal(as_stream(kept, dim), torch.stack([image[rows] for image, rows in zip(x, index, strict=True)]))
    equal(ops.scatter(as_stream(x, dim), kept, index, dim), as_stream(x, dim))
    base = torch.full_like(x, 7.0)
    expected = base.clone()
    for image, rows in enumerate(index.tolist()):
        for row in rows:
            expected[image, row] = x[image, row]
    equal(ops.scatter(as_stream(base, dim), kept, index, dim), as_stream(expected, dim))


@quick
@given(streams(fused=True), st.sampled_from([0, 1]))
def test_fuse_sums_what_is_dropped_weighted_by_score(stream: dict[str, Any], dim: int) -> None:
    x, score, keep, prefix, suffix = (stream[name] for name in ("x", "score", "keep", "prefix", "suffix"))
    index = ops.select(score, keep, prefix, suffix, True)
    found = as_stream(ops.fuse(as_stream(x, dim), index, score, suffix, dim), dim)
    for image in range(x.shape[0]):
        kept, rest = best_rows(score[image].tolist(), keep, prefix, suffix)
        extra = (
            [sum(score[image, row] * x[image, row] for row in rest)]
            if len(rest) > 1
            else list(x[image, rest])
        )
        rows = [
            *x[image, :prefix],
            *(x[image, row] for row in kept),
            *extra,
            *x[image, len(score[image]) - suffix :],
        ]
        equal(found[image], torch.stack(rows))


@pytest.mark.parametrize("dim", [0, 1])
def test_fuse_with_nothing_dropped_is_gather_in_any_order(dim: int) -> None:
    x, score = torch.randn(2, 6, 3, dtype=double), torch.rand(2, 6, dtype=double)
    index = torch.stack([torch.tensor([0, 3, 1, 4, 2, 5]), torch.tensor([0, 1, 4, 3, 2, 5])])
    equal(ops.fuse(as_stream(x, dim), index, score, 1, dim), ops.gather(as_stream(x, dim), index, dim))


@pytest.mark.parametrize("dim", [0, 1])
def test_put_first_is_the_short_stream_in_front_of_the_rest(dim: int) -> None:
    base, x = torch.randn(2, 6, 3), torch.randn(2, 4, 3)
    found = ops.put_first(as_stream(base, dim), as_stream(x, dim), dim)
    equal(as_stream(found, dim), torch.cat([x, base[:, 4:]], dim=1))


@quick
@given(streams(), st.data())
def test_compose_is_two_gathers_in_one(stream: dict[str, Any], data: st.DataObject) -> None:
    outer = ops.select(stream["score"], stream["keep"], stream["prefix"], stream["suffix"])
    left = outer.shape[1] - stream["prefix"] - stream["suffix"]
    inner = ops.select(
        torch.rand(outer.shape), data.draw(st.integers(0, left)), stream["prefix"], stream["suffix"]
    )
    both = ops.compose(outer, inner)
    equal(ops.gather(stream["x"], both), ops.gather(ops.gather(stream["x"], outer), inner))


@quick
@given(streams(), st.permutations(range(4)), st.booleans(), st.booleans(), st.booleans())
def test_take_gathers_a_table_whatever_its_axes_are(
    stream: dict[str, Any], order: list[int], shared: bool, no_prefix: bool, no_suffix: bool
) -> None:
    index = ops.select(stream["score"], stream["keep"], stream["prefix"], stream["suffix"])
    first = stream["prefix"] if no_prefix else 0
    last = stream["suffix"] if no_suffix else 0
    batch, tokens = stream["score"].shape
    plain = torch.randn(1 if shared else batch, tokens - first - last, 2, 3, dtype=double)
    dim, batch_dim = order.index(1), order.index(0)
    found = ops.take(plain.permute(order), index, dim, batch_dim, first, last)
    expected = torch.zeros(batch, index.shape[1] - first - last, 2, 3, dtype=double)
    for image in range(batch):
        for place, row in enumerate(index[image, first : index.shape[1] - last].tolist()):
            expected[image, place] = plain[0 if shared else image, row - first]
    equal(found, expected.permute(order))


@pytest.mark.parametrize("dim", [0, 1])
def test_gradients_flow_through_the_stream(dim: int) -> None:
    score = torch.rand(2, 6, dtype=double, requires_grad=True)
    x = as_stream(torch.randn(2, 6, 2, dtype=double), dim).requires_grad_()
    index, with_extra = ops.select(score, 2, 1, 1), ops.select(score, 2, 1, 1, True)
    short = as_stream(torch.randn(2, 4, 2, dtype=double), dim).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.gather(x, index, dim), x)
    assert torch.autograd.gradcheck(lambda x, score: ops.fuse(x, with_extra, score, 1, dim), (x, score))
    assert torch.autograd.gradcheck(lambda x, short: ops.scatter(x, short, index, dim), (x, short))


def test_gradients_flow_through_scores_and_tables() -> None:
    query, key = (torch.randn(2, 2, 4, 3, dtype=double, requires_grad=True) for _ in range(2))
    table = torch.randn(4, 3, dtype=double, requires_grad=True)
    index = torch.tensor([[0, 2], [1, 3]])
    assert torch.autograd.gradcheck(lambda query, key: ops.class_attention(query, key, 1), (query, key))
    assert torch.autograd.gradcheck(lambda table: ops.take(table.unsqueeze(0), index, 1), table)
    assert torch.autograd.gradcheck(ops.token_norm, table.unsqueeze(0))


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_fuse_by_masks_is_fuse_where_counts_are_equal(count: int, uniform: bool) -> None:
    x, score = torch.randn(BATCH, TOKENS, 4), torch.rand(BATCH, TOKENS)
    index = ops.select(score, count, *ENDS, True)
    weights = None if uniform else score
    expected = ops.fuse(x, index, weights, ENDS[1])
    kept = ops.topk_mask(score, count, *ENDS)
    joined = ops.with_best_dropped(kept, score, *ENDS)
    other = ops.pack(joined, *ENDS)
    found = ops.fuse(x, other, weights, ENDS[1], chosen=(kept, joined))
    order = index.argsort(dim=1)  # by counts the sum stands behind the kept ones, whatever its place was
    torch.testing.assert_close(found, expected.gather(1, order.unsqueeze(2).expand(-1, -1, 4)))


@pytest.mark.parametrize("dim", [0, 1])
def test_what_had_left_before_is_not_fused(dim: int) -> None:
    x, score = torch.randn(1, 6, 3, dtype=double), torch.rand(1, 6, dtype=double)
    kept = torch.tensor([[True, True, False, False, False, True]])
    joined = torch.tensor([[True, True, False, True, False, True]])
    valid = torch.tensor([[True, True, True, True, False, True]])
    index = torch.tensor([[0, 1, 3, 5]])
    chosen = (kept, joined)
    expected = x[:, [0, 1, 3, 5]].clone()
    expected[0, 2] = score[0, 2] * x[0, 2] + score[0, 3] * x[0, 3]
    found = ops.fuse(as_stream(x, dim), index, score, 1, dim, chosen, valid)
    equal(as_stream(found, dim), expected)
    expected[0, 2] = (x[0, 2] + x[0, 3]) / 2
    found = ops.fuse(as_stream(x, dim), index, None, 1, dim, chosen, valid)
    equal(as_stream(found, dim), expected)
