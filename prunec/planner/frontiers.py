"""What a table and losses say together: the frontier of a policy's schedules in one mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from prunec.latency.losses import Losses, Trial
from prunec.latency.table import LatencyTable
from prunec.policy.lowering import Lowering
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal
from prunec.schedules.schedule import Schedule, scheduled, shortest
from prunec.schedules.search import Choice, Costs, Limits, best, fastest, frontier
from prunec.structure import Anatomy

NEVER = 1e6  # seconds: what a site takes that the policy cannot make


@dataclass(frozen=True)
class Map:
    """A policy's schedules in one mode, by predicted time and loss."""

    policy: Policy
    anatomy: Anatomy
    lowering: Lowering
    table: LatencyTable
    losses: Losses
    limits: Limits
    width: int = 0  # channels of the stream
    trial: Trial | None = None  # that its losses come from

    @cached_property
    def costs(self) -> Costs:
        """What each decision costs."""
        counts, depth = self.table.counts, self.anatomy.depth
        blocks = tuple(
            tuple(self.table.block(block, self.losses.longest_of(block, n, self.lowering)) for n in counts)
            for block in range(depth)
        )
        sites = tuple(tuple(self._site(n, k) for k in counts) for n in counts)
        return Costs(counts, self.table.fixed, blocks, sites, self.losses.rows())

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """The frontier, by rising time."""
        return frontier(self.costs, self.limits)

    def share(self, choice: Choice) -> float:
        """Its predicted time over the dense model's."""
        return choice.time / self.table.dense

    def reaching(
        self,
        goal: Goal,
        margin: float = 1.0,
        scale: float = 1.0,
        among: Sequence[Choice] | None = None,
    ) -> Choice | None:
        """The best schedule for a goal, by the prediction; None where none reaches it.

        Args:
            goal: a share of the dense time, or a loss.
            margin: what to take of the goal: less leaves room for a prediction that is too good.
            scale: how many times as long as predicted schedules were seen to take.
            among: choices by rising time; the whole frontier when left out.
        """
        choices = self.choices if among is None else among
        if goal.share is not None:
            return best(choices, goal.share * margin / scale * self.table.dense)
        return fastest(choices, (goal.loss or 0.0) * margin)

    @property
    def fastest(self) -> Choice:
        """The schedule that is predicted to be the fastest."""
        return self.choices[0]

    def made(self, schedule: Schedule) -> Policy:
        """The policy with a schedule."""
        return scheduled(self.policy, self.anatomy, schedule)

    @property
    def dense_choice(self) -> Choice:
        """No site at all."""
        counts = (self.anatomy.tokens,) * self.anatomy.depth
        return Choice(self.table.fixed + sum(row[0] for row in self.costs.blocks), 0.0, counts)

    @property
    def floor(self) -> float:
        """The share of the dense time that the shortest stream takes: near 1 nothing can be gained."""
        shortest_block = sum(min(row) for row in self.costs.blocks)
        return (self.table.fixed + shortest_block) / (
            self.table.fixed + sum(row[0] for row in self.costs.blocks)
        )

    def behind(self, site: tuple[int, int, int], trial: Trial) -> tuple[Choice, ...]:
        """The frontier of schedules that begin with this site, its later losses measured behind it.

        Losses add up by assumption; behind the first site of a chosen schedule they are measured instead.
        """
        block, _, leaves = site
        costs, column = self.costs, self.costs.counts.index(leaves)
        counts, later = costs.counts[column:], costs.blocks[block + 1 :]
        before = costs.fixed + sum(row[0] for row in costs.blocks[:block])
        fixed = before + costs.sites[0][column] + costs.blocks[block][column]
        lost, dense = self.losses.behind[block][column], (self.anatomy.tokens,) * block
        if block >= self.last:
            time = fixed + sum(row[column] for row in later)
            return (Choice(time, lost, (*dense, leaves, *(leaves for _ in later)), (site,)),)
        rest = Costs(
            counts,
            fixed,
            tuple(row[column:] for row in later),
            tuple(row[column:] for row in costs.sites[column:]),
            trial.behind(block, leaves, counts, range(block + 1, self.last + 1)),
        )
        sites = None if self.limits.sites is None else self.limits.sites - 1
        only = self.limits.only and tuple(other - block - 1 for other in self.limits.only if other > block)
        limits = replace(self.limits, first=0, last=self.last - block - 1, sites=sites, only=only)
        return tuple(
            Choice(
                choice.time,
                lost + choice.loss,
                (*dense, leaves, *choice.counts),
                (site, *((block + 1 + place, n, k) for place, n, k in choice.sites)),
            )
            for choice in frontier(rest, limits)
        )

    @property
    def last(self) -> int:
        """The last block that may have a site."""
        depth = self.anatomy.depth - 1
        return depth if self.limits.last is None else min(self.limits.last, depth)

    def _site(self, entering: int, leaving: int) -> float:
        if leaving >= entering:
            return 0.0
        if leaving < shortest(self.policy, self.anatomy, entering):
            return NEVER
        if self.policy.reactivate:  # the stream is as long before a site as behind it
            return self.table.site(leaving, leaving)
        return self.table.site(entering, leaving)

    def as_dict(self) -> dict[str, Any]:
        """The table and the frontier, for JSON."""
        points = [
            {"share": self.share(choice), "loss": choice.loss, "schedule": schedule_of(choice)}
            for choice in self.choices
        ]
        facts = {"policy": self.policy.name, "mode": str(self.lowering)}
        return {**facts, "table": self.table.as_dict(), "frontier": points}


def schedule_of(choice: Choice) -> dict[int, int]:
    """Stream length behind the site of each block that has one."""
    return {block: leaves for block, _, leaves in choice.sites}


def some(choices: Sequence[Choice], count: int) -> tuple[Choice, ...]:
    """A few of a frontier, evenly by time, the ends among them; of one the fastest."""
    if len(choices) <= count:
        return tuple(choices)
    first, last = choices[0].time, choices[-1].time
    wanted = [first + (last - first) * place / max(1, count - 1) for place in range(count)]
    return tuple(dict.fromkeys(min(choices, key=lambda choice: abs(choice.time - at)) for at in wanted))
