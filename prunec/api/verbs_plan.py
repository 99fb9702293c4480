"""What people call before anything is transformed: plan a schedule, measure a table, sweep a frontier."""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunec import targets
from prunec.compiler import recognise
from prunec.errors import UsageError
from prunec.frontend import sources
from prunec.frontend.sources import ImageSet, Source
from prunec.ir.program import Recognised
from prunec.latency.roofline import Ceilings
from prunec.latency.table import LatencyTable
from prunec.measure.image_sets import doubts, image_set_of, split_off
from prunec.measure.measure import Measure
from prunec.planner import sweep as sweeping
from prunec.planner.field import Field
from prunec.planner.field import plan as plan_among
from prunec.planner.planfile import PlanFile
from prunec.planner.planned import Request, Search, estimated, explore, tables, workshop_of
from prunec.planner.result import PlanResult
from prunec.planner.sweep import Sweep
from prunec.planner.workshop import ROUNDS
from prunec.policy.lowering import MODES, Lowering, choose
from prunec.policy.modes import ModeLike, as_mode, name_of
from prunec.policy.policy import Policy, PolicyLike
from prunec.schedules.goal import Goal
from prunec.schedules.schedule import Schedule, check_schedulable, scheduled

#: What can be transformed by: a policy, a plan, or a plan's file.
PlanLike = PolicyLike | PlanResult | PlanFile
#: What a plan chooses from: a policy, several, or "auto", all presets that mean something without training.
PoliciesLike = PolicyLike | Sequence[PolicyLike]
AUTO = "auto"
#: What a model is named or given by.
SourceLike = Source | nn.Module | str
POINTS = 8


def plan(
    source: SourceLike,
    policy: PoliciesLike,
    goal: Goal,
    *,
    images: str | Path | None = None,
    example: Any = None,
    search: Search | None = None,
    measure: Measure | None = None,
) -> PlanResult:
    """The schedule of a policy that reaches a goal on this device: `transform` takes it in place of a policy.

    Args:
        source: as for `optimize`.
        policy: which tokens go, and what becomes of them; its own blocks and rates do not count. Of several,
            or of all that fit with "auto", the one that loses least is chosen too.
        goal: `Goal(latency=0.6)`, `Goal(speedup=2)` or `Goal(max_drop=0.01)`.
        images: a folder; some of its images tell what schedules lose. Labels are not looked at.
        example: as for `optimize`.
        search: which schedules to look among, in which mode, and whether to build the best.
        measure: on which target, at which batch, and how.

    Raises:
        PlanError: no schedule of the policy reaches the goal.
    """
    measure, search = measure or Measure(), search or Search()
    if search.points is not None:
        raise UsageError(
            "points are of a sweep, and a plan is one schedule", where="search=", remedy="leave points out"
        )
    with measure.on_threads():
        field = to_choose_from(policy)
        given, request = _request(source, field.policies[0], images, example, search, measure)
        measure.progress("capture, recognise")
        return plan_among(given, recognise(given), goal, request, field)


def latency_table(
    source: SourceLike,
    policy: PolicyLike = "evit",
    *,
    images: str | Path | None = None,
    example: Any = None,
    mode: ModeLike | None = None,
    device: Ceilings | None = None,
    measure: Measure | None = None,
) -> LatencyTable:
    """What a model's blocks take at every stream length on this device, and a site of the policy.

    It comes from the cache where it was measured before; its `write` exports it, to plan elsewhere for here.

    Args:
        source: as for `optimize`.
        policy: whose sites are timed.
        images: as for `plan`.
        example: as for `optimize`.
        mode: as for `transform`, without options.
        device: estimate instead of measuring, for a device that is not here but of which this is known.
        measure: on which target, and at which batch.
    """
    measure = measure or Measure()
    measure.refuse("rounds", "calibrate", "precision", where="latency_table")
    with measure.on_threads():
        given, request = _request(source, policy, images, example, Search(mode=mode), measure)
        measure.progress("capture, recognise")
        dense = recognise(given)
        if device is None:
            return next(iter(tables(dense, request).values()))
        measure.progress("estimate")
        return estimated(dense, request, device)


def sweep(
    source: SourceLike,
    policy: PolicyLike,
    file: str | Path | None = None,
    *,
    images: str | Path | None = None,
    example: Any = None,
    search: Search | None = None,
    measure: Measure | None = None,
) -> Sweep:
    """Build and time schedules from the fastest to the gentlest: what each share of the time costs.

    Args:
        source: as for `plan`.
        policy: as for `plan`.
        file: written after every few points; the points that it holds already are not built again.
        images: as for `plan`.
        example: as for `optimize`.
        search: as for `plan`, and how many points; the model without sites comes on top. Schedules are
            always built.
        measure: as for `plan`.

    Raises:
        TableError: the file is of another model, device, policy or search.
    """
    measure, search = measure or Measure(), search or Search()
    if not search.build:
        raise UsageError(
            "the schedules of a sweep are always built", where="search=", remedy="leave build out"
        )
    path = None if file is None else Path(file)
    with measure.on_threads():
        given, request = _request(source, policy, images, example, search, measure)
        measure.progress("capture, recognise")
        return _swept(given, recognise(given), request, path)


