"""Several policies: who takes part, who goes on, and what is chosen of them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from prunec.errors import PlanError, UsageError
from prunec.latency import sites
from prunec.latency.table import LatencyTable
from prunec.planner import field, planned
from prunec.planner.field import Field, Seen, alike
from prunec.planner.planned import CONTROL
from prunec.planner.result import Entrant
from prunec.policy.policy import Policy, presets
from prunec.schedules.goal import Goal
from tests.planner.test_lines import COMPUTES, DENSE, SOURCE, request

GOAL = Goal(latency=0.6)


def named(*names: str) -> Field:
    return Field.of([Policy.load(name) for name in names])


# Who takes part ---------------------------------------------------------------------------------------------


def test_all_presets_that_need_no_training_take_part_and_the_others_say_why() -> None:
    auto = Field.auto()
    known = {name for name, policy in presets().items() if policy.sites.blocks != ()}
    names = {policy.name for policy in auto.policies}
    assert names | {one.policy for one in auto.absent} == known - {CONTROL}
    assert all("training" in one.why_not for one in auto.absent)
    assert all(not (policy.training and policy.training.required) for policy in auto.policies)


def test_the_control_is_not_chosen_unless_it_is_all_there_is() -> None:
    assert [policy.name for policy in named("evit", CONTROL, "norm").policies] == ["evit", "norm"]
    assert named(CONTROL).alone
    assert not named("evit", "norm").alone


@pytest.mark.parametrize(("names", "words"), [(("evit", "evit"), "one name"), ((), "no policy")])
def test_what_is_no_field(names: Sequence[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        named(*names)


# Who goes on ------------------------------------------------------------------------------------------------


def test_the_few_that_lose_least_go_on() -> None:
    some: Any = (None, None)
    losses = {"far": 0.5, "second": 0.02, "first": 0.01, "fourth": 0.04, "third": 0.03}
    seen = [Seen(Entrant(name, 0.6, loss), some) for name, loss in losses.items()]
    ahead = field._ahead([Seen(Entrant("cannot", why_not="it does not fit")), *seen])
    assert [one.entrant.policy for one in ahead] == ["first", "second", "third"]
    assert [one.entrant.policy for one in field._ahead(seen[:2])] == ["second"]
    assert field._ahead([Seen(Entrant("cannot", why_not="it does not fit"))]) == []


def test_what_is_assumed_of_all_policies_falls_with_depth_and_length() -> None:
    rows = alike((17, 9, 5), 4).behind
    assert [row[0] for row in rows] == [0, 0, 0, 0]
    assert all(row[1] < row[2] for row in rows)
    assert all(one[2] > other[2] for one, other in itertools.pairwise(rows))


# What is chosen ---------------------------------------------------------------------------------------------


@pytest.fixture
def foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are those of a device that does nothing but compute."""
    table = planned.estimated(DENSE, request(Policy.load(CONTROL)), COMPUTES)

    def beside(
        base: LatencyTable, first: Any, others: Sequence[Any], *_: Any, **__: Any
    ) -> list[LatencyTable]:
        return [base for _ in others]

    monkeypatch.setattr(planned, "control_table", lambda dense, request: table)
    monkeypatch.setattr(sites, "beside", beside)


@pytest.mark.usefixtures("foreseen")
def test_the_policy_is_chosen_with_its_schedule() -> None:
    asked = replace(request(Policy.load("norm")), search=planned.Search(build=False, first=1))
    found = field.plan(SOURCE, DENSE, GOAL, asked, named("norm", "evit", "tome", "algm"))
    looked = {one.policy: one for one in found.entrants}
    assert set(looked) == {"norm", "evit", "tome", "algm", CONTROL}
    assert looked[CONTROL].control
    assert found.policy.name in looked
    assert found.policy.name != CONTROL
    assert found.decision.chosen.policy == found.policy.name
    assert found.decision.chosen.predicted <= 0.6
    assert found.decision.chosen.schedule
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["policy"] == found.policy.name


def test_what_does_not_go_with_the_model_says_why_and_whose_sites_do_not_gets_others() -> None:
    grader = Policy.load("dtop", keep=0.5)
    late = Policy.load("norm", blocks=(9,))
    found = field.compare(DENSE, 0.5, request(late), Field.of([grader, late]))
    looked = {one.policy: one for one in found.entrants}
    assert "class scores" in looked["dtop"].why_not
    assert found.policy.name == "norm"
    assert set(found.decision.chosen.schedule) <= set(range(4))


@pytest.mark.usefixtures("foreseen")
def test_where_none_can_be_used_each_says_why() -> None:
    with pytest.raises(PlanError, match=r"norm: takes .*; evit: takes ") as caught:
        field.plan(SOURCE, DENSE, Goal(latency=0.05), request(Policy.load("norm")), named("norm", "evit"))
    assert CONTROL not in caught.value.what


def test_at_equal_work_the_policy_that_loses_least() -> None:
    found = field.compare(DENSE, 0.5, request(Policy.load("norm")), named("norm", "evit", "pomt"))
    losses = {one.policy: one.loss for one in found.entrants if not one.control}
    assert losses[found.policy.name] == min(losses.values())
    assert found.goal is None
    assert math.isnan(found.decision.chosen.share)
    shares = [one.share for one in found.entrants]
    assert max(shares) - min(shares) < 0.1  # of a stream of few tokens
