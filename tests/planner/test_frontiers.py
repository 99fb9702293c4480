"""A table and losses together: what a frontier's choices take, and what they may not do."""

from __future__ import annotations

from typing import Any

import pytest

from prunec.latency.losses import Losses
from prunec.latency.table import LatencyTable
from prunec.planner.frontiers import NEVER, Map, schedule_of, some
from prunec.policy.lowering import Lowering
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal
from prunec.schedules.schedule import limits_of, shortest
from prunec.schedules.search import Choice, Limits
from tests.planner.anatomies import anatomy

COUNTS = (26, 20, 16, 12, 8, 5)
MODEL = anatomy(depth=6)  # 26 tokens


def table() -> LatencyTable:
    row = tuple(0.1 + 0.05 * n for n in COUNTS)
    return LatencyTable(
        place={}, work={}, counts=COUNTS, dense=8.0, fixed=1.5,
        blocks=((0.0,) * 6, row, row, row, row, tuple(0.2 + 0.03 * n for n in COUNTS)),
        sites=(0.02, 0.001, 0.002, 0.5), spread=0.0, seconds=0.0, date="", samples={},
    )  # fmt: skip


def lost(longest: tuple[tuple[float, ...], ...] = ()) -> Losses:
    rows = tuple(tuple((26 - n) * (6 - block) * 0.01 for n in COUNTS) for block in range(6))
    return Losses(COUNTS, rows, "divergence", 4, "four", 0.0, longest=longest)


def planned(preset: str = "norm", lowering: Lowering | None = None, **changes: Any) -> Map:
    policy = Policy.load(preset)
    limits = limits_of(policy, MODEL, first=1, sites=2, least=5)
    parts: dict[str, Any] = {"losses": lost(), "table": table(), "limits": limits} | changes
    return Map(policy, MODEL, lowering or Lowering(), parts["table"], parts["losses"], parts["limits"])


class Measured:
    """A trial whose losses behind a site are known."""

    def behind(self, block: int, leaves: int, counts: tuple[int, ...], later: range) -> tuple[Any, ...]:
        self.asked = (block, leaves, counts, later)
        return tuple(tuple((leaves - n) * 0.005 for n in counts) for _ in range(MODEL.depth - block - 1))


def time_by_hand(plan: Map, choice: Choice) -> float:
    """What the table says of a schedule, without the costs that the search reads."""
    return plan.table.predict(choice.counts, choice.sites)


@pytest.mark.parametrize("preset", ["norm", "evit", "tome"])
def test_choices_take_what_the_table_predicts_and_lose_the_sum_of_their_blocks(preset: str) -> None:
    plan = planned(preset)
    assert len(plan.choices) > 5
    rows = plan.losses.rows()
    for choice in plan.choices:
        assert choice.time == pytest.approx(time_by_hand(plan, choice))
        expected = sum(row[COUNTS.index(n)] for row, n in zip(rows, choice.counts, strict=True))
        assert choice.loss == pytest.approx(expected)
        assert plan.share(choice) == pytest.approx(choice.time / 8)


@pytest.mark.parametrize("block", [1, 2, 4, 5])
@pytest.mark.parametrize("leaves", [20, 8, 5])
def test_choices_behind_a_site_begin_with_it_and_take_what_the_table_predicts(
    block: int, leaves: int
) -> None:
    plan, trial = planned(), Measured()
    site = (block, 26, leaves)
    found = plan.behind(site, trial)  # type: ignore[arg-type]
    if block < plan.last:
        counts = COUNTS[COUNTS.index(leaves) :]
        assert trial.asked == (block, leaves, counts, range(block + 1, plan.last + 1))
    for choice in found:
        assert choice.sites[0] == site
        assert len(choice.sites) <= 2
        assert choice.counts[: block + 1] == (*(26,) * block, leaves)
        assert len(choice.counts) == 6
        assert choice.time == pytest.approx(time_by_hand(plan, choice))
        later = sum((leaves - n) * 0.005 for n in choice.counts[block + 1 :])
        assert choice.loss == pytest.approx(plan.losses.behind[block][COUNTS.index(leaves)] + later)
    assert found[-1].sites == (site,)  # one that stops there loses least
    assert len(found) > 1 or block >= 4 or leaves == 5
    assert len(found) == 1 or block < plan.last


def test_behind_a_site_no_more_sites_are_made_than_are_allowed() -> None:
    plan = planned(limits=Limits(1, 5, 5, 1))
    assert [choice.sites for choice in plan.behind((2, 26, 16), Measured())] == [((2, 26, 16),)]  # type: ignore[arg-type]


