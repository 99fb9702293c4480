"""What a site of another policy takes, by what it takes more than the first one's."""

from __future__ import annotations

import pytest

from prunec import targets
from prunec.latency import latency, sites
from prunec.latency.latency import Workload
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from tests.planner.imagined import COUNTS, table
from tests.planner.test_lines import DENSE
from tests.tiny import pixels

PAIRS = [(17, 13), (17, 9), (17, 5), (13, 9), (13, 5), (9, 5)]


@pytest.mark.parametrize("made", [(0.5, 0.0, 0.0), (0.0, 0.02, 0.0), (0.3, 0.01, 0.2), (0.0, 0.0, 0.4)])
def test_what_is_more_is_found_again(made: tuple[float, float, float]) -> None:
    always, entered, late = made
    base = table(seconds=lambda n: n + 0.01 * n * n)
    saved = {n: n + 0.01 * n * n for n in COUNTS}
    more = {(n, k): always + entered * n + late * (saved[n] - saved[k]) for n, k in PAIRS}
    assert sites._added(base, more) == pytest.approx((always, entered, 0.0, late), abs=1e-6)


def test_nothing_is_cheaper_than_the_control_whatever_the_noise() -> None:
    assert sites._added(table(), dict.fromkeys(PAIRS, -0.4)) == (0, 0, 0, 0)
    noisy = {pair: 0.5 + (-1) ** place * 0.3 for place, pair in enumerate(PAIRS)}
    assert min(sites._added(table(), noisy)) >= 0


def test_the_blocks_are_those_of_the_first_and_the_work_is_the_others() -> None:
    flat, eager = (pixels(),), targets.load("eager")
    policies = [Policy.load(name) for name in ("random", "evit")]
    first, other = (Workload(DENSE, policy, choose(policy), flat) for policy in policies)
    work = latency.work_of(first, "eager")
    base = latency.measure(first, eager, {"device": "here"}, work, rounds=5)
    (found,) = sites.beside(base, first, [other], eager, rounds=5)
    assert (found.blocks, found.counts, found.dense) == (base.blocks, base.counts, base.dense)
    assert found.work == latency.work_of(other, "eager")
    assert all(own >= known for own, known in zip(found.sites, base.sites, strict=True))
    assert sites.beside(base, first, [], eager) == []
