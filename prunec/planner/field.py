"""Several policies, one budget: which of them, at which sites, with how many tokens.

    each policy, at its own sites and at others, at the rate for the budget --> its loss --.
    what does not go with the model: why not                                               |
                                                                                      the best few
    all of these and the control built and timed     each: a site of it timed, what it   <--'
    in one interleaved run, one chosen          <--  loses by block and length, searched

Blocks are timed once, with the control's sites between them; so whatever is compared early is compared at
blocks that take equal time, and what the sites take is seen of those that come further.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from prunec.errors import PlanError, PruneError, UsageError
from prunec.frontend.sources import Source
from prunec.ir.program import Recognised
from prunec.latency import sites
from prunec.latency.latency import Workload
from prunec.latency.losses import BATCH, Losses, Trial
from prunec.latency.roofline import Ceilings
from prunec.latency.table import LatencyTable
from prunec.measure import figures
from prunec.planner import planned
from prunec.planner.frontiers import Map, schedule_of
from prunec.planner.lines import Member, lost
from prunec.planner.planned import CONTROL, Explored, Request
from prunec.planner.planning import Decision, decide
from prunec.planner.result import Entrant, PlanResult
from prunec.planner.workshop import Candidate, Name, Space, policy_of
from prunec.policy.policy import Policy, presets
from prunec.schedules.goal import Goal
from prunec.schedules.schedule import unschedulable
from prunec.schedules.search import Choice

REFINED = 3  # policies that are searched, built and timed
FAR = 10.0  # times the least loss: too much to be made good by other sites
LEVELS = (0.5, 0.7, 0.85)  # shares of the dense time that policies are compared at where a loss is the goal
WORK = Ceilings(1e12, 1e15, launch=0.0, name="FLOPs")  # of a device that does nothing but compute
SECONDS = 40.0  # that one policy's losses may take, by block and length; about so many passes:
PASSES = 30


@dataclass(frozen=True)
class Field:
    """Policies to choose from, and those that are known not to take part."""

    policies: tuple[Policy, ...]
    absent: tuple[Entrant, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether there is nothing to choose from."""
        return len(self.policies) == 1 and not self.absent

    @classmethod
    def of(cls, policies: Sequence[Policy]) -> Field:
        """Policies that were named; the control runs along in any case."""
        names = [policy.name for policy in policies]
        if len(set(names)) < len(names):
            raise UsageError(
                f"two policies have one name: {', '.join(names)}",
                where="the policies to choose from",
                remedy="name each once, or give one of them another name",
            )
        rivals = tuple(policy for policy in policies if policy.name != CONTROL or len(policies) == 1)
        if not rivals:
            raise UsageError("no policy is named", where="the policies to choose from")
        return cls(rivals)

    @classmethod
    def auto(cls) -> Field:
        """All presets that mean something without training."""
        known = [policy for policy in presets().values() if policy.name != CONTROL and _prunes(policy)]
        untrained = [policy for policy in known if policy.training and policy.training.required]
        why = "needs training, and is calibrated at best"
        absent = tuple(Entrant(policy.name, why_not=why) for policy in untrained)
        return cls(tuple(policy for policy in known if policy not in untrained), absent)


