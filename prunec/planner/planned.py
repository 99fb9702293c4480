"""A plan from start to end: measure what is not known yet, search, build, decide."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from prunec.errors import TableError, UsageError
from prunec.frontend.sources import ImageSet, Source
from prunec.ir.program import Recognised
from prunec.latency import latency, losses, roofline
from prunec.latency.fast import estimate
from prunec.latency.latency import Workload, place_of, work_of
from prunec.latency.losses import Trial
from prunec.latency.roofline import Ceilings
from prunec.latency.table import LatencyTable, cached
from prunec.measure import figures
from prunec.measure.figures import Progress
from prunec.measure.packed_attention import faster_attention
from prunec.planner.frontiers import Map
from prunec.planner.lines import Line, width_of
from prunec.planner.planning import Decision, decide, unreachable
from prunec.planner.result import Entrant, PlanResult, space_of
from prunec.planner.workshop import ROUNDS, Candidate, Name, Space, Workshop, policy_of
from prunec.policy.lowering import Attention, Lowering, choose
from prunec.policy.modes import Masked, ModeLike, Packed, Padded, Static, as_mode, name_of
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal
from prunec.schedules.schedule import check_schedulable, limits_of, unschedulable
from prunec.schedules.search import Limits
from prunec.structure import Anatomy
from prunec.targets import Target, device_of

CONTROL = "random"  # the preset that runs beside several policies, and whose table has the blocks of all


@dataclass(frozen=True)
class Search:
    """Which schedules are looked among, and how."""

    first: int = 2  # the first block that may have a site: scores of the first blocks are noise
    sites: int | None = 3  # how many at most: each costs time
    blocks: tuple[int, ...] | None = None  # the only ones that may have a site
    counts: tuple[int, ...] | None = None  # the only stream lengths to choose from, descending, dense first
    table: Path | None = None  # an exported latency table, in the place of measuring
    fast: bool = False  # estimate what is lost from one pass of the dense model
    build: bool = True  # build and time the best few; else the prediction decides, for a device not here
    mode: ModeLike | None = None  # without options; None: the best by measurement
    points: int | None = None  # of a sweep: how many schedules, evenly by predicted time

    def __post_init__(self) -> None:
        mode = None if self.mode is None else as_mode(self.mode)
        if mode not in (None, Static(), Padded(), Packed(), Masked()):
            raise UsageError(
                f"a schedule is planned for a mode without options, got {mode}",
                where="the mode of a plan",
                remedy=f"plan in mode {name_of(mode)!r}, then transform(model, plan, mode={mode})",
            )
        if self.points is not None and self.points < 1:
            raise UsageError(f"points must be at least 1, got {self.points}", where="Search")


@dataclass(frozen=True)
class Request:
    """What schedules are looked for, and for which device and batch."""

    policy: Policy
    target: Target
    target_name: str
    batch: int
    images: ImageSet  # to see on what schedules lose, and to calibrate on
    calibrated: bool = True  # learned parts and thresholds are fitted, not left as they are at first
    search: Search = field(default_factory=Search)
    rounds: int = ROUNDS  # of timing
    progress: Progress = lambda step: None


@dataclass(frozen=True)
class Explored:
    """All that is known before anything is built."""

    dense: Recognised
    maps: tuple[Space, ...]  # one for each mode
    trial: Trial
    flat: tuple[Any, ...]
    seconds: Mapping[str, float]

    @property
    def schedules(self) -> tuple[Map, ...]:
        """Where sites and counts can be chosen."""
        return tuple(plan for plan in self.maps if isinstance(plan, Map))


def tables(dense: Recognised, request: Request) -> dict[Lowering, LatencyTable]:
    """The latency table of each mode that may be chosen: measured now, or before, or given."""
    check_schedulable(request.policy)
    flat = figures.inputs(dense, request.batch, request.images.images)
    found = lowerings(dense, request)
    if request.search.table is None:
        return {lowering: _table(dense, lowering, flat, request) for lowering in found}
    table = LatencyTable.read(request.search.table)
    lowering = next((one for one in found if str(one) == table.work.get("mode")), found[0])
    work = _work(Workload(dense, request.policy, lowering, flat), request)
    place, foreign = place_of(device_of(dense)), not request.search.build
    table.check(place, work, foreign=foreign, file=request.search.table)
    _check_shape(table, dense, request.search.table)
    if table.noise:
        warnings.warn(table.noise, stacklevel=2)
    return {lowering: table}


def _check_shape(table: LatencyTable, dense: Recognised, path: Path) -> None:
    """A table says that it is of this model; its numbers must be too."""
    tokens, depth = dense.anatomy.tokens, dense.anatomy.depth
    if (table.counts[0], len(table.blocks)) != (tokens, depth):
        raise TableError(
            f"the latency table has {len(table.blocks)} blocks from {table.counts[0]} tokens, and the model "
            f"{depth} from {tokens}",
            where=str(path),
            remedy="measure again; a table is written by prunec and not edited",
        )


def estimated(dense: Recognised, request: Request, ceilings: Ceilings) -> LatencyTable:
    """The table of a device that is not here, from what it does at best."""
    check_schedulable(request.policy)
    flat = figures.inputs(dense, request.batch, request.images.images)
    workload = Workload(dense, request.policy, lowerings(dense, request)[0], flat)
    return roofline.estimate(workload, ceilings, {"device": ceilings.name}, _work(workload, request))


def explore(
    dense: Recognised, request: Request, table: LatencyTable | None = None, trial: Trial | None = None
) -> Explored:
    """What a policy may become on a recognised model, in each mode that may be chosen.

    Args:
        dense: the model.
        request: what is looked for.
        table: of this policy, where it is known.
        trial: of this policy, where it was made before.
    """
    start = time.perf_counter()
    trial = trial or Trial(dense, request.policy, request.images.images, _batch_of(request))
    flat = figures.inputs(dense, request.batch, request.images.images)
    if unschedulable(request.policy):
        maps: tuple[Space, ...] = lines(dense, request, trial, table)
        return Explored(dense, maps, trial, flat, {"table": time.perf_counter() - start})
    found = lowerings(dense, request)
    known = tables(dense, request) if table is None else dict.fromkeys(found, table)
    measured = time.perf_counter()
    allowed = limits(dense.anatomy, request)
    blocks = [block for block in range(dense.anatomy.depth) if allowed.allow(block)]
    measure = estimate if request.search.fast else losses.measure
    counts = next(iter(known.values())).counts
    lost = measure(trial, counts, blocks, request.images.name, progress=request.progress)
    width = width_of(dense)
    maps = tuple(
        Map(request.policy, dense.anatomy, lowering, own, lost, allowed, width, trial)
        for lowering, own in known.items()
    )
    seconds = {"table": measured - start, "losses": time.perf_counter() - measured}
    return Explored(dense, maps, trial, flat, seconds)


def limits(anatomy: Anatomy, request: Request) -> Limits:
    """What schedules are allowed; UsageError where no block may have a site."""
    search = request.search
    found = limits_of(request.policy, anatomy, first=search.first, sites=search.sites, only=search.blocks)
    if not any(map(found.allow, range(anatomy.depth))):
        raise UsageError(
            f"no block may have a site: of blocks {search.first} to {found.last}, "
            + ("there is none" if search.blocks is None else f"{search.blocks} allows none"),
            where="the blocks of the plan",
            remedy="change --first or --blocks",
        )
    return found


def lines(
    dense: Recognised, request: Request, trial: Trial, table: LatencyTable | None = None
) -> tuple[Line, ...]:
    """A policy at its own sites in each mode that may be chosen; by the control's table where it has none."""
    if all(step.sites.blocks == () for step in request.policy.steps):
        check_schedulable(request.policy)  # says so
    table = table or control_table(dense, request)
    fitted_on = request.images if request.calibrated else None
    first, *others = lowerings(dense, request)
    line = Line(request.policy, first, table, trial, fitted_on, request.images.name)
    return (line, *(replace(line, lowering=lowering) for lowering in others))


