"""What is known before anything is built, what is foreseen of it, and how the decision is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prunec.errors import PlanError, UsageError
from prunec.planner.planned import Search, foreseen, planned
from prunec.planner.planning import Decision
from prunec.policy.modes import Masked, Packed, Padded
from prunec.schedules.goal import Goal
from tests.planner.imagined import explored, mapped, table

FAST, GENTLE = Goal(latency=0.7), Goal(max_drop=0.0155)


@pytest.mark.parametrize("mode", [None, "padded", "packed", "static", Masked(), Packed()])
def test_a_schedule_is_planned_for_a_mode_without_options(mode: Any) -> None:
    Search(mode=mode)


@pytest.mark.parametrize("mode", [Padded(buckets=(8,)), Packed(max_tokens=9)])
def test_a_mode_with_options_is_given_afterwards(mode: Any) -> None:
    with pytest.raises(UsageError, match="mode") as caught:
        Search(mode=mode)
    assert f"mode={mode}" in (caught.value.remedy or "")


@pytest.mark.parametrize("points", [0, -1])
def test_a_sweep_has_points(points: int) -> None:
    with pytest.raises(UsageError, match=f"got {points}"):
        Search(points=points)


def test_of_what_is_fast_enough_the_gentlest_is_foreseen() -> None:
    found = foreseen(explored(mapped(), mapped(mode="padded", lost=0.5)), FAST)
    assert found.mode == "padded"  # where the same schedule loses half as much
    assert found.predicted <= 0.7
    assert (found.share, found.loss) == (None, None) or found.share != found.share  # nothing was measured


def test_of_what_is_gentle_enough_the_fastest_is_foreseen() -> None:
    slow = mapped(table(site=50.0, mode="padded"), mode="padded")
    found = foreseen(explored(slow, mapped()), GENTLE)
    assert found.mode == "static"
    assert found.expected <= 0.0155


def test_a_goal_that_nothing_reaches_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"0\.01"):
        foreseen(explored(mapped()), Goal(latency=0.01))


def test_the_record_is_a_policy_with_just_that_schedule_and_json() -> None:
    known = explored(mapped(), mapped(mode="padded"))
    best = foreseen(known, FAST)
    made = planned(known, FAST, Decision(best, (best,), notes=("nothing was timed",)), {"table": 3.0})
    assert str(made.lowering) == best.mode
    assert made.policy.sites.blocks == tuple(sorted(best.schedule))
    told = json.loads(json.dumps(made.as_dict()))
    assert told["goal"] == {"share": 0.7, "loss": None}
    assert [one["mode"] for one in told["modes"]] == ["static", "padded"]
    rows = [text for _, text in made.rows()]
    assert str(FAST) in rows[0]
    assert "nothing was timed" in rows
    assert [text for text in rows if text.startswith("> ")] != []
    assert rows[-1] == "table 3 s"
