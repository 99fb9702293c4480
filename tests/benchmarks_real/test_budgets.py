from __future__ import annotations

import budgets
import pytest
import torch

from prunec.errors import PolicyError
from prunec.frontend.sources import ImageSet
from prunec.measure import figures
from prunec.ops import Learned
from prunec.policy.policy import Policy
from tests.tiny import ViT, pixels, recognised


@pytest.fixture(scope="module")
def bench() -> budgets.Bench:
    dense = recognised(ViT(depth=6, side=8, read=lambda x: x), pixels(2, 8))
    images = ImageSet(pixels(16, 8), None, "noise")
    return budgets.Bench(dense, figures.flops(dense), images, pixels(2, 8))


@pytest.mark.parametrize(("name", "budget"), [("norm", 0.6), ("tome", 0.8)])
def test_a_preset_comes_near_a_budget_by_what_it_does(bench: budgets.Bench, name: str, budget: float) -> None:
    built = budgets.at_budget(Policy.load(name), budget, bench)
    counted = figures.flops(built.program) / bench.dense_flops
    assert built.flops == pytest.approx(counted)
    assert abs(built.flops - budget) <= budgets.FAR
    assert built.policy.name == name


def test_the_next_aim_follows_the_slope_that_was_seen() -> None:
    assert budgets._next_aim(0.6, []) == 0.6
    assert budgets._next_aim(0.6, [(0.6, 0.5)]) == pytest.approx(0.7)
    assert budgets._next_aim(0.6, [(0.6, 0.5), (0.7, 0.55)]) == pytest.approx(0.8)
    assert budgets._next_aim(0.9, [(0.9, 0.5)]) == 1.0


def test_a_budget_that_cannot_be_reached_is_reported_with_the_nearest(bench: budgets.Bench) -> None:
    with pytest.raises(budgets.FarError, match=r"it comes no nearer than \d+%, at a rate of 0.01"):
        budgets.at_budget(Policy.load("norm", blocks=[5]), 0.3, bench)


def test_a_rate_is_in_the_terms_of_the_preset() -> None:
    assert budgets.at_rate(Policy.load("tome"), 0.9).selector.remove == pytest.approx(0.1)
    assert budgets.at_rate(Policy.load("tome"), 0.9).attention == "proportional"
    assert budgets.at_rate(Policy.load("norm"), 0.9).selector.keep_per_site == 0.9


def test_tokens_that_are_lost_come_back_where_all_are_wanted(bench: budgets.Bench) -> None:
    assert budgets.restored(Policy.load("norm", restore="none"), bench.dense).restored == "share"
    assert budgets.restored(Policy.load("norm", restore="stale"), bench.dense).restored == "stale"
    with pytest.raises(PolicyError, match="99"):  # what does not fit for another reason does not fit
        budgets.restored(Policy.load("norm", blocks=[99]), bench.dense)


def test_learned_parts_are_fitted_and_said_to_be(bench: budgets.Bench) -> None:
    built = budgets.at_budget(Policy.load("dynamicvit"), 0.75, bench)
    assert any(isinstance(node.target, Learned) for node in built.program.graph.nodes)
    assert "on 16 noise" in built.calibration
    assert budgets.at_budget(Policy.load("norm"), 0.75, bench).calibration == ""


def test_one_image_runs_as_it_does_in_a_batch(bench: budgets.Bench) -> None:
    built = budgets.at_budget(Policy.load("algm"), 0.9, bench)
    image = pixels(1, 8)
    with torch.no_grad():
        torch.testing.assert_close(built.one_image().module(image), built.program.module(image))


def test_policies_are_the_same_until_they_are_trained() -> None:
    untrained = {**Policy.load("svit").model_dump(exclude_unset=True), "name": "mine", "training": None}
    assert budgets.same_rules(Policy.load("svit"), Policy.load(untrained))
    assert not budgets.same_rules(Policy.load("evit"), Policy.load("dynamic"))
