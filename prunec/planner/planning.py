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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from prunec.compiler import compile_recognised
from prunec.errors import PlanError
from prunec.frontend.sources import ImageSet
from prunec.latency.losses import Trial
from prunec.measure import cost, figures
from prunec.measure.figures import Progress
from prunec.planner.frontiers import Map, schedule_of
from prunec.schedules.goal import Goal
from prunec.schedules.schedule import Schedule, scheduled
from prunec.schedules.search import Choice
from prunec.targets import Flat, Target, device_of

LEAST_GAIN = 0.03
MOST_BUILT = 4  # schedules in one round of the loop
MARGINS = (1.0, 0.97, 1.03, 0.94)  # what is predicted may be wrong: shares of the budget to build for
CORRECTIONS = 2  # rounds of the loop behind the first; the last one only where nothing met the goal yet
ROUNDS = 15
SECONDS = 120.0
BOUND = 0.85  # share of the dense time that the shortest stream takes, from which tokens hardly matter
TILE = 128  # rows and columns of a matrix product that one processor of a GPU works on at a time


@dataclass(frozen=True)
class Candidate:
    """One schedule: what was predicted of it, and what was measured."""

    mode: str
    schedule: Schedule  # empty: no site, only dead rows left out
    predicted: float  # share of the dense model's time
    expected: float  # loss
    share: float = math.nan  # measured; not a number where it was not built
    loss: float = math.nan
    noise: float = 0.0  # of the measured share

    def meets(self, goal: Goal) -> bool:
        """Whether it does what was asked for, by measurement."""
        return self.share <= goal.share if goal.share is not None else self.loss <= (goal.loss or 0)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON, which has no NaN: what was not measured is null."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


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


Name = tuple[str, tuple[tuple[int, int], ...]]  # mode, schedule


class Workshop:
    """Builds schedules, and times them beside the dense model."""

    def __init__(
        self,
        original: nn.Module,
        trial: Trial,
        target: Target,
        flat: tuple[Any, ...],
        calibration: ImageSet | None,
        *,
        rounds: int = ROUNDS,
        progress: Progress = lambda step: None,
    ) -> None:
        self.original, self.dense, self.target, self.flat = original, trial.dense, target, flat
        self.trial, self.calibration, self.rounds, self.progress = trial, calibration, rounds, progress
        self.calls: dict[Name, Flat] = {}
        self.losses: dict[Name, float] = {}
        self.forecasts: dict[Name, tuple[float, float]] = {}

    def build(self, plan: Map, choice: Choice) -> None:
        """Compile a schedule, and see what its outputs lose."""
        schedule = schedule_of(choice)
        name = (str(plan.lowering), tuple(sorted(schedule.items())))
        self.forecasts.setdefault(name, (plan.share(choice), choice.loss))
        if name in self.calls:
            return
        self.progress(f"build {described(schedule)}")
        compiled = compile_recognised(
            self.original,
            self.dense,
            scheduled(plan.policy, plan.anatomy, schedule),
            self.calibration,
            calibrate=self.calibration is not None,
            lowering=plan.lowering,
        )
        self.losses[name] = self.trial.losses_of([compiled.plain])[0]
        self.calls[name] = self.target.lower(compiled.pruned)

    def measured(self) -> tuple[Candidate, ...]:
        """All that was built, timed in one interleaved run."""
        runs = {str(name): figures.bound(call, self.flat) for name, call in self.calls.items()}
        runs["dense"] = figures.bound(self.lowered, self.flat)
        self.progress(f"compile {len(runs)} programs")
        with torch.no_grad():
            for run in runs.values():
                run()
        self.progress(f"time {len(self.calls)} schedules beside the dense model")
        timings = cost.measure(runs, device=device_of(self.dense), rounds=self.rounds, seconds=SECONDS)
        found = []
        for name, (predicted, expected) in self.forecasts.items():
            share = cost.ratio(timings, str(name), "dense")
            rounds = len(timings["dense"].samples)  # fewer than asked for where time was over
            noise = cost.ratio_spread(timings, str(name), "dense") / math.sqrt(rounds)
            mode, schedule = name
            loss = self.losses[name]
            found.append(Candidate(mode, dict(schedule), predicted, expected, share, loss, noise))
        return tuple(found)

    def cleared(self) -> Workshop:
        """The same workshop without what was built in it."""
        self.calls, self.losses, self.forecasts = {}, {}, {}
        return self

    @cached_property
    def lowered(self) -> Flat:
        """The dense model, compiled once for all runs."""
        return self.target.lower(self.dense)


def decide(maps: Sequence[Map], goal: Goal, workshop: Workshop) -> Decision:
    """Build the schedules that are predicted to do best, and choose among them by what is measured.

    Args:
        maps: the frontier in each mode that may be chosen.
        goal: what is asked for.
        workshop: where schedules are built and timed.

    Raises:
        PlanError: no schedule of the policy can reach the goal.
    """
    first = _proposals(maps, goal, 1.0)
    if not first and all(plan.reaching(goal) is None for plan in maps):
        raise unreachable(maps, goal)
    workshop.build(maps[0], maps[0].dense_choice)
    for plan, choice in first:
        workshop.build(plan, choice)
    for plan, choice in _refined(first, goal, workshop):
        workshop.build(plan, choice)
    found, scale = workshop.measured(), 1.0
    for _ in range(CORRECTIONS if goal.share is not None else 0):
        sited = [one for one in found if one.schedule] or found  # where none was thought to be needed
        scale = statistics.median(one.share / one.predicted for one in sited)
        for plan, choice in _proposals(maps, goal, scale):
            workshop.build(plan, choice)
        if len(workshop.calls) == len(found):
            break
        found = workshop.measured()
        if any(one.schedule and one.meets(goal) for one in found):
            break
    return _chosen(found, goal, scale, maps[0])