def plan(source: Source, dense: Recognised, goal: Goal, request: Request, field: Field) -> PlanResult:
    """The policy, its sites and counts that reach a goal on this device with the least loss.

    Raises:
        PlanError: no policy can be used on this model, or none reaches the goal.
    """
    if field.alone:
        return planned.plan(source, dense, goal, replace(request, policy=field.policies[0]))
    start = time.perf_counter()
    seconds = {}
    table = planned.control_table(dense, request)
    seconds["table"] = time.perf_counter() - start
    trial = _trial(dense, request, field)
    passed = time.perf_counter() - start - seconds["table"]
    seen, control = _looked(field, goal, request, trial, table)
    entrants = (*(one.entrant for one in seen), *field.absent, replace(control.entrant, control=True))
    seconds["first look"] = time.perf_counter() - start - sum(seconds.values())
    ahead = _ahead(seen)
    if not ahead:
        raise _none(entrants)
    most = max(1, int(trial.images * SECONDS / (PASSES * passed)))
    spaces = _refined(ahead, request, trial, table, most)
    seconds["sites, losses"] = time.perf_counter() - start - sum(seconds.values())
    flat = figures.inputs(dense, request.batch, request.images.images)
    explored = Explored(dense, spaces, trial, flat, seconds)
    if request.search.build:
        beside = [one.pair for one in (*ahead, control) if one.pair is not None]
        decision = decide(spaces, goal, planned.workshop_of(source, explored, request), beside, CONTROL)
    else:
        best = planned.foreseen(explored, goal)
        decision = Decision(best, (best,), notes=("predicted, not built: nothing was timed",))
    seconds["build and time"] = time.perf_counter() - start - sum(seconds.values())
    return planned.planned(explored, goal, decision, seconds, entrants)


def compare(dense: Recognised, keep: float, request: Request, field: Field) -> PlanResult:
    """The policy that loses least at equal work: as many FLOPs as the control at a rate. Nothing is timed.

    Raises:
        PlanError: no policy can be used on this model.
    """
    start = time.perf_counter()
    random = replace(request, policy=Policy.load(CONTROL))
    table = planned.estimated(dense, random, WORK)
    trial = _trial(dense, request, field)
    line = planned.lines(dense, random, trial, table)[0]
    look = Look(Goal(latency=line.share(line.at(keep))), dense, request, trial, table)
    seen, control = [look.at(policy) for policy in field.policies], look.at(random.policy)
    entrants = (*(one.entrant for one in seen), *field.absent, replace(control.entrant, control=True))
    best = min(seen, key=lambda one: one.loss)
    if best.pair is None:
        raise _none(entrants)
    space, choice = best.pair
    name = Name.of(space, choice)
    figures_of = (space.share(choice), choice.loss, math.nan, choice.loss, 0.0)
    chosen = Candidate(name.mode, dict(name.schedule), *figures_of, name.policy, name.keep)
    note = f"compared at as many FLOPs as {CONTROL} tokens take at keep {keep:g}; nothing was timed"
    made = policy_of(space, chosen.schedule, chosen.keep)
    seconds = {"first look": time.perf_counter() - start}
    decision = Decision(chosen, (chosen,), notes=(note,))
    return PlanResult(made, space.lowering, None, (space,), decision, seconds, entrants)


def _trial(dense: Recognised, request: Request, field: Field) -> Trial:
    """The images and what the dense model makes of them, batch by batch."""
    ragged = request.batch > 1 and any(policy.ragged for policy in field.policies)
    return Trial(dense, Policy.load(CONTROL), request.images.images, request.batch if ragged else BATCH)


@dataclass(frozen=True)
class Look:
    """The first look at policies: what each loses at one share of the dense time."""

    goal: Goal  # a share
    dense: Recognised
    request: Request
    trial: Trial
    table: LatencyTable  # of the control: what blocks take

    def at(self, policy: Policy) -> Seen:
        """A policy at its own sites or at those that fit the budget, whichever loses less."""
        self.request.progress(f"what {policy.name} loses")
        try:
            spaces = list(self._spaces(policy))
        except PruneError as error:
            return Seen(Entrant(policy.name, why_not=error.what))
        seen = map(self._seen, spaces)
        return min(seen, key=lambda one: (one.loss, math.isnan(one.entrant.share), one.entrant.share))

    def _spaces(self, policy: Policy) -> Iterator[Space]:
        asked = replace(self.request, policy=policy)
        line = planned.lines(self.dense, asked, self.trial, self.table)[0]
        yield line
        if not unschedulable(policy):
            limits = planned.limits(self.dense.anatomy, asked)
            known = alike(self.table.counts, self.dense.anatomy.depth)
            yield Map(policy, self.dense.anatomy, line.lowering, self.table, known, limits)

    def _seen(self, space: Space) -> Seen:
        try:
            return self._measured(space)
        except PruneError as error:  # its sites do not go with the model
            return Seen(Entrant(space.policy.name, why_not=error.what))

    def _measured(self, space: Space) -> Seen:
        choice, policy = space.reaching(self.goal), space.policy
        if choice is None:
            least = space.share(space.fastest)
            why = f"takes {least:.3f} of the dense time at the least"
            return Seen(Entrant(policy.name, least, why_not=why))
        keep = choice.keep if isinstance(choice, Member) else None
        loss = choice.loss
        if keep is None:
            made = policy_of(space, schedule_of(choice), None)
            loss = lost(self.trial, made, self.request.images if self.request.calibrated else None)
        return Seen(
            Entrant(policy.name, space.share(choice), loss, keep), (space, replace(choice, loss=loss))
        )


