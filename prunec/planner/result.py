"""What a plan came to, how it was found, and how that is told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prunec.latency.losses import Losses
from prunec.planner.lines import Line
from prunec.planner.planning import Decision, leading
from prunec.planner.workshop import Candidate, Space, described
from prunec.policy.lowering import Lowering
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal


@dataclass(frozen=True)
class Entrant:
    """One of several policies, as it was seen before anything was built; or why it cannot take part."""

    policy: str
    share: float = math.nan  # of the dense time, predicted
    loss: float = math.nan  # measured, at that rate
    keep: float | None = None  # the rate, at its own sites
    control: bool = False  # runs along, and is never chosen
    why_not: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON, which has no NaN: what is not known is null."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class PlanResult:
    """A policy with its schedule or its rate, and how it was found."""

    policy: Policy
    lowering: Lowering
    goal: Goal | None
    maps: tuple[Space, ...]
    decision: Decision
    seconds: Mapping[str, float]
    entrants: tuple[Entrant, ...] = ()  # where several policies were to choose from

    @property
    def losses(self) -> Losses:
        """What shortening costs."""
        return self.maps[0].losses

    @property
    def at(self) -> Space:
        """What the chosen one was chosen from."""
        return space_of(self.maps, self.decision.chosen)

    def as_dict(self) -> dict[str, Any]:
        """Everything that led to the decision, for JSON."""
        return {
            "goal": {"share": self.goal.share, "loss": self.goal.loss} if self.goal else None,
            "policy": self.policy.name,
            "policies": [one.as_dict() for one in self.entrants],
            "modes": [plan.as_dict() for plan in self.maps],
            "losses": self.losses.as_dict(),
            **self.decision.as_dict(),
            "seconds": dict(self.seconds),
        }

    def rows(self) -> Iterator[tuple[str, str]]:
        """Label and text, for the report."""
        decision, kind = self.decision, self.losses.kind
        name = f"{self.policy.name}, " if self.entrants else ""
        goal = self.goal or "at equal work"
        yield "planned", f"{goal}: {name}{_told(decision.chosen)}, mode {decision.chosen.mode}"
        if decision.reason:
            yield "", decision.reason
        yield from (("", note) for note in decision.notes)
        yield from (("", line) for line in self.standing())
        yield from (("", line) for line in dict.fromkeys(map(_table, self.maps)))
        if self.losses.spread is not None:
            factor = math.exp(self.losses.spread)
            yield (
                "",
                f"losses are estimated from one dense pass: off by a factor of {factor:.1f} or so",
            )
        yield "", f"loss: {kind} from the dense model on {self.losses.images} {self.losses.name}, no accuracy"
        yield "", "share of dense, predicted and measured     loss, added up and measured"
        for candidate in decision.candidates:
            name = f"{candidate.policy}, " if self.entrants else ""
            yield "", ("> " if candidate is decision.chosen else "  ") + _line(candidate, name)
        yield "", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())

    def standing(self) -> Iterator[str]:
        """A line for each of several policies, the best first: what it takes and loses, or why it cannot."""
        built = leading(self.decision.candidates, self.goal)
        order = sorted(
            self.entrants,
            key=lambda one: (bool(one.why_not), one.control, one.policy not in built, _loss(one, built)),
        )
        least = self.decision.chosen.loss
        for one in order:
            mark = "> " if one.policy == self.policy.name else "  "
            yield mark + (f"{one.policy}: {one.why_not}" if one.why_not else _stands(one, built, least))


def space_of(spaces: tuple[Space, ...], chosen: Candidate) -> Space:
    """What a candidate was chosen from."""
    return next(
        plan
        for plan in spaces
        if str(plan.lowering) == chosen.mode
        and chosen.policy in ("", plan.policy.name)
        and (chosen.keep is None or isinstance(plan, Line))
        and (chosen.keep is not None or not chosen.schedule or not isinstance(plan, Line))
    )


def _loss(one: Entrant, built: Mapping[str, Candidate]) -> float:
    return built[one.policy].loss if one.policy in built else one.loss


def _stands(one: Entrant, built: Mapping[str, Candidate], least: float) -> str:
    candidate = built.get(one.policy)
    share, loss = (one.share, one.loss) if candidate is None else (candidate.share, candidate.loss)
    times = f", {loss / least:.3g} times the chosen one's" if least > 0 and loss != least else ""
    how = ", the control" if one.control else ""
    how += ", lost more at first look and was not built" if candidate is None else ""
    return f"{one.policy}: {share:.3f} of the dense time, loss {loss:.2e}{times}{how}"


def _told(candidate: Candidate) -> str:
    """Its sites, and its rate where they are its own."""
    rate = "" if candidate.keep is None else f"keep {candidate.keep:.3g} at its own sites, "
    return rate + described(candidate.schedule)


def _table(plan: Space) -> str:
    table = plan.table
    how = f"estimated, ±{table.error:.0%}" if table.estimated else f"measured {table.date}"
    found = f"{len(plan.choices)} rates tried" if isinstance(plan, Line) else ""
    return (
        f"table of {len(table.counts)} lengths, mode {plan.lowering}, {how} on {table.place['device']} "
        f"in {table.seconds:.0f} s, spread {table.spread:.1%}; "
        + (found or f"frontier of {len(plan.choices)} schedules")
    )


def _line(candidate: Candidate, name: str) -> str:
    times = f"{candidate.predicted:.3f} {candidate.share:.3f} ±{candidate.noise:.3f}"
    return (
        f"{times}   {candidate.expected:.2e} {candidate.loss:.2e}   "
        f"{name}{_told(candidate)}, {candidate.mode}"
    )
