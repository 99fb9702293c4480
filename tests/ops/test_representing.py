from __future__ import annotations

import decimal
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from prunec import ops
from prunec.ops.representing import stay
from tests.ops.cases import as_stream

TOKENS, ENDS = 9, (2, 1)
EVEN, ODD = [2, 4, 6], [3, 5, 7]  # of the patches


def test_keys_are_averaged_over_heads() -> None:
    key = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(ops.token_keys(key), (key[:, 0] + key[:, 1] + key[:, 2]) / 3)


def test_each_even_patch_is_paired_with_the_odd_one_most_like_it() -> None:
    metric = torch.randn(2, TOKENS, 4)
    score, partner = ops.pairs(metric, *ENDS)
    for image in range(2):
        for row in range(TOKENS):
            if row not in EVEN:  # a target, or protected: it never leaves
                assert score[image, row] == float("inf")
                assert partner[image, row] == row
                continue
            alike = {other: float(cosine_similarity(*metric[image, [row, other]], dim=0)) for other in ODD}
            best = max(ODD, key=alike.__getitem__)
            assert partner[image, row] == best
            assert float(score[image, row]) == pytest.approx(-alike[best], abs=1e-6)


def test_padding_is_nobodys_partner() -> None:
    metric = torch.randn(2, TOKENS, 4)
    every = ops.pairs(metric, *ENDS, torch.ones(2, TOKENS, dtype=torch.bool))
    for found, expected in zip(every, ops.pairs(metric, *ENDS), strict=True):
        torch.testing.assert_close(found, expected)
    metric[:, 5] = metric[:, 2]  # the likest of all, but padding
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    valid[:, 5] = False
    partner = ops.pairs(metric, *ENDS, valid)[1]
    assert ops.pairs(metric, *ENDS)[1][:, 2].tolist() == [5, 5]
    assert not (partner[:, EVEN] == 5).any()


def test_windows_of_four_go_into_their_first_and_a_cut_border_stays() -> None:
    metric = torch.randn(1, 1 + 3 * 4, 5)  # three rows of four patches behind one token
    score, partner = ops.windows(metric, 3, 4, 1)
    # windows {1, 2, 5, 6} and {3, 4, 7, 8}; 9 to 12 are the row that is cut
    assert partner.tolist() == [[0, 1, 1, 3, 3, 1, 1, 3, 3, 9, 10, 11, 12]]
    for window in ([1, 2, 5, 6], [3, 4, 7, 8]):
        each = [(i, j) for i in window for j in window if i < j]
        mean = sum(float(cosine_similarity(*metric[0, [i, j]], dim=0)) for i, j in each) / 6
        assert score[0, window[0]] == float("inf")
        assert score[0, window[1:]].tolist() == pytest.approx([-mean] * 3, abs=1e-6)
    assert torch.isinf(score[0, [0, 9, 10, 11, 12]]).all()


