"""A schedule written into a policy: the compiler's own plan arrives at just those lengths."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.errors import PolicyError
from prunec.latency.probe import opened
from prunec.policy.policy import Policy, presets
from prunec.policy.site_plan import make_plan
from prunec.schedules.schedule import (
    check_schedulable,
    last_block,
    limits_of,
    scheduled,
    shortest,
    unprunable,
)
from prunec.structure import Anatomy
from tests.planner.anatomies import anatomy
from tests.policies import step, written

many = settings(max_examples=25, deadline=None, derandomize=True, database=None)

ANATOMIES = {
    "plain": anatomy(depth=6),
    "large": anatomy(depth=12, grid=196),
    "registers": anatomy(depth=5, prefix=5, grid=24),
    "detector": anatomy(depth=6, prefix=1, suffix=6, grid=28, head="tokens"),
    "even prefix": anatomy(depth=6, prefix=2, grid=27),
}


@st.composite
def schedules(draw: st.DrawFn, policy: Policy, model: Anatomy) -> dict[int, int]:
    """Any schedule that a policy can have on a model."""
    last = last_block(policy, model)
    blocks = draw(st.sets(st.integers(0, last), min_size=1, max_size=last + 1))
    entering, found = model.tokens, dict[int, int]()
    for block in sorted(blocks):
        least = shortest(policy, model, entering)
        if least >= entering:
            break
        found[block] = draw(st.integers(least, entering - 1))
        entering = model.tokens if policy.reactivate else found[block]
    return found


POLICIES = (
    "norm",
    "evit",
    "pomt",
    "tome",
    "dynamic",
    "svit",
    "cropr",
    "cropr-drop",
    "ats",
    "diffrate",
    "bavit",
)


def policy_for(preset: str, model: Anatomy) -> Policy:
    policy = Policy.load(preset)
    return policy.override(restore="stale") if model.wants_all and policy.restored == "none" else policy


@pytest.mark.parametrize("model", ANATOMIES)
@pytest.mark.parametrize("preset", POLICIES)
def test_the_plan_of_a_scheduled_policy_arrives_at_just_these_lengths(preset: str, model: str) -> None:
    shape = ANATOMIES[model]
    policy = policy_for(preset, shape)

    @many
    @given(schedule=schedules(policy, shape))
    def check(schedule: Mapping[int, int]) -> None:
        made = scheduled(policy, shape, schedule)
        assert {site.block: site.leaves for site in make_plan(made, shape).sites} == schedule
        again = Policy.load(made.model_dump())
        assert again == made
        assert scheduled(made, shape, schedule) == made

    check()


def test_what_a_schedule_does_not_say_stays_as_the_policy_has_it() -> None:
    policy = Policy.load("cropr")
    made = scheduled(policy, ANATOMIES["plain"], {1: 20, 3: 9})
    kept = ("name", "scorer", "fate", "restore", "reactivate", "training", "attention", "weights")
    assert {name: getattr(made, name) for name in kept} == {name: getattr(policy, name) for name in kept}
    assert made.sites.where == policy.sites.where
    assert made.sites.blocks == (1, 3)
    assert made.selector.keep_per_site == pytest.approx((19 / 25, 8 / 19))
    assert (made.selector.remove, made.selector.multiple_of, made.selector.least) == (None, 1, 1)


def test_an_adaptive_threshold_becomes_one_that_is_calibrated() -> None:
    data = written(scorer={"kind": "similarity"}, selector={"kind": "adaptive"}, fate="merge")
    made = scheduled(Policy.load(data), ANATOMIES["plain"], {1: 20})
    assert made.selector.kind == "threshold"
    assert made.selector.keep_per_site == pytest.approx((19 / 25,))


def test_no_sites_at_all_is_a_schedule_too() -> None:
    made = scheduled(Policy.load("evit"), ANATOMIES["plain"], {})
    assert make_plan(made, ANATOMIES["plain"]).sites == ()


def test_a_scheduled_policy_survives_its_own_yaml(tmp_path: object) -> None:
    made = scheduled(Policy.load("dynamic"), ANATOMIES["large"], {3: 120, 7: 61})
    file = tmp_path / "mine.yaml"  # type: ignore[operator]
    file.write_text(made.to_yaml())
    again = Policy.load(file)
    assert [site.leaves for site in make_plan(again, ANATOMIES["large"]).sites] == [120, 61]


# Refusals ---------------------------------------------------------------------------------------------------

REFUSED = {
    "several steps": written(then=[step()]),
    "by how sure it is": written(
        scorer={"kind": "grader"}, selector={"kind": "threshold", "at": 0.9}, fate="exit"
    ),
    "whole windows": written(
        scorer={"kind": "similarity", "pairs": "windows"},
        selector={"kind": "threshold", "keep_per_site": 0.5},
        fate="merge",
    ),
    "has no sites": written(sites={"where": "before_block", "blocks": []}),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_a_policy_without_counts_to_choose_is_refused(reason: str) -> None:
    policy = Policy.load(REFUSED[reason])
    with pytest.raises(PolicyError, match=reason):
        check_schedulable(policy)
    with pytest.raises(PolicyError, match="there is no schedule to choose"):
        scheduled(policy, ANATOMIES["plain"], {1: 20})


@pytest.mark.parametrize(
    ("preset", "schedule", "reason"),
    [
        ("norm", {6: 20}, "there is no block 6, the model has blocks 0 to 5"),
        ("norm", {-1: 20}, "there is no block -1"),
        ("norm", {1: 26}, "26 tokens cannot leave the site of block 1: 26 enter, so 2 to 25 can"),
        ("norm", {1: 1}, "1 tokens cannot leave the site of block 1"),
        ("norm", {1: 20, 2: 20}, "20 tokens cannot leave the site of block 2: 20 enter, so 2 to 19 can"),
        ("evit", {1: 2}, "so 3 to 25 can"),
        ("tome", {1: 13}, "26 enter, so 14 to 25 can"),
        ("tome", {1: 14, 2: 7}, "14 enter, so 8 to 13 can"),
        ("svit", {1: 20, 2: 26}, "26 tokens cannot leave the site of block 2: 26 enter, so 2 to 25 can"),
        ("evit", {5: 20}, "block 5 cannot have a site.*up to block 4 can"),
        ("cropr", {5: 20}, "block 5 cannot have a site.*up to block 4 can"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_what_can(
    preset: str, schedule: dict[int, int], reason: str
) -> None:
    with pytest.raises(PolicyError, match=reason) as caught:
        scheduled(Policy.load(preset), ANATOMIES["plain"], schedule)
    block = max(schedule)
    assert f"block {block}" in str(caught.value.where)


@pytest.mark.parametrize("schedule", [{1: 14}, {1: 25, 2: 13}])
def test_the_shortest_stream_by_similarity_is_half_of_its_patches(schedule: dict[int, int]) -> None:
    """The near miss of the refusals above."""
    made = scheduled(Policy.load("tome"), ANATOMIES["plain"], schedule)
    assert {site.block: site.leaves for site in make_plan(made, ANATOMIES["plain"]).sites} == schedule


# Limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", POLICIES)
@pytest.mark.parametrize("model", ANATOMIES)
def test_the_last_block_that_may_have_a_site_is_the_last_one_that_makes_one(preset: str, model: str) -> None:
    shape = ANATOMIES[model]
    policy = policy_for(preset, shape)
    sites = make_plan(opened(policy, range(shape.depth)), shape).sites
    assert last_block(policy, shape) == max(site.block for site in sites)
    assert limits_of(policy, shape, first=2, sites=3).last == last_block(policy, shape)


def test_limits_leave_an_eighth_of_the_patches_eight_at_most() -> None:
    limits = limits_of(Policy.load("evit"), ANATOMIES["large"], first=2, sites=3)
    assert (limits.first, limits.least, limits.sites, limits.returns) == (2, 10, 3, False)
    assert limits_of(Policy.load("norm"), ANATOMIES["plain"], first=1, sites=2).least == 4
    assert limits_of(Policy.load("norm"), ANATOMIES["plain"], first=1, sites=2, least=9).least == 9


def test_a_reactivating_policy_has_as_many_sites_as_blocks() -> None:
    limits = limits_of(Policy.load("svit"), ANATOMIES["plain"], first=2, sites=3)
    assert limits.sites is None
    assert limits.returns


def test_what_is_no_patch_cannot_be_pruned() -> None:
    assert unprunable(Policy.load("norm"), ANATOMIES["detector"]) == 7
    assert unprunable(Policy.load("pomt"), ANATOMIES["registers"]) == 6


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_is_schedulable_or_says_why(name: str) -> None:
    planned = name not in ("none", "algm", "dtop")
    with (
        nullcontext()
        if planned
        else pytest.raises(PolicyError, match=f"policy '{name}' .*there is no schedule to choose")
    ):
        check_schedulable(Policy.load(name))
