"""A policy at its own sites, at one rate: what is planned where counts cannot be chosen site by site.

    keep          1.0 ----- 0.71 ----- 0.5 ----- 0.3     the share of the patches that survives all sites
    predicted     1.0       0.86       0.7       0.55    falls with it, so that bisection finds a budget
    loss          0         1e-4       2e-3      3e-2    measured, of the whole program, at the rates tried

Several steps, exits, merged windows: whatever has a rate is on such a line. For a policy that can be
scheduled freely too, it is the schedule that the policy itself would choose, and the cheapest to look at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from prunec.compiler import fit
from prunec.compiler import plan as made_concrete
from prunec.frontend.sources import ImageSet
from prunec.ir import graph
from prunec.ir.program import Recognised
from prunec.latency.losses import Losses, Trial
from prunec.latency.table import LatencyTable
from prunec.passes import BACK, run_passes
from prunec.policy.lowering import Lowering
from prunec.policy.policy import Policy
from prunec.policy.site_plan import Plan, make_plan
from prunec.schedules.goal import Goal
from prunec.schedules.search import Choice, Site
from prunec.structure import Anatomy

LEAST = 0.02  # the smallest rate
FINE, COARSE = 10, 5  # halvings of what rates lie between: by predictions, which cost nothing, and by losses


@dataclass(frozen=True, kw_only=True)
class Member(Choice):
    """A policy at one rate."""

    keep: float


@dataclass(frozen=True)
class Line:
    """A policy's own sites at every rate, by predicted time and measured loss."""

    policy: Policy
    lowering: Lowering
    table: LatencyTable  # of the blocks at least: what its sites take may be missing
    trial: Trial
    fitted_on: ImageSet | None  # for learned parts and thresholds
    name: str  # which images the loss is measured on
    found: dict[float, float] = field(default_factory=dict)  # the loss at the rates tried so far

    @property
    def anatomy(self) -> Anatomy:
        """Of the model."""
        return self.trial.anatomy

    @property
    def losses(self) -> Losses:
        """What the loss is, and of which images: it is measured of whole programs, not block by block."""
        return Losses((), (), self.trial.kind, self.trial.images, self.name, 0.0)

    @property
    def choices(self) -> tuple[Member, ...]:
        """The rates tried so far, by rising time."""
        return tuple(sorted(map(self.at, self.found), key=lambda member: member.time))

    @property
    def fastest(self) -> Member:
        """At the smallest rate; what that loses is not looked at."""
        return self._placed(LEAST)

    @property
    def dense_choice(self) -> Choice:
        """No site at all."""
        counts = (self.anatomy.tokens,) * self.anatomy.depth
        return Choice(self.table.predict(counts, ()), 0.0, counts)

    @property
    def width(self) -> int:
        """Channels of the stream."""
        return width_of(self.trial.dense)

    @cached_property
    def floor(self) -> float:
        """The share of the dense time that the shortest stream takes."""
        shortest = sum(min(row) for row in self.table.blocks)
        return (self.table.fixed + shortest) / self.dense_choice.time

    def share(self, choice: Choice) -> float:
        """Its predicted time over the dense model's."""
        return choice.time / self.table.dense

    def reaching(self, goal: Goal, margin: float = 1.0, scale: float = 1.0) -> Member | None:
        """The rate for a goal, by the prediction where it is about time; None where none reaches it.

        Args:
            goal: a share of the dense time, or a loss.
            margin: what to take of the goal: less leaves room for a prediction that is too good.
            scale: how many times as long as predicted it was seen to take.
        """
        if goal.share is not None:
            budget = goal.share * margin / scale * self.table.dense
            keep = _largest(lambda keep: self._placed(keep).time <= budget, FINE)
            return None if keep is None else self.at(keep)
        most = (goal.loss or 0.0) * margin
        taken = _largest(lambda taken: self.at(1 - taken).loss <= most, COARSE, 0.0, 1 - LEAST)
        return self.at(1 - (taken or 0.0))

    def at(self, keep: float) -> Member:
        """The policy at a rate, its loss measured."""
        placed = self._placed(round(keep, 4))
        if placed.keep not in self.found:
            self.found[placed.keep] = self._lost(placed)
        return replace(placed, loss=self.found[placed.keep])

    def _lost(self, member: Member) -> float:
        return lost(self.trial, self.made(member.keep), self.fitted_on) if member.sites else 0.0

    def made(self, keep: float | None) -> Policy:
        """The policy at a rate; None: without sites."""
        return self.policy.override(blocks=()) if keep is None else self.policy.override(keep=keep)

    def _placed(self, keep: float) -> Member:
        """Its counts and predicted time; the loss is not looked at."""
        plan = make_plan(self.made(keep), self.anatomy, self.lowering)
        counts, sites = stream(plan, self.anatomy)
        least = self.table.counts[-1]
        lengths = [max(count, least) for count in counts]
        timed = [(block, max(n, least), max(k, least)) for block, n, k in sites]
        if self.policy.reactivate:  # the stream is as long before a site as behind it
            timed = [(block, k, k) for block, _, k in timed]
        return Member(self.table.predict(lengths, timed), 0.0, counts, sites, keep=keep)

    def as_dict(self) -> dict[str, Any]:
        """The table and the rates tried, for JSON."""
        points = [
            {
                "share": self.share(member),
                "loss": member.loss,
                "keep": member.keep,
                "schedule": {block: leaves for block, _, leaves in member.sites},
            }
            for member in self.choices
        ]
        facts = {"policy": self.policy.name, "mode": str(self.lowering)}
        return {**facts, "table": self.table.as_dict(), "frontier": points}


def lost(trial: Trial, policy: Policy, fitted_on: ImageSet | None) -> float:
    """What outputs lose by a policy as it is, calibrated first on images, where there are any."""
    plain = run_passes(BACK, made_concrete(trial.dense, policy))
    fitted = fit(trial.dense, plain, policy, fitted_on) if fitted_on else None
    return trial.losses_of([fitted.put_into(plain) if fitted else plain])[0]


def width_of(dense: Recognised) -> int:
    """Channels of a model's stream."""
    state = graph.by_name(dense.graph)[dense.anatomy.states[0]].meta["val"]
    return int(state.shape[-1])


def stream(plan: Plan, anatomy: Anatomy) -> tuple[tuple[int, ...], tuple[Site, ...]]:
    """The length of each block's stream, and the sites: what a plan comes to."""
    counts, last = [anatomy.tokens] * anatomy.depth, plan.rejoin or anatomy.depth
    for site in plan.sites:
        counts[site.block : last] = [site.leaves] * (last - site.block)
    return tuple(counts), tuple((site.block, site.tokens, site.leaves) for site in plan.sites)


def _largest(
    holds: Callable[[float], bool], steps: int, low: float = LEAST, high: float = 1.0
) -> float | None:
    """The largest number between two for which it holds, as it does for smaller ones; None where nowhere."""
    if holds(high):
        return high
    if not holds(low):
        return None
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