# --- similarities, novelty, nearest ------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1])
def test_similarities_are_cosines(dim: int) -> None:
    x = torch.randn(2, TOKENS, 4)
    found = ops.similarities(as_stream(x, dim), dim=dim)
    for image, row, other in itertools.product(range(2), range(TOKENS), range(TOKENS)):
        expected = float(cosine_similarity(*x[image, [row, other]], dim=0))
        assert float(found[image, row, other]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("gone", [(), (3, 5)])
def test_similarities_may_be_of_what_sets_patches_apart(dim: int, gone: tuple[int, ...]) -> None:
    x = torch.randn(1, TOKENS, 4) + 3
    valid = torch.ones(1, TOKENS, dtype=torch.bool)
    valid[:, list(gone)] = False
    patches = [row for row in range(ENDS[0], TOKENS - ENDS[1]) if row not in gone]
    found = ops.similarities(as_stream(x, dim), ENDS, dim, valid if gone else None)
    mean = sum(x[0, row] for row in patches) / len(patches)
    apart = [(row - mean) / (row - mean).norm() ** 0.5 for row in x[0]]
    for row, other in itertools.product(range(TOKENS), range(TOKENS)):
        expected = 1 - float((apart[row] - apart[other]).square().sum()) / 2
        assert float(found[0, row, other]) == pytest.approx(expected, abs=1e-5)


def novelty_by_hand(similar: Tensor, patches: list[int], order: list[int]) -> list[float]:
    """One image: of each row, how unlike it is to the patches before it; `order`: all rows."""
    found = [math.inf] * len(order)
    for place, row in enumerate(order):
        before = [other for other in order[:place] if other in patches]
        found[row] = 1 - max([-math.inf, *(float(similar[row, other]) for other in before)])
    return found


def jumping(rows: int) -> list[int]:
    """The multiples of the golden ratio, of which only the fraction counts, in ascending order."""
    golden = (decimal.Decimal(5).sqrt() - 1) / 2
    step = int(golden * 2**32)  # as many binary digits as the operation has
    return sorted(range(rows), key=lambda row: row * step % 2**32)


@pytest.mark.parametrize("gone", [(), (4, 6)])
@pytest.mark.parametrize("rows", [TOKENS, 40])
def test_novelty_is_how_unlike_a_patch_is_to_those_before_it(rows: int, gone: tuple[int, ...]) -> None:
    x = torch.randn(2, rows, 5)
    similar = ops.similarities(x)
    patches = [row for row in range(ENDS[0], rows - ENDS[1]) if row not in gone]
    valid = torch.ones(2, rows, dtype=torch.bool)
    valid[:, list(gone)] = False
    found = ops.novelty(similar, *ENDS, valid if gone else None)
    for image in range(2):
        expected = novelty_by_hand(similar[image], patches, jumping(rows))
        assert found[image].tolist() == pytest.approx(expected, abs=1e-6)
    least = min(patches, key=jumping(rows).index)
    assert found[:, least].isinf().all()  # nothing comes before it


def test_a_token_of_the_fixed_order_does_not_care_how_many_stand_behind_it() -> None:
    assert [row for row in jumping(300) if row < 20] == jumping(20)


def test_what_is_new_counts_as_much_as_it_matters() -> None:
    similar, logs = ops.similarities(torch.randn(2, TOKENS, 5)), torch.randn(2, TOKENS)
    plain = ops.novelty(similar, *ENDS)
    found = ops.novelty(similar, *ENDS, None, logs, 0.25)
    for image, row in itertools.product(range(2), range(TOKENS)):
        expected = float(plain[image, row]) * math.exp(logs[image, row]) ** 0.25
        assert float(found[image, row]) == pytest.approx(expected, rel=1e-5)


def test_of_many_alike_one_is_new() -> None:
    x = torch.randn(1, 3, 4)[:, [0, 1, 1, 2, 2, 2, 1]]
    found = ops.novelty(ops.similarities(x), 0, 0)[0]
    assert int((found > 1e-4).sum()) == 3


@pytest.mark.parametrize("dim", [0, 1])
def test_nearest_is_the_most_similar_patch_that_stays(dim: int) -> None:
    x = torch.randn(1, TOKENS, 4)
    index = torch.tensor([[0, 1, 3, 6, 7, 8]])
    similar = ops.similarities(as_stream(x, dim), dim=dim)
    alike, partner = ops.nearest(similar, index, *ENDS)
    kept = stay(index, TOKENS)
    kept[:, 6] = False  # it only fills the row
    fewer = ops.nearest(similar, index, *ENDS, kept)[1]
    for row in range(TOKENS):
        likeness = {other: float(cosine_similarity(*x[0, [row, other]], dim=0)) for other in (3, 6, 7)}
        assert partner[0, row] == max((3, 6, 7), key=likeness.__getitem__)
        assert float(alike[0, row]) == pytest.approx(max(likeness.values()), abs=1e-6)
        assert fewer[0, row] == max((3, 7), key=likeness.__getitem__)


# --- assign, pool, share -----------------------------------------------------------------------

PARTNER = torch.tensor([[0, 1, 4, 3, 4, 4]])
INDEX = torch.tensor([[0, 1, 3, 4]])  # 2 and 5 go into 4
GROUP = torch.tensor([[0, 1, 3, 2, 3, 3]])


def test_a_group_is_the_place_of_what_stands_for_a_token() -> None:
    assert torch.equal(ops.assign(PARTNER, INDEX), GROUP)
    assert stay(INDEX, 6).tolist() == [[True, True, False, True, True, False]]
    padded = torch.tensor([[0, 1, 3, 4, 5]])  # 5 only fills the row
    kept = stay(INDEX, 6)
    assert torch.equal(ops.assign(PARTNER, padded, kept), GROUP)


@pytest.mark.parametrize("dim", [0, 1])
def test_pool_is_the_weighted_mean_of_each_group(dim: int) -> None:
    x, weight = torch.randn(1, 6, 3), torch.tensor([[1.0, 1.0, 2.0, 1.0, 1.0, 3.0]])
    found = ops.pool(as_stream(x, dim), INDEX, GROUP, weight, dim)
    merged = (2 * x[:, 2] + x[:, 4] + 3 * x[:, 5]) / 6
    expected = torch.stack([x[:, 0], x[:, 1], x[:, 3], merged], dim=1)
    torch.testing.assert_close(as_stream(found, dim), expected)
    plain = ops.pool(as_stream(x, dim), INDEX, GROUP, None, dim)
    mean = (x[:, 2] + x[:, 4] + x[:, 5]) / 3
    torch.testing.assert_close(as_stream(plain, dim)[:, 3], mean)


@pytest.mark.parametrize("dim", [0, 1])
def test_each_token_takes_the_value_or_the_update_of_what_stands_for_it(dim: int) -> None:
    base, index = torch.randn(2, 6, 3), torch.tensor([[0, 1, 3, 4], [0, 2, 3, 5]])
    group = torch.tensor([[0, 1, 3, 2, 3, 3], [0, 2, 1, 2, 1, 3]])
    at = torch.randn(2, 4, 3)  # not the rows of base: they may have been merged
    x = torch.randn(2, 4, 3)
    streams = (as_stream(each, dim) for each in (x, base, at))
    short, whole, then = streams
    copied = as_stream(ops.share(short, group, dim=dim), dim)
    updated = as_stream(ops.share(short, group, whole, then, dim), dim)
    for image, row in itertools.product(range(2), range(6)):
        place = group[image, row]
        torch.testing.assert_close(copied[image, row], x[image, place])
        torch.testing.assert_close(updated[image, row], base[image, row] + x[image, place] - at[image, place])
    kept = ops.gather(whole, index, dim)
    nothing = ops.share(kept, group, whole, kept, dim)  # no update: every token is what it was
    torch.testing.assert_close(nothing, whole)


def test_updates_are_shared_under_autocast() -> None:
    base, group = torch.randn(2, 7, 8), torch.tensor([[0, 1, 1, 2, 2, 3, 3]] * 2)
    at = ops.gather(base, torch.tensor([[0, 1, 3, 5]] * 2))
    x = at + torch.randn(2, 4, 8)
    expected = ops.share(x, group, base, at)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.share(x, group, base, at)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_sizes_add_up() -> None:
    like = torch.zeros(1)
    assert ops.sizes(GROUP, INDEX, like).tolist() == [[1, 1, 1, 3]]
    second = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 1, 3]])
    assert ops.sizes(*second, like, ops.sizes(GROUP, INDEX, like)).tolist() == [[1, 2, 3]]
    alike = torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.0, -0.5]])  # unlike counts for nothing, never for less
    assert ops.sizes(GROUP, INDEX, like, alike=alike).tolist() == [[1, 1, 1, 1.5]]
    gone = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    assert ops.sizes(GROUP, INDEX, like, weight=gone).tolist() == [[1, 1, 1, 2]]


