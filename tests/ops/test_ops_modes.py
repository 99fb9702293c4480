"""The operations that modes are made of, each beside plain Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from prunec import compat, ops
from prunec.ops import Learned
from prunec.probing.watch import Neutral, neutral

BATCH, TOKENS, ENDS = 3, 9, (1, 2)
cheap = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def scores(draw: st.DrawFn) -> Tensor:
    """Few different numbers, so that there are ties."""
    numbers = st.lists(st.integers(0, 3), min_size=BATCH * TOKENS, max_size=BATCH * TOKENS)
    return torch.tensor(draw(numbers), dtype=torch.float).view(BATCH, TOKENS)


@st.composite
def scored(draw: st.DrawFn) -> Tensor:
    return scores(draw)


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Which rows are kept: protected ones, and any others."""
    kept = scores(draw) > 1
    kept[:, : ENDS[0]] = kept[:, TOKENS - ENDS[1] :] = True
    return kept


def rows(mask: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask]


# --- who stays --------------------------------------------------------------------------------


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


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_fuse_each_is_fuse_where_counts_are_equal(count: int, uniform: bool) -> None:
    x, score = torch.randn(BATCH, TOKENS, 4), torch.rand(BATCH, TOKENS)
    index = ops.select(score, count, *ENDS, True)
    expected = ops.fuse(x, index, score, ENDS[1], 1, uniform)
    kept = ops.topk_mask(score, count, *ENDS)
    joined = ops.with_best_dropped(kept, score, *ENDS)
    other = ops.pack(joined, *ENDS)
    found = ops.fuse_each(x, other, score, kept, 1, joined, None, uniform)
    order = index.argsort(dim=1)  # fuse has the sum behind the kept ones, whatever its place was
    torch.testing.assert_close(found, expected.gather(1, order.unsqueeze(2).expand(-1, -1, 4)))


# --- in rows ----------------------------------------------------------------------------------


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


@cheap
@given(kept=masks(), swapped=st.booleans())
def test_picked_rows_can_be_spread_and_put_again(kept: Tensor, swapped: bool) -> None:
    axes = (2, 1) if swapped else (1, 0)  # of tokens, of images
    x = torch.randn(4, BATCH, TOKENS) if swapped else torch.randn(BATCH, TOKENS, 4)
    index = ops.pack(kept, *ENDS)
    valid = ops.valid_mask(kept, index)
    chosen, slots = ops.rows_of(valid), ops.slots(valid)
    places = ops.places(index, chosen, TOKENS)
    packed = ops.unpad(x, places, *axes)
    plain = x.permute(1, 2, 0) if swapped else x
    values = packed.permute(1, 2, 0)[0] if swapped else packed[0]
    assert torch.equal(values, plain[kept])  # in the order of images, and of rows
    assert ops.token_numbers(index, chosen)[0].tolist() == [place for row in rows(kept) for place in row]
    spread = ops.pad(packed, slots, *axes)
    again = spread.permute(1, 2, 0) if swapped else spread
    assert torch.equal(again[valid], plain[kept])
    zeros = ops.put(torch.zeros_like(x), packed, places, *axes)
    whole = zeros.permute(1, 2, 0) if swapped else zeros
    assert torch.equal(whole, torch.where(kept.unsqueeze(2), plain, 0.0))


@cheap
@given(outer=masks(), inner=masks())
def test_rows_among_packed_rows(outer: Tensor, inner: Tensor) -> None:
    x = torch.randn(BATCH, TOKENS, 4)
    index = ops.pack(outer, *ENDS)
    valid = ops.valid_mask(outer, index)
    packed = ops.unpad(x, ops.places(index, ops.rows_of(valid), TOKENS))
    kept = inner.gather(1, index) & valid
    second = ops.pack(kept, *ENDS)
    among = ops.places_among(ops.slots(valid), second, ops.rows_of(ops.valid_mask(kept, second)))
    fewer = ops.keep(packed, among)
    assert torch.equal(fewer[0], x[outer & inner])
    put = ops.put_among(torch.zeros_like(packed), fewer, among)
    assert torch.equal(put[0], torch.where(inner.unsqueeze(2), x, 0.0)[outer])


def test_a_fixed_total() -> None:
    valid = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    assert torch.equal(ops.fixed_rows_of(valid, 2), ops.rows_of(valid))


# --- what makes no difference -----------------------------------------------------------------

aten = torch.ops.aten