@dataclass(frozen=True)
class Seen:
    """A policy at first look, and what it was looked at; nothing where it cannot be used."""

    entrant: Entrant
    pair: tuple[Space, Choice] | None = None

    @property
    def loss(self) -> float:
        """Without end where it cannot be used."""
        return math.inf if self.pair is None else self.entrant.loss


def alike(counts: Sequence[int], depth: int) -> Losses:
    """Losses by block and length as if all policies lost alike: less later, and less by longer streams."""
    rows = [[(1 - block / depth) * (counts[0] / n - 1) for n in counts] for block in range(depth)]
    return Losses(tuple(counts), tuple(map(tuple, rows)), "divergence", 0, "no images", 0.0)


def _looked(
    field: Field, goal: Goal, request: Request, trial: Trial, table: LatencyTable
) -> tuple[list[Seen], Seen]:
    """All policies and the control at the share of a goal; where that is a loss, at one that leads to it."""
    for share in LEVELS if goal.share is None else (goal.share,):
        look = Look(Goal(latency=share), trial.dense, request, trial, table)
        seen = [look.at(policy) for policy in field.policies]
        if goal.loss is None or min(one.loss for one in seen) <= goal.loss:
            break
    return seen, look.at(Policy.load(CONTROL))


def _ahead(seen: Sequence[Seen]) -> list[Seen]:
    """The few that may turn out the best."""
    order = sorted(seen, key=lambda one: one.loss)
    return [one for one in order if one.pair and one.loss <= FAR * order[0].loss][:REFINED]


def _refined(
    ahead: Sequence[Seen], request: Request, trial: Trial, table: LatencyTable, most: int
) -> tuple[Space, ...]:
    """The frontiers of these policies, and their own sites, by what their sites take."""
    dense = trial.dense
    flat = figures.inputs(dense, request.batch, request.images.images)
    policies = [one.pair[0].policy for one in ahead if one.pair is not None]
    asked = [replace(request, policy=policy) for policy in (Policy.load(CONTROL), *policies)]
    free = [one for one in asked if not unschedulable(one.policy)]
    work = [Workload(dense, one.policy, planned.lowerings(dense, one)[0], flat) for one in free]
    others = sites.beside(table, work[0], work[1:], request.target, progress=request.progress)
    known = {one.policy.name: own for one, own in zip(free[1:], others, strict=True)}
    spaces: list[Space] = []
    for one, looked in zip(asked[1:], ahead, strict=True):
        own = known.get(one.policy.name)
        if own is None or looked.entrant.keep is not None:  # its own sites were the better ones
            spaces += planned.lines(dense, one, trial, own or table)
        if own is not None:
            tried = trial.of(one.policy, request.images.images, most)
            spaces += planned.explore(dense, one, own, tried).maps
    return tuple(spaces)


def _prunes(policy: Policy) -> bool:
    return any(step.sites.blocks != () for step in policy.steps)


def _none(entrants: Sequence[Entrant]) -> PlanError:
    reasons = [f"{one.policy}: {one.why_not}" for one in entrants if one.why_not and not one.control]
    return PlanError(
        "no policy can be used here: " + "; ".join(reasons),
        where="the policies to choose from",
        remedy="ask for less, or name other policies",
    )
