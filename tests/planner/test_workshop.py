"""What is built has a name that tells it from all others, and comes to a policy."""

from __future__ import annotations

import pytest

from prunec.planner.workshop import Candidate, Name, described, policy_of
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal
from tests.planner.imagined import POLICY, mapped


def test_the_same_schedule_of_two_policies_has_two_names() -> None:
    plan, other = mapped(), mapped(policy=Policy.load("norm"))
    choice = plan.reaching(Goal(latency=0.7))
    assert choice is not None
    assert Name.of(plan, choice) == Name.of(mapped(), choice)
    assert Name.of(plan, choice) != Name.of(other, choice)
    assert Name.of(plan, choice) != Name.of(mapped(mode="padded"), choice)


def test_a_candidate_comes_to_the_policy_with_its_schedule() -> None:
    made = policy_of(mapped(), {3: 13, 6: 5}, None)
    assert (made.name, made.sites.blocks) == (POLICY.name, (3, 6))


@pytest.mark.parametrize(
    ("goal", "meets"),
    [
        (Goal(latency=0.6), True),
        (Goal(latency=0.59), False),
        (Goal(max_drop=0.2), True),
        (Goal(max_drop=0.1), False),
    ],
)
def test_what_is_measured_meets_a_goal_or_not(goal: Goal, meets: bool) -> None:
    assert Candidate("static", {3: 9}, 0.1, 9.0, 0.6, 0.15).meets(goal) is meets


def test_blocks_in_a_row_are_named_once() -> None:
    assert described({}) == "no site"
    assert described({7: 48, 3: 112}) == "block 3: 112, block 7: 48"
    assert described({3: 9, 4: 9, 5: 9, 7: 9}) == "blocks 3 to 5: 9, block 7: 9"