def control_table(dense: Recognised, request: Request) -> LatencyTable:
    """The table of the model with random tokens: what its blocks take, whatever is between them."""
    return next(iter(tables(dense, replace(request, policy=Policy.load(CONTROL))).values()))


def plan(source: Source, dense: Recognised, goal: Goal, request: Request) -> PlanResult:
    """The schedule of a policy that reaches a goal on this device, or none where that does not pay."""
    explored = explore(dense, request)
    start = time.perf_counter()
    if request.search.build:
        decision = decide(explored.maps, goal, workshop_of(source, explored, request))
    else:
        best = foreseen(explored, goal)
        decision = Decision(best, (best,), notes=("predicted, not built: nothing was timed",))
    seconds = {**explored.seconds, "build and time": time.perf_counter() - start}
    return planned(explored, goal, decision, seconds)


def workshop_of(source: Source, explored: Explored, request: Request) -> Workshop:
    """Where the schedules of a request are built and timed."""
    return Workshop(
        source.module,
        explored.trial,
        request.target,
        explored.flat,
        request.images if request.calibrated else None,
        rounds=request.rounds,
        progress=request.progress,
    )


def foreseen(explored: Explored, goal: Goal) -> Candidate:
    """The schedule that is predicted to be the best for a goal: nothing is built, so nothing is measured."""
    found = [(plan.reaching(goal), plan) for plan in explored.maps]
    fitting = [(choice, plan) for choice, plan in found if choice is not None]
    if not fitting:
        raise unreachable(explored.maps, goal)
    choice, plan = min(fitting, key=lambda pair: pair[0].loss if goal.share is not None else pair[0].time)
    name = Name.of(plan, choice)
    return Candidate(
        name.mode, dict(name.schedule), plan.share(choice), choice.loss, policy=name.policy, keep=name.keep
    )


