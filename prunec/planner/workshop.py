"""Where schedules are built, and timed beside the dense model in one interleaved run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from prunec.compiler import compile_recognised
from prunec.frontend.sources import ImageSet
from prunec.latency.losses import Trial
from prunec.measure import cost, figures
from prunec.measure.figures import Progress
from prunec.planner.frontiers import Map, schedule_of
from prunec.planner.lines import Line, Member
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal
from prunec.schedules.schedule import Schedule
from prunec.schedules.search import Choice
from prunec.targets import Flat, Target, device_of

#: What a plan is chosen from: a policy in one mode, its sites free or its own.
Space = Map | Line

ROUNDS = 15
SECONDS = 120.0


@dataclass(frozen=True)
class Candidate:
    """One schedule: what was predicted of it, and what was measured."""

    mode: str
    schedule: (
        Schedule  # empty: no site, only dead rows left out; of a policy at its own sites what these leave
    )
    predicted: float  # share of the dense model's time
    expected: float  # loss
    share: float = math.nan  # measured; not a number where it was not built
    loss: float = math.nan
    noise: float = 0.0  # of the measured share
    policy: str = ""
    keep: float | None = None  # the rate of a policy at its own sites; None where they were chosen

    def meets(self, goal: Goal) -> bool:
        """Whether it does what was asked for, by measurement."""
        return self.share <= goal.share if goal.share is not None else self.loss <= (goal.loss or 0)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON, which has no NaN: what was not measured is null."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Name:
    """What tells one thing that is built from another."""

    policy: str
    mode: str
    schedule: tuple[tuple[int, int], ...]
    keep: float | None = None

    @classmethod
    def of(cls, plan: Space, choice: Choice) -> Name:
        """Of a choice."""
        keep = choice.keep if isinstance(choice, Member) else None
        return cls(plan.policy.name, str(plan.lowering), tuple(sorted(schedule_of(choice).items())), keep)


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

    def build(self, plan: Space, choice: Choice) -> None:
        """Compile a schedule, and see what its outputs lose."""
        name = Name.of(plan, choice)
        self.forecasts.setdefault(name, (plan.share(choice), choice.loss))
        if name in self.calls:
            return
        self.progress(f"build {name.policy}, {described(dict(name.schedule))}")
        compiled = compile_recognised(
            self.original,
            self.dense,
            policy_of(plan, dict(name.schedule), name.keep),
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
            figures_of = (predicted, expected, share, self.losses[name], noise)
            found.append(Candidate(name.mode, dict(name.schedule), *figures_of, name.policy, name.keep))
        return tuple(found)

    def cleared(self) -> Workshop:
        """The same workshop without what was built in it."""
        self.calls, self.losses, self.forecasts = {}, {}, {}
        return self

    @cached_property
    def lowered(self) -> Flat:
        """The dense model, compiled once for all runs."""
        return self.target.lower(self.dense)


def policy_of(plan: Space, schedule: Schedule, keep: float | None) -> Policy:
    """The policy that a candidate comes to."""
    return plan.made(keep) if isinstance(plan, Line) else plan.made(schedule)


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
