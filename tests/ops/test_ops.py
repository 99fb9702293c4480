from __future__ import annotations

from types import FunctionType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunec import ops

quick = settings(deadline=None, max_examples=60)
double = torch.float64


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@st.composite
def streams(draw: st.DrawFn, fused: bool = False) -> dict[str, Any]:
    """A stream with protected ends, its scores (often tied), and how many patches to keep."""
    batch, prefix, suffix = draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 3))
    patches = draw(st.integers(1, 9))
    keep = draw(st.integers(0 if prefix + suffix or fused else 1, patches))
    tokens = prefix + patches + suffix
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    score = (
        torch.randint(0, draw(st.sampled_from([2, 5, 1000])), (batch, tokens), generator=generator).double()
        / 7
    )
    x = torch.randn(batch, tokens, 3, generator=generator, dtype=double)
    return {"x": x, "score": score, "prefix": prefix, "suffix": suffix, "patches": patches, "keep": keep}


def as_stream(x: Tensor, dim: int) -> Tensor:
    """[B, T, C] as it is, or as [T, B, C]."""
    return x if dim == 1 else x.transpose(0, 1).contiguous()


def best_rows(scores: list[float], keep: int, prefix: int, suffix: int) -> tuple[list[int], list[int]]:
    """Patch rows kept, ascending, and the rest, best first; ties go to the lower row."""
    patches = range(prefix, len(scores) - suffix)
    order = sorted(patches, key=lambda row: (-scores[row], row))
    return sorted(order[:keep]), order[keep:]


# --- score ------------------------------------------------------------------------------------


def attention_of_row(query: Tensor, key: Tensor, row: int, scale: float, mask: Tensor | None) -> Tensor:
    batch, heads, tokens, _ = query.shape
    out = torch.zeros(batch, tokens, dtype=query.dtype)
    for image in range(batch):
        for head in range(heads):
            shared = key[image, head * key.shape[1] // heads]
            logits = torch.stack([query[image, head, row] @ other * scale for other in shared])
            if mask is not None:
                line = mask.expand(batch, heads, tokens, tokens)[image, head, row]
                logits = torch.where(line, logits, -torch.inf) if line.dtype == torch.bool else logits + line
            out[image] += logits.exp() / logits.exp().sum() / heads
    return out


@quick
@given(st.integers(1, 2), st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), st.integers(1, 6), st.data())
def test_class_attention_is_the_row_of_a_softmax_averaged_over_heads(
    batch: int, heads: tuple[int, int], tokens: int, data: st.DataObject
) -> None:
    query = torch.randn(batch, heads[0], tokens, 4, dtype=double)
    key = torch.randn(batch, heads[1], tokens, 4, dtype=double)
    row = data.draw(st.integers(0, tokens - 1))
    scale = data.draw(st.sampled_from([None, 0.3]))
    mask = data.draw(st.sampled_from(["none", "bias", "bias of all", "bool"]))
    masks = {
        "none": None,
        "bias": torch.randn(1, heads[0], tokens, tokens, dtype=double),
        "bias of all": torch.randn(tokens, tokens, dtype=double),
        "bool": (torch.rand(batch, 1, tokens, tokens) > 0.4) | torch.eye(tokens, dtype=torch.bool),
    }
    expected = attention_of_row(query, key, row, 0.5 if scale is None else scale, masks[mask])
    equal(ops.class_attention(query, key, row, scale, masks[mask]), expected)


def test_class_row_is_the_same_from_the_whole_map() -> None:
    query, key = torch.randn(2, 3, 5, 4, dtype=double), torch.randn(2, 3, 5, 4, dtype=double)
    attention = (query @ key.transpose(-2, -1) / 2).softmax(dim=-1)
    for row in range(5):
        equal(ops.class_row(attention, row), ops.class_attention(query, key, row))


@pytest.mark.parametrize("dim", [0, 1])
def test_token_norm_is_the_length_of_each_row(dim: int) -> None:
    x = torch.randn(2, 5, 3, dtype=double)
    expected = torch.tensor(
        [[sum(value**2 for value in row) ** 0.5 for row in image] for image in x.tolist()], dtype=double
    )
    equal(ops.token_norm(as_stream(x, dim), dim), expected)


@pytest.mark.parametrize("dim", [0, 1])
def test_random_score_is_one_number_for_each_token_and_never_the_same_twice(dim: int) -> None:
    x = torch.zeros(2, 50, 3)
    first, second = (ops.random_score(as_stream(x, dim), dim) for _ in range(2))
    assert first.shape == second.shape == (2, 50)
    assert len(set(first.flatten().tolist()) | set(second.flatten().tolist())) > 190


# --- select -----------------------------------------------------------------------------------


@quick
@given(streams(), st.booleans())
def test_select_takes_the_best_in_ascending_order_and_leaves_protected_rows_alone(
    stream: dict[str, Any], fused: bool
) -> None:
    score, keep, prefix, suffix = (stream[name] for name in ("score", "keep", "prefix", "suffix"))
    index = ops.select(score, keep, prefix, suffix, fused)
    for rows, scores in zip(index.tolist(), score.tolist(), strict=True):
        kept, rest = best_rows(scores, keep, prefix, suffix)
        last = list(range(len(scores) - suffix, len(scores)))
        assert rows == [*range(prefix), *kept, *(rest[:1] if fused else []), *last]


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


# --- gather, fuse, scatter --------------------------------------------------------------------


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


# --- side state -------------------------------------------------------------------------------


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


# --- gradients --------------------------------------------------------------------------------


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


def test_dialect_names_every_operation_once() -> None:
    helpers = {ops.is_ours, ops.tensors_of}
    functions = {getattr(ops, name) for name in ops.__all__ if isinstance(getattr(ops, name), FunctionType)}
    assert set(ops.DIALECT) == functions - helpers
    assert len(set(ops.DIALECT)) == len(ops.DIALECT)
    assert ops.DIALECT[: len(ops.SCORES)] == ops.SCORES