def _proposals(maps: Sequence[Map], goal: Goal, scale: float) -> list[tuple[Map, Choice]]:
    """The schedules worth building: the best for the goal, and for a little more and less."""
    found: list[tuple[Map, Choice]] = []
    for margin in MARGINS:
        choices = [(plan, plan.reaching(goal, margin, scale)) for plan in maps]
        fitting = [(plan, choice) for plan, choice in choices if choice is not None]
        if goal.share is not None:
            fitting.sort(key=lambda pair: pair[1].loss)
        else:
            fitting.sort(key=lambda pair: pair[0].share(pair[1]))
        found += [pair for pair in fitting[: 1 if found else None] if pair[1].sites and pair not in found]
    return found[:MOST_BUILT]


def _refined(
    proposals: Sequence[tuple[Map, Choice]], goal: Goal, workshop: Workshop
) -> Iterator[tuple[Map, Choice]]:
    """The best schedule that begins like the most promising one, by losses measured behind its first site."""
    if not proposals:  # no site at all is predicted to do
        return
    plan, choice = proposals[0]
    if len(choice.sites) < 2 or plan.policy.reactivate:
        return
    workshop.progress(f"what is lost behind a site at block {choice.sites[0][0]}")
    better = plan.reaching(goal, among=plan.behind(choice.sites[0], workshop.trial))
    if better is not None:
        yield plan, better


def _chosen(found: tuple[Candidate, ...], goal: Goal, scale: float, plan: Map) -> Decision:
    """The candidate that meets the goal and loses least, or is fastest; none where it gains too little."""
    bare = next(candidate for candidate in found if not candidate.schedule)
    pruned = [candidate for candidate in found if candidate.schedule]
    if goal.share is not None and bare.meets(goal):
        reason = f"leaving out dead rows is enough: {bare.share:.3f} of the dense time, no loss"
        return Decision(bare, found, scale, reason)
    if not pruned:
        reason = f"no schedule with a site is predicted to reach {goal}"
        return Decision(bare, found, scale, reason, gains=False)
    fitting = [candidate for candidate in pruned if candidate.meets(goal)]
    notes: tuple[str, ...] = ()
    if fitting and goal.share is not None:
        best = min(fitting, key=lambda candidate: (candidate.loss, candidate.share))
    elif fitting:
        best = min(fitting, key=lambda candidate: candidate.share)
    elif goal.share is not None:
        best = min(pruned, key=lambda candidate: candidate.share)
        notes = (f"the goal was missed: {best.share:.3f} of the dense time measured, {goal} asked for",)
    else:
        best = min(pruned, key=lambda candidate: candidate.loss)
        notes = (f"the goal was missed: a loss of {best.loss:.3g} measured, {goal} asked for",)
    gain, noise = bare.share - best.share, 2 * max(best.noise, bare.noise)
    if gain < max(LEAST_GAIN, noise):
        return Decision(bare, found, scale, _why_not(plan, gain, noise), gains=False)
    return Decision(best, found, scale, notes=notes)


def _why_not(plan: Map, gain: float, noise: float) -> str:
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


def _busy(plan: Map) -> str:
    """How much of a GPU one matrix product of the model keeps busy, in words."""
    processors = plan.table.place.get("processors")
    if not isinstance(processors, int):
        return ""
    rows = int(plan.table.work["batch"]) * plan.table.counts[0]
    tiles = -(-rows // TILE) * -(-plan.width // TILE)
    return f" ({min(tiles, processors)} of {processors} processors busy)" if tiles < processors else ""


def unreachable(maps: Sequence[Map], goal: Goal) -> PlanError:
    """That no schedule is fast enough, or loses little enough, and what to do."""
    plan = min(maps, key=lambda plan: plan.share(plan.choices[0]))
    fastest = plan.choices[0]
    return PlanError(
        f"no schedule of policy {plan.policy.name!r} reaches {goal}: the fastest is predicted to take "
        f"{plan.share(fastest):.3f} of it ({described(schedule_of(fastest))}, mode {plan.lowering})",
        where="the goal of the plan",
        remedy="ask for less, allow more sites (--sites) or earlier ones (--first), or use another policy",
    )


def described(schedule: Schedule) -> str:
    """`block 3: 112, block 7: 48`; blocks in a row with the same length are named once."""
    parts: list[tuple[int, int, int]] = []  # first block, last block, length
    for block, leaves in sorted(schedule.items()):
        if parts and parts[-1][1:] == (block - 1, leaves):
            parts[-1] = (parts[-1][0], block, leaves)
        else:
            parts.append((block, block, leaves))
    named = [
        f"block {first}: {leaves}" if first == last else f"blocks {first} to {last}: {leaves}"
        for first, last, leaves in parts
    ]
    return ", ".join(named) or "no site"
