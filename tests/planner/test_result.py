"""How a choice among policies is told: who lost by how much, and who could not take part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prunec.planner.planning import Decision
from prunec.planner.result import Entrant, PlanResult, space_of
from prunec.planner.workshop import Candidate, policy_of
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal
from tests.planner.imagined import mapped

BEST = Candidate("static", {3: 9}, 0.6, 0.011, 0.59, 0.01, 0.001, "evit")
SLOW = Candidate("static", {3: 13}, 0.6, 0.001, 0.7, 0.001, 0.001, "norm")
FIT = Candidate("static", {3: 5}, 0.5, 0.03, 0.55, 0.02, 0.001, "norm")
RANDOM = Candidate("static", {3: 9}, 0.6, 4.0, 0.6, 3.0, 0.001, "random")
ENTRANTS = (
    Entrant("tome", why_not="needs a thing"),
    Entrant("random", 0.6, 3.0, control=True),
    Entrant("pomt", 0.6, 0.5),
    Entrant("norm", 0.6, 0.03),
    Entrant("evit", 0.6, 0.02),
)


def told() -> PlanResult:
    spaces = (mapped(policy=Policy.load("norm")), mapped())
    at = space_of(spaces, BEST)
    decision = Decision(BEST, (BEST, SLOW, FIT, RANDOM))
    policy = policy_of(at, BEST.schedule, None)
    return PlanResult(policy, at.lowering, Goal(latency=0.6), spaces, decision, {}, ENTRANTS)


def test_each_policy_has_a_line_the_best_first_and_those_that_cannot_last() -> None:
    lines = list(told().standing())
    assert [line.strip("> ").partition(":")[0] for line in lines] == [
        "evit",
        "norm",
        "pomt",
        "random",
        "tome",
    ]
    assert lines[0].startswith("> evit: 0.590 of the dense time, loss 1.00e-02")
    assert "0.550 of the dense time, loss 2.00e-02, 2 times" in lines[1]  # the one that meets the goal
    assert "was not built" in lines[2]
    assert "300 times" in lines[3]
    assert "the control" in lines[3]
    assert lines[4].strip() == "tome: needs a thing"


def test_the_rows_name_the_policy_where_there_was_a_choice() -> None:
    found = told()
    assert next(text for label, text in found.rows() if label == "planned").startswith(
        "at most 0.6 of the dense time: evit, block 3: 9"
    )
    alone = replace(found, entrants=())
    assert "evit" not in next(text for label, text in alone.rows() if label == "planned")
    assert not any("control" in text for _, text in alone.rows())


@pytest.mark.parametrize("name", ["evit", "norm"])
def test_a_candidate_is_found_again_where_it_came_from(name: str) -> None:
    spaces = (mapped(policy=Policy.load("norm")), mapped())
    assert space_of(spaces, replace(BEST, policy=name)).policy.name == name
