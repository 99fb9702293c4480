from __future__ import annotations

import measures
import pytest
import torch


def test_tokens_beside_the_same_and_beside_twice_as_much() -> None:
    tokens, heat = torch.randn(2, 5, 8), torch.rand(2, 4, 4)
    same = measures.of_tokens(tokens, tokens, heat, heat)
    assert same["l2"] == 0
    assert [same[name] for name in ("cosine", "class", "heatmap")] == pytest.approx([1, 1, 1])
    twice = measures.of_tokens(2 * tokens, tokens, 1 - heat, heat)
    assert twice["l2"] == pytest.approx(1)
    assert twice["cosine"] == pytest.approx(1)
    assert twice["heatmap"] == pytest.approx(-1)


def test_only_the_class_token_counts_for_class() -> None:
    tokens, heat = torch.randn(2, 5, 8), torch.rand(2, 4, 4)
    other = torch.cat([tokens[:, :1], -tokens[:, 1:]], dim=1)
    found = measures.of_tokens(other, tokens, heat, heat)
    assert found["class"] == pytest.approx(1)
    assert found["cosine"] == pytest.approx((1 - 4) / 5)


def test_a_probe_tells_what_can_be_told() -> None:
    labels = torch.arange(40) % 2 == 0
    x = torch.randn(40, 6)
    x[:, 2] = labels.float() * 4 + 0.1 * torch.randn(40)
    probe = measures.Probe.fitted(x, labels)
    scores = probe.scores(x)
    assert measures.of_scores(scores, scores, labels) == {"accuracy": 1.0, "auc": 1.0, "agreement": 1.0}
    turned = measures.of_scores(-scores, scores, labels)
    assert turned == {"accuracy": 0.0, "auc": 0.0, "agreement": 0.0}


def test_a_tie_counts_half_under_the_curve() -> None:
    labels = torch.tensor([True, True, False, False])
    assert measures.area_under_curve(torch.tensor([2.0, 1.0, 1.0, 0.0]), labels) == pytest.approx(3.5 / 4)


def test_wins_count_seeds_and_less_is_better_of_l2_alone() -> None:
    low, high = measures.Spread((0.1, 0.2, 0.3)), measures.Spread((0.2, 0.2, 0.4))
    assert measures.wins(low, high, "l2") == 2
    assert measures.wins(low, high, "auc") == 0
    assert measures.wins(high, low, "auc") == 2


def test_spread_over_seeds() -> None:
    found = measures.over_seeds([{"l2": 1.0}, {"l2": 3.0}])["l2"]
    assert (found.mean, found.deviation) == (2.0, pytest.approx(2**0.5))
    assert found.as_dict() == {"mean": 2.0, "spread": 1.41421, "seeds": [1.0, 3.0]}
