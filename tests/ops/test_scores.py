from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunec import ops
from tests.ops.cases import as_stream, double, equal, quick


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


def test_random_scores_of_pairs_leave_their_targets_alone() -> None:
    score = torch.tensor([[float("inf"), -0.5, float("inf"), -0.9]])
    found = ops.random_score(torch.zeros(1, 4, 3), 1, score)
    assert found.isposinf().tolist() == [[True, False, True, False]]
    assert ((found[:, [1, 3]] >= 0) & (found[:, [1, 3]] < 1)).all()


@pytest.mark.parametrize("dim", [0, 1])
def test_one_score_of_a_place_stands_beside_every_image(dim: int) -> None:
    score, x = torch.randn(1, 5), torch.randn(2, 5, 3)
    assert torch.equal(ops.beside(score, as_stream(x, dim), dim), score.repeat(2, 1))


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_the_map_is_what_every_row_pays(heads: tuple[int, int]) -> None:
    query = torch.randn(2, heads[0], 5, 4, dtype=double)
    key = torch.randn(2, heads[1], 5, 4, dtype=double)
    mask = (torch.rand(2, 1, 5, 5) > 0.4) | torch.eye(5, dtype=torch.bool)
    for each in (None, mask):
        found = ops.attention_map(query, key, 0.3, each).mean(dim=1)
        for row in range(5):
            equal(found[:, row], attention_of_row(query, key, row, 0.3, each))


def test_scores_times_the_norm_of_values_over_all_heads() -> None:
    score, value = torch.rand(2, 5, dtype=double), torch.randn(2, 3, 5, 4, dtype=double)
    norms = torch.stack([value[:, :, row].flatten(1).norm(dim=1) for row in range(5)], dim=1)
    equal(ops.times_values(score, value), score * norms)


def test_received_is_what_patches_pay_relative_to_the_best_and_the_values_share() -> None:
    attention, value = torch.rand(1, 2, 6, 6, dtype=double), torch.randn(1, 2, 6, 3, dtype=double)
    patches = range(1, 5)
    worth = [sum(max(float(value[0, h, row, c]) for h in range(2)) for c in range(3)) for row in range(6)]

    def expected(rows: list[int]) -> dict[int, float]:
        paid = {
            to: sum(max(float(attention[0, h, by, to]) for h in range(2)) for by in rows) for to in patches
        }
        total = sum(math.exp(worth[row]) for row in rows)
        most = max(paid.values())
        return {to: paid[to] / most + (math.exp(worth[to]) / total if to in rows else 0.0) for to in patches}

    found = ops.received(attention, value, 1, 1)[0].tolist()
    assert found[0] == found[5] == 0.0
    assert dict(zip(patches, found[1:5], strict=True)) == pytest.approx(expected([1, 2, 3, 4]))
    valid = torch.tensor([[True, True, True, False, True, True]])  # 3 pays nothing and has no share
    found = ops.received(attention, value, 1, 1, valid)[0].tolist()
    assert dict(zip(patches, found[1:5], strict=True)) == pytest.approx(expected([1, 2, 4]))


def test_change_is_how_far_a_token_moved() -> None:
    before = torch.zeros(1, 2, 2)
    assert ops.change(before, torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])).tolist() == [[5.0, 0.0]]


def test_doubt_is_least_where_one_class_has_it_all() -> None:
    found = ops.doubt(torch.tensor([[[100.0, 0.0], [0.0, 0.0]]]))
    assert found.tolist() == [[-1.0, -0.5]]
