"""The planner: which blocks get a site, and how many tokens go on, so that a budget is met on this device.

    table (measured) --.
                       +--> frontier --> the best few --> built, timed, compared --> one of them, or none
    losses (measured) -'        ^                               |
                                '-- scale; losses that add up --'

A goal is a share of the compiled dense model's time, or a loss. What is predicted only says what to build;
what is chosen is chosen by what was measured. When no schedule gains enough it says so, and why.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunec import cost
from prunec.compiler import Compiled, compile_recognised
from prunec.errors import UsageError
from prunec.figures import Progress
from prunec.planner.frontiers import Map, schedule_of
from prunec.planner.losses import Trial
from prunec.planner.schedule import Schedule, scheduled
from prunec.planner.search import Choice
from prunec.policy import Policy
from prunec.program import Program
from prunec.sources import Pictures
from prunec.targets import Flat, Target, device_of

LEAST_GAIN = 0.03
MOST_BUILT = 4  # schedules in one round of the loop
MARGINS = (1.0, 0.97, 1.03, 0.94)  # what is predicted may be wrong: shares of the budget to build for
ROUNDS = 15
SECONDS = 120.0


@dataclass(frozen=True)
class Goal:
    """What a plan is to reach: a share of the dense model's time, or a loss that is not to be exceeded."""

    share: float | None = None
    loss: float | None = None

    @classmethod
    def of(cls, latency: float | None, speedup: float | None, max_drop: float | None) -> Goal:
        """The goal that was asked for; UsageError unless it is one."""
        given = {"latency": latency, "speedup": speedup, "max-drop": max_drop}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise UsageError(
                f"give one of --latency, --speedup and --max-drop, got {' and '.join(named) or 'none'}",
                where="the goal of a plan",
            )
        if latency is not None and not 0 < latency < 1:
            raise UsageError(f"latency is a share of the dense model's time, in (0, 1), got {latency:g}")
        if speedup is not None and not speedup > 1:
            raise UsageError(f"speedup must be above 1, got {speedup:g}")
        if max_drop is not None and not max_drop > 0:
            raise UsageError(f"max-drop is a divergence in nats, above 0, got {max_drop:g}")
        return cls(latency if speedup is None else 1 / speedup, max_drop)

    def __str__(self) -> str:
        if self.share is not None:
            return f"at most {self.share:.3g} of the dense time"
        return f"a loss of at most {self.loss:.3g}"


@dataclass(frozen=True)
class Candidate:
    """One schedule: what was predicted of it, and what was measured."""

    mode: str
    schedule: Schedule  # empty: no site, only what nobody reads left out
    predicted: float  # share of the dense model's time
    expected: float  # loss
    share: float  # measured
    loss: float
    noise: float  # of the measured share

    def meets(self, goal: Goal) -> bool:
        """Whether it does what was asked for, by measurement."""
        return self.share <= goal.share if goal.share is not None else self.loss <= (goal.loss or 0)


@dataclass(frozen=True)
class Decision:
    """What was chosen, beside what else was built, and why."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    scale: float  # measured over predicted
    reason: str  # why there is no site; empty where there is one
    seconds: float

    @property
    def gains(self) -> bool:
        """Whether pruning is worth it here."""
        return not self.reason


class Workshop:
    """Builds schedules, and times them beside the dense model."""

    def __init__(
        self,
        original: nn.Module,
        dense: Program,
        policy: Policy,
        target: Target,
        flat: tuple[Any, ...],
        trial: Trial,
        calibration: Pictures | None,
        say: Progress,
    ) -> None:
        self.original, self.dense, self.policy, self.target = original, dense, policy, target
        self.flat, self.trial, self.calibration, self.say = flat, trial, calibration, say
        self.calls: dict[tuple[str, tuple[tuple[int, int], ...]], Flat] = {}
        self.losses: dict[tuple[str, tuple[tuple[int, int], ...]], float] = {}

    def build(self, plan: Map, schedule: Schedule) -> tuple[str, tuple[tuple[int, int], ...]]:
        """Compile a schedule, and see what its outputs lose; its name among those built."""
        assert self.dense.anatomy is not None
        name = (str(plan.lowering), tuple(sorted(schedule.items())))
        if name not in self.calls:
            self.say(f"build {described(schedule)}")
            policy = scheduled(self.policy, self.dense.anatomy, schedule)
            compiled = self._compiled(policy, plan)
            self.losses[name] = self.trial.losses_of([compiled.plain])[0]
            self.calls[name] = self.target.lower(compiled.pruned)
        return name

    def _compiled(self, policy: Policy, plan: Map) -> Compiled:
        return compile_recognised(
            self.original,
            self.dense,
            policy,
            self.calibration,
            untrained=self.calibration is None,
            lowering=plan.lowering,
        )
