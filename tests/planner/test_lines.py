"""A policy at its own sites: the rate for a budget, and what it loses."""

from __future__ import annotations

import json

import pytest

from prunec import targets
from prunec.calibration.calibrate import needs_calibration
from prunec.compiler import plan as made_concrete
from prunec.compiler import recognise
from prunec.errors import PolicyError
from prunec.frontend import sources
from prunec.frontend.sources import ImageSet
from prunec.latency.losses import Trial
from prunec.latency.roofline import Ceilings
from prunec.passes import BACK, run_passes
from prunec.planner import planned
from prunec.planner.lines import Line, lost, stream
from prunec.planner.planned import Request, Search
from prunec.policy.policy import Policy
from prunec.policy.site_plan import make_plan
from prunec.schedules.goal import Goal
from tests.planner.anatomies import anatomy
from tests.tiny import ViT, pixels

SOURCE = sources.from_module(ViT(depth=4).eval(), pixels())
DENSE = recognise(SOURCE)
IMAGES = ImageSet(pixels(), None, "noise")
COMPUTES = Ceilings(1e9, 1e12, launch=0.0)


def request(policy: Policy) -> Request:
    search = Search(build=False)
    return Request(policy, targets.load("eager"), "eager", 2, IMAGES, calibrated=False, search=search)


def line(name: str = "norm") -> Line:
    asked = request(Policy.load(name))
    table = planned.estimated(DENSE, request(Policy.load("random")), COMPUTES)
    return planned.lines(DENSE, asked, Trial(DENSE, asked.policy, IMAGES.images), table)[0]


@pytest.mark.parametrize("name", ["norm", "tome", "algm"])
@pytest.mark.parametrize("rate", [0.8, 0.6])
def test_the_largest_rate_that_is_predicted_to_be_fast_enough(name: str, rate: float) -> None:
    one = line(name)
    goal = Goal(latency=one.share(one.at(rate)))
    found = one.reaching(goal)
    assert found is not None
    assert goal.share is not None
    assert one.share(found) <= goal.share
    assert found.keep > rate - 0.05  # two sites share the rate in whole tokens: time falls unevenly
    assert one.share(one.at(min(1.0, found.keep + 0.15))) > goal.share
    tighter = one.reaching(goal, margin=0.95)
    assert tighter is not None
    assert tighter.keep < found.keep
    assert one.reaching(goal, scale=1 / 0.95) == tighter


def test_its_loss_is_that_of_the_whole_program() -> None:
    one = line()
    member = one.at(0.5)
    program = run_passes(BACK, made_concrete(DENSE, one.made(0.5)))
    assert not needs_calibration(program)
    assert member.loss == pytest.approx(one.trial.losses_of([program])[0])
    assert member.loss == pytest.approx(lost(one.trial, one.made(0.5), None))
    assert one.at(1.0).loss == 0


def test_a_goal_that_is_a_loss_is_reached_by_measurement() -> None:
    one = line()
    most = one.at(0.3).loss
    found = one.reaching(Goal(max_drop=most))
    assert found is not None
    assert found.loss <= most
    assert found.keep < 1


def test_what_no_rate_reaches_and_what_the_fastest_is() -> None:
    one = line()
    assert one.reaching(Goal(latency=0.01)) is None
    assert one.fastest.time <= one.at(0.1).time
    assert 0 < one.floor < 1


def test_without_sites_it_is_the_model_as_it_is() -> None:
    one = line("algm")
    assert one.dense_choice.sites == ()
    assert make_plan(one.made(None), DENSE.anatomy).sites == ()
    assert one.made(0.4).keep == 0.4


def test_a_policy_without_sites_has_no_rate_either() -> None:
    with pytest.raises(PolicyError, match="has no sites"):
        line("none")


def test_the_stream_of_a_plan_is_long_again_where_tokens_come_back() -> None:
    shape = anatomy(depth=6)
    falling, sites = stream(make_plan(Policy.load("norm", keep=0.5), shape), shape)
    assert list(falling) == sorted(falling, reverse=True)
    assert [block for block, _, _ in sites] == [1, 3, 4]
    rejoined, _ = stream(make_plan(Policy.load("cropr", keep=0.5), shape), shape)
    assert rejoined[-1] == shape.tokens > rejoined[-2]


def test_the_rates_that_were_tried_are_told_as_json() -> None:
    one = line()
    one.at(0.5), one.at(0.25)
    told = json.loads(json.dumps(one.as_dict()))
    assert [point["keep"] for point in told["frontier"]] == [0.25, 0.5]
    assert told["policy"] == "norm"
