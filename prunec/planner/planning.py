"""The planner: which blocks get a site, and how many tokens go on, so that a budget is met on this device.

    table (measured) --.
                       +--> frontier --> the best few --> built, timed, compared --> one of them, or none
    losses (measured) -'        ^                               |
                                '-- scale; losses that add up --'

A goal is a share of the compiled dense model's time, or a loss. What is predicted only says what to build;
what is chosen is chosen by what was measured. When no schedule gains enough it says so, and why.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunec.errors import PlanError
from prunec.planner.frontiers import schedule_of
from prunec.planner.lines import Line
from prunec.planner.workshop import Candidate, Space, Workshop, described
from prunec.schedules.goal import Goal
from prunec.schedules.search import Choice

LEAST_GAIN = 0.03
MOST_BUILT = 4  # schedules in one round of the loop
MARGINS = (1.0, 0.97, 1.03, 0.94)  # what is predicted may be wrong: shares of the budget to build for
CORRECTIONS = 2  # rounds of the loop behind the first; the last one only where nothing met the goal yet
BOUND = 0.85  # share of the dense time that the shortest stream takes, from which tokens hardly matter
BEHIND = 2.0  # times the least loss at the first schedules of all policies: others are not refined
TILE = 128  # rows and columns of a matrix product that one processor of a GPU works on at a time


@dataclass(frozen=True)
class Decision:
    """What was chosen, beside what else was built, and why."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    scale: float = 1.0  # measured over predicted time, where a second round was planned by it
    reason: str = ""  # why there is no site; empty where there is one
    gains: bool = True  # whether it was worth it
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        candidates = [candidate.as_dict() for candidate in self.candidates]
        return {**asdict(self), "chosen": self.chosen.as_dict(), "candidates": candidates}


def decide(
    spaces: Sequence[Space],
    goal: Goal,
    workshop: Workshop,
    beside: Sequence[tuple[Space, Choice]] = (),
    never: str = "",
) -> Decision:
    """Build the schedules that are predicted to do best, and choose among them by what is measured.

    Args:
        spaces: what may be chosen: of one policy or of several, in each mode.
        goal: what is asked for.
        workshop: where schedules are built and timed.
        beside: what is built in any case.
        never: the policy of it that is not chosen: the control.

    Raises:
        PlanError: nothing can reach the goal.
    """
    first = _proposals(spaces, goal, {})
    if not first and all(plan.reaching(goal) is None for plan in spaces):
        raise unreachable(spaces, goal)
    workshop.build(spaces[0], spaces[0].dense_choice)
    for plan, choice in (*first, *beside):
        workshop.build(plan, choice)
    for plan, choice in _refined(first, goal, workshop):
        workshop.build(plan, choice)
    found, scales = workshop.measured(), dict[str, float]()
    for _ in range(CORRECTIONS if goal.share is not None else 0):
        scales = _scales(found)
        ahead = _ahead(found, spaces, never)
        for plan, choice in _proposals(ahead, goal, scales):
            workshop.build(plan, choice)
        if len(workshop.calls) == len(found):
            break
        found = workshop.measured()
        met = {one.policy for one in found if one.schedule and one.meets(goal)}
        if met >= {plan.policy.name for plan in ahead}:
            break
    return _chosen(found, goal, scales, spaces[0], never)


def _scales(found: Sequence[Candidate]) -> dict[str, float]:
    """How many times as long as predicted the schedules of each policy took."""
    sited = [one for one in found if one.schedule] or found  # where none was thought to be needed
    policies = dict.fromkeys(one.policy for one in found)
    ratios = {name: [one.share / one.predicted for one in sited if one.policy == name] for name in policies}
    every = [ratio for of_one in ratios.values() for ratio in of_one]
    return {name: statistics.median(of_one or every) for name, of_one in ratios.items()}


def _ahead(found: Sequence[Candidate], spaces: Sequence[Space], never: str) -> list[Space]:
    """The spaces of policies that may still turn out the best."""
    least: dict[str, float] = {}
    for one in found:
        if one.schedule and one.policy != never:
            least[one.policy] = min(one.loss, least.get(one.policy, math.inf))
    most = BEHIND * min(least.values(), default=math.inf)
    return [plan for plan in spaces if least.get(plan.policy.name, 0.0) <= most]


def _proposals(
    spaces: Sequence[Space], goal: Goal, scales: Mapping[str, float]
) -> list[tuple[Space, Choice]]:
    """What is worth building: of each policy the best for the goal, and for a little more and less."""
    names = dict.fromkeys(plan.policy.name for plan in spaces)
    margins = MARGINS if len(names) == 1 else MARGINS[: 1 + bool(scales)]
    found = [
        _of_one([plan for plan in spaces if plan.policy.name == name], goal, scales.get(name, 1.0), margins)
        for name in names
    ]
    found.sort(key=lambda pairs: _foreseen(pairs[0], goal) if pairs else (math.inf, math.inf))
    return [pair for pairs in found for pair in pairs]


def _of_one(
    spaces: Sequence[Space], goal: Goal, scale: float, margins: Sequence[float]
) -> list[tuple[Space, Choice]]:
    """What is worth building of one policy: the first in every space, the others in the best one."""
    found: list[tuple[Space, Choice]] = []
    for margin in margins:
        choices = [(plan, plan.reaching(goal, margin, scale)) for plan in spaces]
        fitting = [(plan, choice) for plan, choice in choices if choice is not None]
        fitting.sort(key=lambda pair: _foreseen(pair, goal))
        found += [pair for pair in fitting[: 1 if found else None] if pair[1].sites and pair not in found]
    return found[:MOST_BUILT]


