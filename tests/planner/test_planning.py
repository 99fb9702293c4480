"""What is built, and what is chosen by what is measured; nothing is compiled here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prunec.errors import PlanError
from prunec.planner.planning import LEAST_GAIN, Decision, decide
from prunec.planner.workshop import Candidate
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal
from tests.planner.imagined import DEPTH, Imagined, mapped, table

BARE: dict[int, int] = {}

FAST = Goal(latency=0.7)

GENTLE = Goal(max_drop=0.0155)


def measured(decision: Decision) -> list[Candidate]:
    return [candidate for candidate in decision.candidates if candidate.schedule]


def test_of_those_that_are_fast_enough_the_one_that_loses_least() -> None:
    plan = mapped()
    forecast = decide([plan], FAST, Imagined())
    assert len(measured(forecast)) >= 2
    assert forecast.chosen == min(
        (one for one in measured(forecast) if one.share <= 0.7), key=lambda one: one.loss
    )
    other = min(measured(forecast), key=lambda one: one.share)  # the fastest; predicted to lose the most
    assert other.schedule != forecast.chosen.schedule
    loss = lambda one: 1e-4 if one.schedule == other.schedule else one.expected  # noqa: E731
    assert decide([plan], FAST, Imagined(loss=loss)).chosen.schedule == other.schedule


def test_what_is_too_slow_by_measurement_is_not_chosen_however_little_it_loses() -> None:
    plan = mapped()
    first = decide([plan], FAST, Imagined()).chosen
    share = lambda one: 0.8 if one.schedule == first.schedule else one.predicted  # noqa: E731
    chosen = decide([plan], FAST, Imagined(share)).chosen
    assert chosen.schedule != first.schedule
    assert chosen.share <= 0.7
    assert chosen.loss > first.loss


def test_of_those_that_lose_little_enough_the_fastest() -> None:
    plan = mapped()
    forecast = decide([plan], GENTLE, Imagined())
    assert forecast.chosen == min(
        (one for one in measured(forecast) if one.loss <= 0.0155), key=lambda one: one.share
    )
    loss = lambda one: 0.03 if one.schedule == forecast.chosen.schedule else one.expected  # noqa: E731
    chosen = decide([plan], GENTLE, Imagined(loss=loss)).chosen
    assert chosen.schedule != forecast.chosen.schedule
    assert chosen.loss <= 0.0155


def test_the_better_mode_is_chosen_by_measurement() -> None:
    padded, packed = mapped(mode="padded"), mapped(table(seconds=lambda n: n - 0.3), mode="packed")
    slower = {"padded": 1.0, "packed": 1.0}
    share = lambda one: one.predicted * slower[one.mode]  # noqa: E731
    first = decide([padded, packed], GENTLE, Imagined(share)).chosen.mode
    slower[first] = 1.3
    assert decide([padded, packed], GENTLE, Imagined(share)).chosen.mode != first


def several(loss: dict[str, float], **how: Any) -> tuple[Decision, Imagined]:
    """Three policies that lose so many times what is expected, and the control."""
    spaces = [mapped(policy=Policy.load(name)) for name in ("evit", "norm", "pomt")]
    control = mapped(policy=Policy.load("random"))
    choice = control.reaching(FAST)
    assert choice is not None
    workshop = Imagined(loss=lambda one: loss[one.policy] * one.expected, **how)
    return decide(spaces, FAST, workshop, [(control, choice)], "random"), workshop


def test_of_several_policies_the_one_that_loses_least_by_measurement() -> None:
    for best in ("evit", "norm", "pomt"):
        loss = {name: 1.0 if name == best else 1.5 for name in ("evit", "norm", "pomt")}
        decision, workshop = several({**loss, "random": 0.01})
        assert decision.chosen.policy == best
        assert {name.policy for name in workshop.built} == {"evit", "norm", "pomt", "random"}


def test_what_a_policy_takes_longer_than_predicted_is_its_own_affair() -> None:
    slow = {"evit": 1.2, "norm": 1.0, "pomt": 1.0, "random": 1.0}
    even = dict.fromkeys(slow, 1.0)
    decision, workshop = several({**even, "evit": 0.1}, share=lambda one: slow[one.policy] * one.predicted)
    assert workshop.runs >= 2
    assert (decision.chosen.policy, decision.scale) == ("evit", pytest.approx(1.2))
    assert decision.chosen.share <= 0.7


def test_policies_that_lose_far_more_are_not_built_again() -> None:
    loss = {"evit": 1.0, "norm": 5.0, "pomt": 5.0, "random": 1.0}
    _, workshop = several(loss, share=lambda one: 1.2 * one.predicted)
    built = [name.policy for name in workshop.built]
    assert workshop.runs >= 2
    assert built.count("evit") > built.count("norm") == built.count("pomt") == 1


def test_losses_are_measured_behind_the_first_site_of_the_most_promising() -> None:
    asked = []

    class Nothing:  # is lost behind that site
        def behind(self, block: int, leaves: int, counts: tuple[int, ...], later: range) -> Any:
            asked.append((block, leaves, counts, later))
            return ((0.0,) * len(counts),) * (DEPTH - block - 1)

    workshop = Imagined(trial=Nothing())
    decide([mapped()], Goal(max_drop=0.025), workshop)
    assert workshop.built[1].schedule == ((3, 13), (6, 9))  # the best where losses add up
    assert asked == [(3, 13, (13, 9, 5), range(4, 7))]
    assert workshop.built[-1].schedule == ((3, 13), (4, 5))  # where nothing more is lost, all go at once


def test_behind_the_only_site_nothing_is_measured() -> None:
    workshop = Imagined(trial=None)
    decide([mapped()], GENTLE, workshop)
    assert workshop.built[1].schedule == ((3, 13),)


def test_what_takes_longer_than_predicted_is_planned_again_by_that() -> None:
    workshop = Imagined(lambda one: 1.2 * one.predicted)
    decision = decide([mapped()], FAST, workshop)
    assert workshop.runs == 2
    assert decision.scale == pytest.approx(1.2)
    assert decision.chosen.schedule
    assert decision.chosen.share <= 0.7
    assert decision.chosen.predicted <= 0.7 / 1.2
    assert not decision.notes


def test_where_that_is_not_enough_there_is_a_third_round_and_no_fourth() -> None:
    workshop = Imagined(lambda one: one.predicted**0.6)  # the less is left, the more is it off
    decision = decide([mapped()], FAST, workshop)
    assert workshop.runs == 3
    assert decision.chosen.share <= 0.7
    assert decision.scale > 1.15
    slower = Imagined(lambda one: 0.95 - 0.1 * (1 - one.predicted) if one.schedule else 0.99)
    missed = decide([mapped()], FAST, slower)
    assert slower.runs <= 3
    assert "the goal was missed" in missed.notes[0]


def test_a_prediction_that_holds_needs_no_second_round() -> None:
    workshop = Imagined()
    assert decide([mapped()], FAST, workshop).scale == pytest.approx(1)
    assert workshop.runs == 1
    assert len(set(workshop.built)) == len(workshop.built)


def test_the_fastest_and_a_note_where_none_is_fast_enough() -> None:
    decision = decide([mapped()], Goal(latency=0.6), Imagined(lambda one: 0.65 if one.schedule else 0.99))
    assert decision.chosen.schedule
    assert decision.gains
    (note,) = decision.notes
    assert (
        note
        == "the goal was missed: 0.650 of the dense time measured, at most 0.6 of the dense time asked for"
    )


def test_the_gentlest_and_a_note_where_all_lose_too_much() -> None:
    decision = decide([mapped()], GENTLE, Imagined(loss=lambda one: 3 + one.expected))
    assert decision.chosen.loss == min(one.loss for one in measured(decision))
    assert "a loss of 3.0" in decision.notes[0]


def test_a_goal_below_the_fastest_schedule_is_an_error_and_nothing_is_built() -> None:
    workshop = Imagined()
    with pytest.raises(PlanError, match=r"0\.2 of the dense time: the fastest .*\(block 2: 5,") as caught:
        decide([mapped()], Goal(latency=0.2), workshop)
    assert "--sites" in str(caught.value.remedy)
    assert workshop.built == []


def reason(decision: Decision) -> str:
    """Why there is no site: one sentence."""
    assert decision.chosen.schedule == BARE
    assert not decision.gains
    assert decision.reason
    assert "\n" not in decision.reason
    assert ". " not in decision.reason
    return decision.reason


@pytest.mark.parametrize(
    ("place", "busy"),
    [
        ({"device": "a GPU", "processors": 100}, " (2 of 100 processors busy)"),
        ({"device": "a GPU", "processors": 2}, ""),
        ({"device": "a GPU"}, ""),
    ],
)
def test_bound_by_launches(place: dict[str, str | int], busy: str) -> None:
    plan = mapped(table(seconds=lambda n: 100 + n / 10, place=place))
    assert plan.floor > 0.98
    said = reason(decide([plan], GENTLE, Imagined(lambda one: 0.99)))
    assert said == (
        "batch 8 on a GPU is bound by launches, not by tokens: a stream of 5 tokens takes 99% of the time of "
        f"17{busy}; try a larger batch"
    )


def test_within_the_noise() -> None:
    workshop = Imagined(lambda one: 0.91 if one.schedule else 0.96, noise=0.04)
    said = reason(decide([mapped()], GENTLE, workshop))
    assert said == "batch 8 on a device: the gain of 5.0% is within twice the noise of the measurement (8.0%)"


def test_scoring_costs_as_much_as_it_saves() -> None:
    share = lambda one: 0.98 - 0.5 * LEAST_GAIN if one.schedule else 0.98  # noqa: E731
    said = reason(decide([mapped()], GENTLE, Imagined(share)))
    assert said.startswith(
        "batch 8 on a device: scoring and gathering cost about as much as shorter streams save"
    )
    assert "+1.5% of the dense time better than none" in said


def test_just_enough_gain_is_enough() -> None:
    share = lambda one: 0.98 - 1.01 * LEAST_GAIN if one.schedule else 0.98  # noqa: E731
    decision = decide([mapped()], GENTLE, Imagined(share))
    assert decision.chosen.schedule
    assert decision.reason == ""


def test_leaving_out_dead_rows_may_be_enough() -> None:
    decision = decide([mapped()], FAST, Imagined(lambda one: one.predicted if one.schedule else 0.69))
    assert decision.chosen.schedule == BARE
    assert decision.gains
    assert decision.reason == "leaving out dead rows is enough: 0.690 of the dense time, no loss"


def test_it_is_measured_also_where_no_site_is_predicted_to_be_needed() -> None:
    plan = mapped(table(dense=DEPTH * 17 / 0.9))  # whole, the dense model takes more than its pieces
    workshop = Imagined()
    decision = decide([plan], Goal(latency=0.97), workshop)
    assert [name.schedule for name in workshop.built] == [()]
    assert decision.chosen.schedule == BARE
    assert "is enough: 0.900" in decision.reason


def test_and_where_it_is_not_enough_by_measurement_sites_are_planned() -> None:
    plan = mapped(table(dense=DEPTH * 17 / 0.9))
    decision = decide([plan], Goal(latency=0.95), Imagined(lambda one: 1.15 * one.predicted))
    assert decision.chosen.schedule
    assert decision.chosen.share <= 0.95


def test_where_every_site_loses_too_much_there_is_none() -> None:
    plan = mapped(lost=1e6)
    assert reason(decide([plan], GENTLE, Imagined())) == (
        "no schedule with a site is predicted to reach a loss of at most 0.0155"
    )


def test_a_decision_is_valid_json_also_where_nothing_was_measured() -> None:
    foreseen = Candidate("static", {2: 9}, 0.6, 0.01)
    plain = json.loads(json.dumps(Decision(foreseen, (foreseen,)).as_dict(), allow_nan=False))
    assert plain["chosen"] == plain["candidates"][0]
    assert plain["chosen"] == {
        "mode": "static", "schedule": {"2": 9}, "predicted": 0.6, "expected": 0.01, "share": None,
        "loss": None, "noise": 0.0, "policy": "", "keep": None,
    }  # fmt: skip
    built = decide([mapped()], FAST, Imagined())
    told = json.loads(json.dumps(built.as_dict(), allow_nan=False))
    assert told["chosen"]["share"] == built.chosen.share
    assert len(told["candidates"]) == len(built.candidates)