def test_behind_a_site_the_same_blocks_may_have_one() -> None:
    plan = planned(limits=Limits(1, 5, 5, 3, only=(1, 3)))
    found = plan.behind((1, 26, 16), Measured())  # type: ignore[arg-type]
    assert {block for choice in found for block, _, _ in choice.sites} == {1, 3}
    assert [choice.sites for choice in plan.behind((3, 26, 16), Measured())] == [((3, 26, 16),)]  # type: ignore[arg-type]


def test_behind_a_site_of_pairs_no_length_is_taken_that_one_site_cannot_leave() -> None:
    plan = planned("tome")
    for choice in plan.behind((1, 26, 16), Measured()):  # type: ignore[arg-type]
        for _, entering, leaving in choice.sites:
            assert leaving >= shortest(plan.policy, MODEL, entering)


def test_what_a_policy_cannot_do_is_never_chosen() -> None:
    plan = planned("tome")
    never = {
        (n, k)
        for n, row in zip(COUNTS, plan.costs.sites, strict=True)
        for k, cost in zip(COUNTS, row, strict=True)
        if cost == NEVER
    }
    assert (26, 12) in never
    assert (26, 16) not in never  # the near miss
    assert (16, 8) in never
    chosen = {(n, k) for choice in plan.choices for _, n, k in choice.sites}
    assert chosen
    assert not chosen & never
    assert all(choice.time < 100 for choice in plan.choices)


def test_tokens_that_come_back_enter_a_site_as_short_as_they_leave_it() -> None:
    plan = planned("svit")
    assert plan.costs.sites[0][2] == pytest.approx(plan.table.site(16, 16))
    assert all(n == 26 for choice in plan.choices for _, n, _ in choice.sites)


def test_padding_costs_time_in_mode_padded_alone() -> None:
    longest = (tuple(float(min(26, n + 4)) for n in COUNTS),) * 6
    padded, packed, static = (
        planned("dynamic", Lowering(mode, ragged=True), losses=lost(longest))
        for mode in ("padded", "packed", "static")
    )
    for block in range(1, 6):
        for place, n in enumerate(COUNTS):
            assert padded.costs.blocks[block][place] == pytest.approx(plan_block(block, min(26, n + 4)))
            for plan in (packed, static):
                assert plan.costs.blocks[block][place] == pytest.approx(plan_block(block, n))


def plan_block(block: int, length: int) -> float:
    return table().block(block, length)


def test_the_floor_is_the_share_of_the_shortest_stream() -> None:
    row, head = [0.1 + 0.05 * n for n in (26, 5)], [0.2 + 0.03 * n for n in (26, 5)]
    assert planned().floor == pytest.approx((1.5 + 4 * row[1] + head[1]) / (1.5 + 4 * row[0] + head[0]))


def test_goals_pick_from_the_frontier() -> None:
    plan = planned()
    chosen = plan.reaching(Goal(latency=0.7))
    assert chosen is not None
    assert chosen.time <= 0.7 * 8
    assert chosen.loss == min(choice.loss for choice in plan.choices if choice.time <= 0.7 * 8)
    fast = plan.reaching(Goal(max_drop=0.3))
    assert fast is not None
    assert fast.time == min(choice.time for choice in plan.choices if choice.loss <= 0.3)
    assert plan.reaching(Goal(latency=0.01)) is None


def test_a_goal_is_asked_of_the_schedules_given_with_room_for_what_was_seen() -> None:
    plan = planned()
    tight, slow = (plan.reaching(Goal(latency=0.8), **how) for how in ({"margin": 0.9}, {"scale": 1.25}))
    assert tight == plan.reaching(Goal(latency=0.72))
    assert slow == plan.reaching(Goal(latency=0.64))
    assert plan.reaching(Goal(max_drop=0.4), margin=0.5) == plan.reaching(Goal(max_drop=0.2))
    few = plan.choices[-2:]
    assert plan.reaching(Goal(max_drop=9.0), among=few) == few[0]


def test_the_dense_choice_takes_what_the_table_predicts_without_a_site() -> None:
    plan = planned()
    assert plan.dense_choice.sites == ()
    assert plan.dense_choice.time == pytest.approx(plan.table.predict((26,) * 6, ()))


def test_a_schedule_is_what_leaves_each_site() -> None:
    assert schedule_of(Choice(1.0, 0.0, (26, 12, 8), ((1, 26, 12), (2, 12, 8)))) == {1: 12, 2: 8}
    assert planned().as_dict()["frontier"][-1]["schedule"] == {}


def test_some_of_a_frontier_are_its_ends_and_what_lies_between() -> None:
    choices = [Choice(float(time), 0.0, ()) for time in (1, 2, 3, 8, 9)]
    assert [choice.time for choice in some(choices, 3)] in ([1, 3, 9], [1, 8, 9])
    assert some(choices, 9) == tuple(choices)
