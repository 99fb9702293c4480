from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from prunec import ops
from prunec.ops.representing import stay

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


@pytest.mark.parametrize("dim", [0, 1])
def test_nearest_is_the_most_similar_patch_that_stays(dim: int) -> None:
    x = torch.randn(1, TOKENS, 4)
    index = torch.tensor([[0, 1, 3, 6, 7, 8]])
    given = x if dim == 1 else x.transpose(0, 1)
    alike, partner = ops.nearest(given, index, *ENDS, dim)
    valid = torch.tensor([[True, True, True, False, True, True]])  # 6 is padding
    fewer = ops.nearest(given, index, *ENDS, dim, valid)[1]
    for row in range(TOKENS):
        likeness = {other: float(cosine_similarity(*x[0, [row, other]], dim=0)) for other in (3, 6, 7)}
        assert partner[0, row] == max((3, 6, 7), key=likeness.__getitem__)
        assert float(alike[0, row]) == pytest.approx(max(likeness.values()), abs=1e-6)
        assert fewer[0, row] == max((3, 7), key=likeness.__getitem__)


PARTNER = torch.tensor([[0, 1, 4, 3, 4, 4]])
INDEX = torch.tensor([[0, 1, 3, 4]])  # 2 and 5 go into 4
GROUP = torch.tensor([[0, 1, 3, 2, 3, 3]])


def test_members_are_the_places_of_groups() -> None:
    assert torch.equal(ops.assign(PARTNER, INDEX), GROUP)
    assert stay(INDEX, 6).tolist() == [[True, True, False, True, True, False]]
    padded = torch.tensor([[0, 1, 3, 4, 5]])  # 5 only fills the row
    kept = stay(INDEX, 6)
    assert torch.equal(ops.assign(PARTNER, padded, kept), GROUP)


@pytest.mark.parametrize("dim", [0, 1])
def test_merge_is_the_weighted_mean_of_each_group_and_unmerge_gives_it_to_all(dim: int) -> None:
    x, weight = torch.randn(1, 6, 3), torch.tensor([[1.0, 1.0, 2.0, 1.0, 1.0, 3.0]])
    given = x if dim == 1 else x.transpose(0, 1)
    found = ops.pool(given, INDEX, GROUP, weight, dim)
    merged = (2 * x[:, 2] + x[:, 4] + 3 * x[:, 5]) / 6
    expected = torch.stack([x[:, 0], x[:, 1], x[:, 3], merged], dim=1)
    torch.testing.assert_close(found if dim == 1 else found.transpose(0, 1), expected)
    again = ops.unmerge(found, GROUP, dim)
    again = again if dim == 1 else again.transpose(0, 1)
    torch.testing.assert_close(again, expected[:, [0, 1, 3, 2, 3, 3]])


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