def planned(
    explored: Explored,
    goal: Goal,
    decision: Decision,
    seconds: Mapping[str, float],
    entrants: tuple[Entrant, ...] = (),
) -> PlanResult:
    """The record of a decision, with the policy that it comes to."""
    chosen = decision.chosen
    at = space_of(explored.maps, chosen)
    policy = policy_of(at, chosen.schedule, chosen.keep)
    return PlanResult(policy, at.lowering, goal, explored.maps, decision, seconds, entrants)


def lowerings(dense: Recognised, request: Request) -> list[Lowering]:
    """The modes to choose from: where images may differ and none is asked for, padded and packed."""
    policy, can = request.policy, request.target.modes
    ragged = policy.ragged and request.batch > 1 and dense.interface.batch is not None
    modes: list[ModeLike | None] = [request.search.mode]
    if request.search.mode is None and ragged:
        modes = [mode for mode in ("padded", "packed") if mode in can]
    found = []
    for one in [choose(policy, mode, batch=request.batch, can=can) for mode in modes]:
        if one.mode != "packed":
            found.append(one)
        elif request.search.table is not None:  # which knows what it was measured with
            found += [replace(one, attention=attention) for attention in get_args(Attention)]
        else:
            found.append(replace(one, attention=faster_attention(dense)[0]))
    return found


def _table(dense: Recognised, lowering: Lowering, flat: tuple[Any, ...], request: Request) -> LatencyTable:
    """The latency table of one mode: from the cache, or measured now."""
    workload = Workload(dense, request.policy, lowering, flat)
    place, work = place_of(device_of(dense)), _work(workload, request)

    def measured() -> LatencyTable:
        return latency.measure(
            workload,
            request.target,
            place,
            work,
            counts=request.search.counts,
            progress=request.progress,
        )

    return cached(place, work, measured, warn=warnings.warn)


def _work(workload: Workload, request: Request) -> dict[str, str | int]:
    """What a table must be of."""
    work = work_of(workload, request.target_name)
    lengths = request.search.counts
    return work if lengths is None else {**work, "lengths": str(lengths)}


def _batch_of(request: Request) -> int:
    """Images at a time in trials: where they differ, the longest of a batch counts."""
    return request.batch if request.policy.ragged and request.batch > 1 else losses.BATCH
