"""The search against an enumeration of every schedule, on small whole numbers, so that sums are exact."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.schedules import search
from prunec.schedules.search import Choice, Costs, Limits, best, fastest, frontier

many = settings(max_examples=200, deadline=None, derandomize=True, database=None)
Point = tuple[float, float]  # time, loss


# Every schedule ---------------------------------------------------------------------------------------------


def schedules(costs: Costs, limits: Limits) -> Iterator[tuple[tuple[int, ...], list[tuple[int, int, int]]]]:
    """(length of each block, sites) of all that are allowed, by trying all that can be written down."""
    enumerate_kind = returning if limits.returns else falling
    for counts, sites in enumerate_kind(costs, limits):
        few = limits.sites is None or len(sites) <= limits.sites
        if few and all(leaving >= limits.least for _, _, leaving in sites):
            yield counts, sites


def falling(costs: Costs, limits: Limits) -> Iterator[tuple[tuple[int, ...], list[tuple[int, int, int]]]]:
    depth = len(costs.blocks)
    last = depth if limits.last is None else limits.last
    for counts in itertools.product(costs.counts, repeat=depth):
        steps = list(enumerate(itertools.pairwise((costs.counts[0], *counts))))
        sites = [(block, before, after) for block, (before, after) in steps if before != after]
        in_place = all(limits.first <= block <= last for block, _, _ in sites)
        if in_place and all(before >= after for _, (before, after) in steps):
            yield counts, sites


def returning(costs: Costs, limits: Limits) -> Iterator[tuple[tuple[int, ...], list[tuple[int, int, int]]]]:
    depth, dense = len(costs.blocks), costs.counts[0]
    last = depth - 1 if limits.last is None else min(limits.last, depth - 1)
    yield (dense,) * depth, []
    for first in range(limits.first, last + 1):
        for chosen in itertools.product(costs.counts[1:], repeat=last - first + 1):
            counts = (dense,) * first + chosen + chosen[-1:] * (depth - 1 - last)
            yield counts, [(first + i, dense, count) for i, count in enumerate(chosen)]


def point(costs: Costs, counts: tuple[int, ...], sites: list[tuple[int, int, int]]) -> Point:
    at = costs.counts.index
    spent = costs.fixed + sum(row[at(n)] for row, n in zip(costs.blocks, counts, strict=True))
    spent += sum(costs.sites[at(entering)][at(leaving)] for _, entering, leaving in sites)
    return spent, sum(row[at(n)] for row, n in zip(costs.losses, counts, strict=True))


def pareto(points: set[Point]) -> list[Point]:
    return sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points))


# Instances --------------------------------------------------------------------------------------------------


def rows(draw: st.DrawFn, height: int, width: int, low: int, high: int) -> tuple[tuple[float, ...], ...]:
    row = st.tuples(*[st.integers(low, high).map(float)] * width)
    return tuple(draw(row) for _ in range(height))


@st.composite
def instances(draw: st.DrawFn) -> tuple[Costs, Limits]:
    """Small ranges, so that ties abound; steps coarser than the grid, so that some lengths gain nothing."""
    returns = draw(st.booleans())
    depth, width = draw(st.sampled_from([(1, 4), (2, 3), (3, 1), (3, 3), (4, 4), (4, 5), (5, 2), (5, 4)]))
    counts = tuple(sorted(draw(st.sets(st.integers(1, 20), min_size=width, max_size=width)), reverse=True))
    stair = draw(st.sampled_from([1, 5, 8]))
    blocks = tuple(
        tuple(draw(st.integers(0, 2)) + 3.0 * -(-count // stair) for count in counts) for _ in range(depth)
    )
    if draw(st.booleans()):
        blocks = rows(draw, depth, width, 0, 9)  # not even monotone
    sites = rows(draw, width, width, *draw(st.sampled_from([(0, 0), (0, 3), (-4, 4)])))
    losses = rows(draw, depth, width, 0, draw(st.sampled_from([0, 1, 3, 50])))
    losses = tuple((0.0, *row[1:]) for row in losses)
    limits = Limits(
        first=draw(st.sampled_from([0, 0, 1, 2, depth])),
        last=draw(st.none() | st.integers(0, depth + 1)),
        least=draw(st.sampled_from([1, 1, 5, 12])),
        sites=draw(st.sampled_from([None, 0, 1, 2, 2, 3])),
        returns=returns,
    )
    return Costs(counts, float(draw(st.integers(0, 5))), blocks, sites, losses), limits


@many
@given(instances())
def test_the_frontier_is_that_of_all_schedules(instance: tuple[Costs, Limits]) -> None:
    costs, limits = instance
    every = {point(costs, *schedule) for schedule in schedules(costs, limits)}
    assert [(choice.time, choice.loss) for choice in frontier(costs, limits)] == pareto(every)


@many
@given(instances())
def test_a_choice_is_an_allowed_schedule_of_that_cost_with_the_fewest_sites(
    instance: tuple[Costs, Limits],
) -> None:
    costs, limits = instance
    every = list(schedules(costs, limits))
    for choice in frontier(costs, limits):
        found = (choice.counts, list(choice.sites))
        assert found in every
        assert point(costs, *found) == (choice.time, choice.loss)
        equal = [
            sites for counts, sites in every if point(costs, counts, sites) == (choice.time, choice.loss)
        ]
        assert len(choice.sites) == min(map(len, equal))


@many
@given(instances(), st.integers(-5, 90), st.integers(-1, 60))
def test_chosen_under_a_budget(instance: tuple[Costs, Limits], seconds: int, loss: int) -> None:
    costs, limits = instance
    found = frontier(costs, limits)
    every = [point(costs, *schedule) for schedule in schedules(costs, limits)]
    in_time = min(((lost, spent) for spent, lost in every if spent <= seconds), default=None)
    in_loss = min(((spent, lost) for spent, lost in every if lost <= loss), default=None)
    chosen, quick = best(found, seconds), fastest(found, loss)
    assert (chosen and (chosen.loss, chosen.time)) == in_time
    assert (quick and (quick.time, quick.loss)) == in_loss


@many
@given(instances())
def test_twice_the_same(instance: tuple[Costs, Limits]) -> None:
    assert frontier(*instance) == frontier(*instance)


# By hand ----------------------------------------------------------------------------------------------------


def example() -> Costs:
    """Three blocks that take as long as their stream; sites cost 1; only block 1 at length 2 loses."""
    blocks = ((8.0, 4.0, 2.0),) * 3
    sites = ((1.0,) * 3,) * 3
    return Costs((8, 4, 2), 1.0, blocks, sites, ((0.0, 0.0, 0.0), (0.0, 0.0, 5.0), (0.0, 0.0, 0.0)))


def test_by_hand() -> None:
    assert frontier(example(), Limits(first=1)) == (
        Choice(14.0, 5.0, (8, 2, 2), ((1, 8, 2),)),
        Choice(17.0, 0.0, (8, 4, 2), ((1, 8, 4), (2, 4, 2))),
    )


def test_with_one_site() -> None:
    assert frontier(example(), Limits(first=1, sites=1)) == (
        Choice(14.0, 5.0, (8, 2, 2), ((1, 8, 2),)),
        Choice(18.0, 0.0, (8, 4, 4), ((1, 8, 4),)),
    )


def test_a_site_saved_for_later_counts() -> None:
    """In block 2 the beginning 8, 4, 2 beats 8, 8, 2 in time; only the latter has a site left for block 3."""
    blocks = ((8.0,) * 4, (8.0, 7.0, 7.0, 7.0), (8.0, 8.0, 1.0, 1.0), (8.0, 8.0, 8.0, 0.0))
    losses = ((0.0,) * 4, (0.0, 0.0, 9.0, 9.0), (0.0, 0.0, 0.0, 9.0), (0.0,) * 4)
    costs = Costs((8, 4, 2, 1), 0.0, blocks, ((0.0,) * 4,) * 4, losses)
    chosen = fastest(frontier(costs, Limits(first=1, sites=2)), 0.0)
    assert chosen == Choice(17.0, 0.0, (8, 8, 2, 1), ((2, 8, 2), (3, 2, 1)))


def test_with_no_site() -> None:
    assert frontier(example(), Limits(sites=0)) == (Choice(25.0, 0.0, (8, 8, 8), ()),)


def test_tokens_that_come_back_are_chosen_from_all() -> None:
    """Length 2 everywhere but in block 1, which may have more than block 0 had."""
    costs = example()
    assert frontier(costs, Limits(first=0, sites=None, returns=True)) == (
        Choice(10.0, 5.0, (2, 2, 2), ((0, 8, 2), (1, 8, 2), (2, 8, 2))),
        Choice(12.0, 0.0, (2, 4, 2), ((0, 8, 2), (1, 8, 4), (2, 8, 2))),
    )


def test_behind_the_last_block_a_returning_stream_keeps_its_length() -> None:
    found = frontier(example(), Limits(first=0, last=1, sites=None, returns=True))
    assert [choice.counts for choice in found] == [(2, 2, 2), (2, 4, 4)]
    assert [len(choice.sites) for choice in found] == [2, 2]


def test_the_limit_on_sites_moves_the_first_one_back_when_tokens_return() -> None:
    found = frontier(example(), Limits(first=0, sites=2, returns=True))
    assert [choice.counts for choice in found] == [(8, 2, 2), (8, 4, 2)]


def test_a_step_that_gains_nothing_is_not_taken() -> None:
    flat = replace(example(), blocks=((8.0, 8.0, 8.0),) * 3)
    assert frontier(flat, Limits(first=0)) == (Choice(25.0, 0.0, (8, 8, 8), ()),)


def test_a_site_that_costs_less_than_nothing_is_taken_for_its_own_sake() -> None:
    costs = replace(example(), blocks=((8.0, 8.0, 8.0),) * 3, sites=((0.0, -1.0, -1.0),) * 3)
    (choice,) = frontier(costs, Limits(first=0, least=4))
    assert (choice.time, choice.counts) == (24.0, (4, 4, 4))
    assert len(frontier(costs, Limits(first=0))[0].sites) == 2


def test_a_choice_is_none_where_nothing_fits() -> None:
    found = frontier(example(), Limits(first=1))
    assert best(found, 13.9) is None
    assert fastest(found, -1.0) is None


# Large ones -------------------------------------------------------------------------------------------------


def large(depth: int, width: int) -> Costs:
    """Like a measured model: time a little above linear, noisy losses that grow towards the front."""
    noise = random.Random(0)
    counts = tuple(round(197 * (width - i) / width) for i in range(width))
    shares = [count / 197 for count in counts]
    blocks = tuple(
        tuple((0.3 + s + 0.3 * s**2) * (1 + noise.random() / 50) for s in shares) for _ in range(depth)
    )
    sites = tuple(tuple(0.1 + s / 10 + k / 20 for k in shares) for s in shares)
    losses = tuple(
        tuple((1 - s) ** 2 * (depth - block) / depth * (1 + noise.random() / 2) for s in shares)
        for block in range(depth)
    )
    return Costs(counts, 1.0, blocks, sites, losses)


@pytest.mark.parametrize(("sites", "most"), [(3, 100_000), (None, 100_000)])
def test_a_deep_model_is_searched_in_moments(
    sites: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 0
    real = search._unbeaten

    def counted(labels: list[search.Label], limit: int | None = None) -> list[search.Label]:
        nonlocal kept
        result = real(labels, limit)
        kept += len(result)
        return result

    monkeypatch.setattr(search, "_unbeaten", counted)
    costs = large(32, 15)
    start = time.process_time()
    found = frontier(costs, Limits(sites=sites))
    assert time.process_time() - start < 2
    assert len(found) > 100
    assert kept < most


# What is refused --------------------------------------------------------------------------------------------

INF = float("inf")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"counts": ()}, "counts must fall"),
        ({"counts": (8, 4, 4)}, r"counts must fall and stay positive, not \(8, 4, 4\)"),
        ({"counts": (4, 8, 2)}, "counts must fall"),
        ({"counts": (8, 4, 0)}, "counts must fall and stay positive"),
        ({"blocks": ()}, "blocks has 0 rows, not at least one"),
        ({"blocks": ((8.0, 4.0),) * 3}, r"blocks\[0\] has 2 numbers, not 3, one for each count"),
        ({"blocks": ((8.0, 4.0, INF),) * 3}, r"blocks\[0\] has a number that is not finite"),
        ({"sites": ((0.0, 0.0, 0.0),) * 2}, "sites has 2 rows, not 3"),
        ({"losses": ((0.0, 0.0, 0.0),) * 2}, "losses has 2 rows, not 3"),
        ({"losses": ((0.0, 1.0, 1.0),) * 2 + ((1.0, 1.0, 1.0),)}, r"losses\[2\] must be 0 at the dense"),
        ({"losses": ((0.0, -1.0, 1.0),) * 3}, r"losses\[0\] must be .* nowhere negative"),
        ({"fixed": float("nan")}, "fixed is nan"),
    ],
)
def test_costs_that_do_not_fit_together(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(example(), **wrong)


@pytest.mark.parametrize("wrong", [{"first": -1}, {"last": -1}, {"sites": -1}])
def test_limits_that_mean_nothing(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="-1"):
        Limits(**wrong)
