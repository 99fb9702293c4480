"""What people call before anything is transformed: plan a schedule, measure a table, sweep a frontier."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from prunec import sources, targets
from prunec.compiler import recognise
from prunec.errors import UsageError
from prunec.figures import Progress
from prunec.modes import ModeLike
from prunec.pictures import doubts, pictures_of, split_off
from prunec.planner import sweep as sweeping
from prunec.planner.goal import Goal
from prunec.planner.planned import Planned, Request, Search, estimated, explore, tables, workshop_of
from prunec.planner.planned import plan as plan_schedule
from prunec.planner.roofline import Ceilings
from prunec.planner.sweep import Sweep
from prunec.planner.table import LatencyTable
from prunec.policy import Policy, PolicyLike
from prunec.sources import Source


def as_source(source: Source | nn.Module | str, example: Any = None, preprocess: Any = None) -> Source:
    """A source from what people give."""
    if isinstance(source, str):
        return sources.load(source, example=example, preprocess=preprocess)
    if not isinstance(source, Source):
        return sources.from_module(source, example, preprocess=preprocess)
    if example is not None or preprocess is not None:
        raise UsageError(
            "a Source has its example and preprocessing already",
            where="example=, preprocess=",
            remedy="give them to prunec.sources.load or from_module, which made it",
        )
    return source


def plan(
    source: Source | nn.Module | str,
    policy: PolicyLike,
    *,
    latency: float | None = None,
    speedup: float | None = None,
    max_drop: float | None = None,
    target: str = "inductor",
    images: str | Path | None = None,
    batch: int = 8,
    calibrate: bool = True,
    mode: ModeLike | None = None,
    search: Search | None = None,
    example: Any = None,
    preprocess: Any = None,
    say: Progress = lambda step: None,
    warn: Progress = warnings.warn,
) -> Planned:
    """The schedule of a policy that reaches a goal on this device: what `optimize` starts with.

    Args:
        source: as for `optimize`.
        policy: which tokens go, and what becomes of them; its own blocks and rates do not count.
        latency: as for `optimize`; one of the three goals must be given.
        speedup: as for `optimize`.
        max_drop: as for `optimize`.
        target: the backend.
        images: a folder; some of its images tell what schedules lose. Labels are not looked at.
        batch: images at a time.
        calibrate: fit learned parts and thresholds; False leaves them as they are at first.
        mode: one of the modes; left out, the best by measurement.
        search: which schedules to look among, and whether to build the best.
        example: as for `optimize`.
        preprocess: as for `optimize`.
        say: called with each step's name.
        warn: called with what should be known, and stops nothing.

    Raises:
        PlanError: no schedule of the policy reaches the goal.
    """
    goal = Goal.of(latency, speedup, max_drop)
    given, request = _request(
        source, example, preprocess, policy, target, images, batch, calibrate, mode, search, say, warn
    )
    say("capture, recognise")
    return plan_schedule(given, recognise(given), goal, request)


def latency_table(
    source: Source | nn.Module | str,
    policy: PolicyLike = "evit",
    *,
    target: str = "inductor",
    images: str | Path | None = None,
    batch: int = 8,
    mode: ModeLike | None = None,
    ceilings: Ceilings | None = None,
    device: str = "",
    example: Any = None,
    preprocess: Any = None,
    say: Progress = lambda step: None,
    warn: Progress = warnings.warn,
) -> LatencyTable:
    """What a model's blocks take at every stream length on this device, and a site of the policy.

    It comes from the cache where it was measured before; its `write` exports it, to plan elsewhere for here.

    Args:
        source: as for `optimize`.
        policy: whose sites are timed.
        target: the backend.
        images: as for `plan`.
        batch: images at a time.
        mode: as for `plan`.
        ceilings: estimate instead of measuring, for a device that is not here but of which this is known.
        device: what that device is called.
        example: as for `optimize`.
        preprocess: as for `optimize`.
        say: called with each step's name.
        warn: called with what should be known, and stops nothing.
    """
    given, request = _request(
        source, example, preprocess, policy, target, images, batch, True, mode, None, say, warn
    )
    say("capture, recognise")
    dense = recognise(given)
    if ceilings is None:
        return next(iter(tables(dense, request).values()))
    say("estimate")
    return estimated(dense, request, ceilings, device)


def sweep(
    source: Source | nn.Module | str,
    policy: PolicyLike,
    *,
    points: int = 8,
    file: str | Path | None = None,
    target: str = "inductor",
    images: str | Path | None = None,
    batch: int = 8,
    calibrate: bool = True,
    mode: ModeLike | None = None,
    search: Search | None = None,
    example: Any = None,
    preprocess: Any = None,
    say: Progress = lambda step: None,
    warn: Progress = warnings.warn,
) -> Sweep:
    """Build and time schedules from the fastest to the gentlest: what each share of the time costs.

    Args:
        source: as for `plan`.
        policy: as for `plan`.
        points: how many schedules, evenly by predicted time; the model without sites comes on top.
        file: written after every few points; the points that it holds already are not built again.
        target: as for `plan`.
        images: as for `plan`.
        batch: as for `plan`.
        calibrate: as for `plan`.
        mode: as for `plan`.
        search: as for `plan`; schedules are always built.
        example: as for `optimize`.
        preprocess: as for `optimize`.
        say: as for `plan`.
        warn: as for `plan`.

    Raises:
        TableError: the file is of another model, device, policy or search.
    """
    path = None if file is None else Path(file)
    given, request = _request(
        source, example, preprocess, policy, target, images, batch, calibrate, mode, search, say, warn
    )
    say("capture, recognise")
    dense = recognise(given)
    told = sweeping.about(given, dense, request)
    known = () if path is None else sweeping.read(path, told)
    explored = explore(dense, request)
    start = time.perf_counter()
    found = Sweep(told, known, explored.maps, explored.seconds)
    for measured in sweeping.sweep(explored, workshop_of(given, explored, request), points, known):
        seconds = {**explored.seconds, "build and time": time.perf_counter() - start}
        found = replace(found, points=measured, seconds=seconds)
        if path is not None:
            found.write(path)
    return found


def _request(
    source: Source | nn.Module | str,
    example: Any,
    preprocess: Any,
    policy: PolicyLike,
    target: str,
    images: str | Path | None,
    batch: int,
    calibrate: bool,
    mode: ModeLike | None,
    search: Search | None,
    say: Progress,
    warn: Progress,
) -> tuple[Source, Request]:
    """What all of them start with."""
    chosen, backend = Policy.load(policy), targets.load(target)
    given = as_source(source, example, preprocess)
    _, pictures = split_off(given, pictures_of(given, images))
    for doubt in doubts(given, pictures) if images is not None else ():
        warn(doubt)
    found = search or Search()
    return given, Request(chosen, backend, target, batch, pictures, calibrate, mode, found, say, warn)