def _foreseen(pair: tuple[Space, Choice], goal: Goal) -> tuple[float, float]:
    """By what choices that reach a goal are compared: less is better."""
    plan, choice = pair
    share = plan.share(choice)
    return (choice.loss, share) if goal.share is not None else (share, choice.loss)


def _refined(
    proposals: Sequence[tuple[Space, Choice]], goal: Goal, workshop: Workshop
) -> Iterator[tuple[Space, Choice]]:
    """The best schedule that begins like the most promising one, by losses measured behind its first site."""
    if not proposals:  # no site at all is predicted to do
        return
    plan, choice = proposals[0]
    if isinstance(plan, Line) or len(choice.sites) < 2 or plan.policy.reactivate:
        return
    workshop.progress(f"what is lost behind a site at block {choice.sites[0][0]}")
    better = plan.reaching(goal, among=plan.behind(choice.sites[0], plan.trial or workshop.trial))
    if better is not None:
        yield plan, better


def _chosen(
    found: tuple[Candidate, ...], goal: Goal, scales: Mapping[str, float], plan: Space, never: str
) -> Decision:
    """The candidate that meets the goal and loses least, or is fastest; none where it gains too little."""
    bare = next(candidate for candidate in found if not candidate.schedule)
    pruned = [candidate for candidate in found if candidate.schedule and candidate.policy != never]
    scale = scales.get(plan.policy.name, 1.0)
    if goal.share is not None and bare.meets(goal):
        reason = f"leaving out dead rows is enough: {bare.share:.3f} of the dense time, no loss"
        return Decision(bare, found, scale, reason)
    if not pruned:
        reason = f"no schedule with a site is predicted to reach {goal}"
        return Decision(bare, found, scale, reason, gains=False)
    best = min(pruned, key=lambda candidate: _merit(candidate, goal))
    notes: tuple[str, ...] = ()
    if not best.meets(goal):
        came = (
            f"{best.share:.3f} of the dense time" if goal.share is not None else f"a loss of {best.loss:.3g}"
        )
        notes = (f"the goal was missed: {came} measured, {goal} asked for",)
    scale = scales.get(best.policy, 1.0)
    gain, noise = bare.share - best.share, 2 * max(best.noise, bare.noise)
    if gain < max(LEAST_GAIN, noise):
        return Decision(bare, found, scale, _why_not(plan, gain, noise), gains=False)
    return Decision(best, found, scale, notes=notes)


def _why_not(plan: Space, gain: float, noise: float) -> str:
    """One sentence on why pruning does not pay here."""
    table, counts = plan.table, plan.table.counts
    where = f"batch {table.work.get('batch')} on {table.place.get('device')}"
    if plan.floor > BOUND:
        busy = _busy(plan)
        return (
            f"{where} is bound by launches, not by tokens: a stream of {counts[-1]} tokens takes "
            f"{plan.floor:.0%} of the time of {counts[0]}{busy}; try a larger batch"
        )
    if noise > max(gain, LEAST_GAIN):
        return f"{where}: the gain of {gain:.1%} is within twice the noise of the measurement ({noise:.1%})"
    return (
        f"{where}: scoring and gathering cost about as much as shorter streams save; the best schedule is "
        f"{gain:+.1%} of the dense time better than none"
    )


def _busy(plan: Space) -> str:
    """How much of a GPU one matrix product of the model keeps busy, in words."""
    processors = plan.table.place.get("processors")
    if not isinstance(processors, int):
        return ""
    rows = int(plan.table.work["batch"]) * plan.table.counts[0]
    tiles = -(-rows // TILE) * -(-plan.width // TILE)
    return f" ({min(tiles, processors)} of {processors} processors busy)" if tiles < processors else ""


def unreachable(spaces: Sequence[Space], goal: Goal) -> PlanError:
    """That no schedule is fast enough, or loses little enough, and what to do."""
    plan = min(spaces, key=lambda plan: plan.share(plan.fastest))
    fastest = plan.fastest
    return PlanError(
        f"no schedule of policy {plan.policy.name!r} reaches {goal}: the fastest is predicted to take "
        f"{plan.share(fastest):.3f} of it ({described(schedule_of(fastest))}, mode {plan.lowering})",
        where="the goal of the plan",
        remedy="ask for less, allow more sites (--sites) or earlier ones (--first), or use another policy",
    )


def leading(found: Sequence[Candidate], goal: Goal | None) -> dict[str, Candidate]:
    """The best candidate of each policy that has one with a site: by the goal, or the nearest to it."""
    best: dict[str, Candidate] = {}
    for one in sorted(found, key=lambda one: _merit(one, goal)):
        if one.schedule:
            best.setdefault(one.policy, one)
    return best


def _merit(one: Candidate, goal: Goal | None) -> tuple[bool, float]:
    """By what candidates are compared: less is better."""
    if goal is None or goal.share is not None:
        meets = goal is None or one.meets(goal)
        return (not meets, one.loss if meets else one.share)
    return (not one.meets(goal), one.share if one.meets(goal) else one.loss)