def found_for(target: Any, *args: Any, keeps_rows: bool = False) -> Neutral | None:
    """What extra rows of [B, n, C], on axis 1, must hold for a call."""
    mode = compat.fake_mode_of(_graph())
    x = _graph().find_nodes(op="placeholder")[0].meta["val"]
    graph = fx.Graph()
    operand = graph.placeholder("x")
    operand.meta["val"] = x
    node = graph.call_function(target, (operand, *args))
    with mode:
        node.meta["val"] = target(x, *args)
    (symbol,) = compat.expression(x.shape[1]).free_symbols
    return neutral(node, operand, (1, 1 if keeps_rows else None), {symbol: 7})


def _graph() -> fx.Graph:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    if not _GRAPHS:
        shapes = ({0: torch.export.Dim("b", min=2), 1: torch.export.Dim("n", min=2)},)
        _GRAPHS.append(torch.export.export(Same(), (torch.randn(3, 11, 4),), dynamic_shapes=shapes).graph)
    return _GRAPHS[0]


_GRAPHS: list[fx.Graph] = []


@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        (aten.sum.dim_IntList, ([1],), Neutral(0.0, False)),
        (aten.mean.dim, ([1],), Neutral(0.0, True)),
        (aten.amax.default, ([1],), Neutral(float("-inf"), False)),
        (aten.amin.default, ([1],), Neutral(float("inf"), False)),
        (aten.logsumexp.default, ([1],), Neutral(float("-inf"), False)),
        (aten.prod.dim_int, (1,), None),
        (aten.var.correction, ([1],), None),
    ],
)
def test_what_a_reduction_does_not_see(target: Any, args: tuple[Any, ...], expected: Neutral | None) -> None:
    assert found_for(target, *args) == expected


def test_a_softmax_over_rows_does_not_see_minus_infinity() -> None:
    assert found_for(aten.softmax.int, 1, keeps_rows=True) == Neutral(float("-inf"), False)


def test_what_mixes_neighbours_sees_everything() -> None:
    kernel = torch.ones(3, 1, 1, 1)

    def convolved(x: Tensor) -> Tensor:
        weight = kernel[..., 0].to(x.device).permute(1, 2, 0).expand(4, 1, 3)
        return aten.conv1d.default(x.transpose(1, 2), weight, None, [1], [1], [1], 4).transpose(1, 2)

    assert found_for(convolved, keeps_rows=True) is None


def test_what_depends_on_the_order_of_rows_is_not_taken_for_a_sum() -> None:
    # a running sum does not see zeros, but rows before it
    assert found_for(aten.cumsum.default, 1, keeps_rows=True) is None


def test_filled_and_rescaled_a_mean_is_that_of_the_rows_that_count() -> None:
    x, valid = torch.randn(3, 6, 4), torch.rand(3, 6) > 0.4
    valid[:, 0] = True
    filled = ops.fill(x, valid, 0.0, 1, 0)
    found = ops.rescale(filled.mean(dim=1), filled, valid, 1, 0)
    expected = torch.stack([image[there].mean(dim=0) for image, there in zip(x, valid, strict=True)])
    torch.testing.assert_close(found, expected)
    largest = ops.fill(x.transpose(0, 1), valid, float("-inf"), 0, 1).amax(dim=0)  # tokens first
    assert torch.equal(
        largest, torch.stack([image[there].amax(dim=0) for image, there in zip(x, valid, strict=True)])
    )


# --- learned scorers --------------------------------------------------------------------------


class Beside(nn.Module):
    """Each patch beside the mean of those that count."""

    context = takes_valid = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        share = torch.ones(x.shape[:2]) if valid is None else valid.to(x.dtype)
        mean = (x * share.unsqueeze(2)).sum(1, keepdim=True) / share.sum(1)[:, None, None]
        return (x - mean) @ self.weight


def test_a_scorer_that_wants_to_know_is_told_which_patches_count() -> None:
    module, x = Beside(), torch.randn(2, TOKENS, 4)
    learned = Learned(module, "beside", 0)
    assert learned.takes_valid
    valid = torch.rand(2, TOKENS) > 0.4
    valid[:, 3] = True
    found = learned(x, *ENDS, 1, valid, module.weight)
    for image, there, scores in zip(x, valid, found, strict=True):
        patches = there.clone()
        patches[:1] = patches[-2:] = False
        torch.testing.assert_close(scores[patches], module(image[patches][None])[0])
        assert not scores[:1].any()
        assert not scores[-2:].any()
    torch.testing.assert_close(learned(x, *ENDS, 1, None, module.weight)[:, 1:-2], module(x[:, 1:-2]))