def test_what_is_remembered_stays_or_is_among_the_best() -> None:
    score = torch.tensor([[9.0, 9.0, 0.5, 0.1, 0.2, 0.9]])
    assert ops.remembered(score, INDEX, 2, 2, 0).tolist() == [[1, 1, 1, 1, 1, 1]]
    assert ops.remembered(score, INDEX, 1, 2, 0).tolist() == [[1, 1, 0, 1, 1, 1]]
    valid = torch.tensor([[True] * 5 + [False]])
    assert ops.remembered(score, INDEX, 1, 2, 0, valid=valid).tolist() == [[1, 1, 1, 1, 1, 0]]


def test_gradients_flow_through_a_merge() -> None:
    x: Tensor = torch.randn(1, 6, 3, dtype=torch.double, requires_grad=True)
    weight = torch.rand(1, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: ops.pool(x, INDEX, GROUP, weight), (x, weight))


def test_gradients_flow_through_what_is_shared() -> None:
    x, base, at = (torch.randn(1, rows, 3, dtype=torch.double, requires_grad=True) for rows in (4, 6, 4))
    assert torch.autograd.gradcheck(lambda x, base, at: ops.share(x, GROUP, base, at), (x, base, at))
    assert torch.autograd.gradcheck(lambda x: ops.share(x, GROUP), x)


def test_gradients_flow_through_similarities() -> None:
    x = torch.randn(1, TOKENS, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.similarities(x, ENDS), x)
    score = ops.novelty(ops.similarities(x), *ENDS)
    assert torch.autograd.grad(score[score.isfinite()].sum(), x)[0].ne(0).any()