def _swept(given: Source, dense: Recognised, request: Request, path: Path | None) -> Sweep:
    facts = sweeping.about(given, dense, request)
    known = () if path is None else sweeping.read(path, facts)
    check_schedulable(request.policy)
    explored = explore(dense, request)
    start = time.perf_counter()
    found = Sweep(facts, known, explored.schedules, explored.seconds)
    points = request.search.points or POINTS
    for measured in sweeping.sweep(explored, workshop_of(given, explored, request), points, known):
        seconds = {**explored.seconds, "build and time": time.perf_counter() - start}
        found = replace(found, points=measured, seconds=seconds)
        if path is not None:
            found.write(path)
    return found


# What is given ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """What a model is to be transformed by: a policy, or a plan, which has a schedule and a mode."""

    policy: Policy
    mode: ModeLike | None = None
    schedule: Schedule | None = None  # of a plan's file: part of the policy when the model is known
    planned: PlanResult | None = None

    @classmethod
    def of(cls, given: PlanLike, mode: ModeLike | None) -> Chosen:
        """What was given; UsageError where a plan is to run in another mode than its own."""
        if isinstance(given, PlanResult):
            return cls(given.policy, _of_plan(given.lowering.mode, mode), planned=given)
        if isinstance(given, PlanFile):
            return cls(Policy.load(given.policy), _of_plan(given.mode, mode), given.schedule)
        return cls(Policy.load(given), mode)

    def lowering(self, batch: int | None = None, can: Collection[str] = MODES) -> Lowering:
        """The mode, with its options."""
        attention = self.planned.lowering.attention if self.planned is not None else None
        return choose(self.policy, self.mode, batch=batch, attention=attention, can=can)

    def on(self, dense: Recognised) -> Policy:
        """The policy for a recognised model."""
        if self.schedule is None:
            return self.policy
        return scheduled(self.policy, dense.anatomy, self.schedule)


def to_plan(policy: PlanLike) -> Policy:
    """A policy whose blocks and rates are to be planned; UsageError where they were asked for."""
    if isinstance(policy, PlanResult | PlanFile):
        raise UsageError(
            "a plan has its schedule already, so there is nothing to plan",
            where="policy",
            remedy="leave the goal out, or give the policy that the plan was made of",
        )
    loaded = Policy.load(policy)
    swallowed = [name for name in ("keep", "keep_per_site", "blocks", "sites") if name in loaded.overridden]
    if swallowed:
        raise UsageError(
            f"blocks and counts are planned by measurement, and {' and '.join(swallowed)} were given too",
            where=f"policy {loaded.name!r}",
            remedy="load it without them; Search(blocks=...) limits the blocks that a plan may choose",
        )
    return loaded


def to_choose_from(policy: PlanLike | Sequence[PolicyLike]) -> Field:
    """The policies that a plan is to choose from."""
    if isinstance(policy, str) and policy == AUTO:
        return Field.auto()
    if isinstance(policy, Sequence) and not isinstance(policy, str):
        return Field.of([to_plan(one) for one in policy])
    return Field.of([to_plan(policy)])


def as_source(source: SourceLike, example: Any = None, preprocess: Any = None) -> Source:
    """A source from what people give."""
    if isinstance(source, str):
        return sources.load(source, example=example, preprocess=preprocess)
    if not isinstance(source, Source):
        return sources.from_module(source, example, preprocess=preprocess)
    if example is not None or preprocess is not None:
        raise UsageError(
            "a Source has its example and preprocessing already",
            where="example=, preprocess=",
            remedy="give them to prunec.frontend.sources.load or from_module, which made it",
        )
    return source


def _of_plan(own: str, asked: ModeLike | None) -> ModeLike:
    if asked is None:
        return own
    if name_of(as_mode(asked)) != own:
        raise UsageError(
            f"the plan was made for mode {own}, got mode {name_of(as_mode(asked))}",
            where="mode",
            remedy=f"leave the mode out, give options of mode {own}, or plan for the other mode",
        )
    return asked


def _request(
    source: SourceLike,
    policy: PolicyLike,
    images: str | Path | None,
    example: Any,
    search: Search,
    measure: Measure,
) -> tuple[Source, Request]:
    """What all of them start with."""
    measure.refuse("metric", "precision", where="plan, latency_table, sweep")
    chosen = to_plan(policy)
    targets.load(measure.target)  # refuses one that cannot run before a model is read
    given = as_source(source, example, measure.preprocess)
    _, image_set = split_off(given, image_set_of(given, images))
    for doubt in doubts(given, image_set) if images is not None else ():
        warnings.warn(doubt, stacklevel=2)
    return given, request_of(chosen, image_set, search, measure)


def request_of(policy: Policy, image_set: ImageSet, search: Search, measure: Measure) -> Request:
    """What the planner is asked for."""
    return Request(
        policy=policy,
        target=targets.load(measure.target),
        target_name=measure.target,
        batch=measure.batch,
        images=image_set,
        calibrated=measure.calibrate,
        search=search,
        rounds=measure.rounds or ROUNDS,
        progress=measure.progress,
    )
