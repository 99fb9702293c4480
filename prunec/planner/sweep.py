"""The frontier of a policy by measurement: some of the predicted schedules, each built and timed.

    frontier of each mode --> what no other mode beats --> a few of it --.
                                                                         +--> built, timed beside the dense
    the model without sites ---------------------------------------------'    model, so many in one run
                                                                                      |
    FILE: what it holds is not built again  <-----------------------------------------'

Every share is a ratio inside one interleaved run, so that points of several runs may stand side by side.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from prunec import documents
from prunec.errors import TableError, brief, first_few
from prunec.frontend.sources import Source
from prunec.ir.program import Recognised
from prunec.latency.latency import Workload, place_of, work_of
from prunec.measure import figures
from prunec.planner.frontiers import Map, schedule_of, some
from prunec.planner.planned import Explored, Request
from prunec.planner.workshop import Candidate, Workshop
from prunec.policy.language import MOST, mistakes
from prunec.policy.lowering import Lowering
from prunec.schedules.schedule import Schedule
from prunec.schedules.search import Choice
from prunec.targets import device_of

FORMAT = 1
AT_A_TIME = 4  # schedules in one interleaved run

#: What the points of a file are of, in sections: model, place, work, policy, search.
About = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """Measured points of a policy's frontier, and what they are of."""

    about: About
    points: tuple[Candidate, ...]
    maps: tuple[Map, ...]  # the prediction, one for each mode
    seconds: Mapping[str, float]  # of this run

    @property
    def best(self) -> tuple[Candidate, ...]:
        """The measured frontier, by rising time: no other point is as fast and loses as little."""
        kept: list[Candidate] = []
        for point in sorted(self.points, key=lambda point: (point.share, point.loss)):
            if not kept or point.loss < kept[-1].loss:
                kept.append(point)
        return tuple(kept)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data for JSON."""
        points = sorted(self.points, key=lambda point: point.share)
        return {
            "format": FORMAT,
            **{section: dict(facts) for section, facts in self.about.items()},
            "points": [{**_plain(point), "frontier": point in self.best} for point in points],
            "modes": [plan.as_dict() for plan in self.maps],
            "losses": self.maps[0].losses.as_dict(),
            "seconds": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
        }

    def write(self, path: Path) -> None:
        """Write the file, so that a reader finds the old one or the new one, never a part."""
        partial = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            partial.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def sweep(
    explored: Explored, workshop: Workshop, count: int, known: Iterable[Candidate] = ()
) -> Iterator[tuple[Candidate, ...]]:
    """All points that are known after each interleaved run.

    Args:
        explored: the frontier of each mode.
        workshop: where schedules are built and timed.
        count: how many points with sites; one without is added.
        known: points that were measured before, which are not built again.
    """
    found = tuple(known)
    names = {_name(point.mode, point.schedule) for point in found}
    wanted = [
        (plan, choice)
        for plan, choice in proposals(explored.schedules, count)
        if _name(str(plan.lowering), schedule_of(choice)) not in names
    ]
    runs = -(-len(wanted) // AT_A_TIME)
    for number in range(runs):
        workshop.cleared()
        for plan, choice in wanted[number::runs]:
            workshop.build(plan, choice)
        found = (*found, *workshop.measured())
        yield found


def proposals(maps: Sequence[Map], count: int) -> list[tuple[Map, Choice]]:
    """The model without sites, and so many schedules of all modes that no other mode's schedule beats."""
    in_share = {
        replace(choice, time=plan.share(choice)): (plan, choice)
        for plan in maps
        for choice in plan.choices
        if choice.sites
    }
    kept: list[Choice] = []
    for choice in sorted(in_share, key=lambda choice: (choice.time, choice.loss)):
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    return [(maps[0], maps[0].dense_choice), *(in_share[choice] for choice in some(kept, count))]


# What a file holds ------------------------------------------------------------------------------------------


def about(source: Source, dense: Recognised, request: Request) -> About:
    """What points depend on, beside mode and schedule; known before anything is measured."""
    flat = figures.inputs(dense, request.batch, request.images.images)
    work = work_of(Workload(dense, request.policy, Lowering(), flat), request.target_name)
    return {
        "model": {
            "source": source.spec,
            "arch": source.arch,
            "weights": source.weights,
            "parameters": _digest(source.module.state_dict().values()),
        },
        "place": place_of(device_of(dense)),
        "work": {name: value for name, value in work.items() if name != "mode"},
        "policy": request.policy.model_dump(mode="json"),
        "search": {
            "first": request.search.first,
            "sites": request.search.sites,
            "blocks": request.search.blocks,
            "counts": request.search.counts,
            "calibrated": request.calibrated,
            "images": request.images.name,
            "pixels": _digest([request.images.images]),
        },
    }


def read(path: Path, here: About) -> tuple[Candidate, ...]:
    """The points of an earlier run; none where there is no file.

    Raises:
        TableError: the file cannot be read, is no sweep, or is of something else.
    """
    if not os.path.lexists(path):
        return ()
    try:
        plain = documents.load(path, "json", documents.LARGE)
    except documents.Unreadable as error:
        raise _unusable(path, f"is not a sweep that can be read: it {error}") from error
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise _unusable(path, f"is not a sweep of format {FORMAT}")
    differing = list(_differences(plain, json.loads(json.dumps(here))))
    if differing:
        raise _unusable(path, f"is a sweep of something else: {first_few(differing, '; ')}")
    try:
        return tuple(Candidate(**dict(point)) for point in _Points.model_validate(plain).points)
    except ValidationError as error:
        raise _unusable(path, f"is damaged: {mistakes(error)}") from error


_Length = Annotated[int, Field(ge=1, le=MOST)]
_Figure = Annotated[float, Field(ge=-1e6, le=1e6)]  # losses may round to a little below zero


class _Point(BaseModel):
    """What a file says of a `Candidate`: of each the mode, schedule and prediction at least."""

    mode: str = Field(max_length=200, pattern=r"^[a-z0-9, ]+$")
    schedule: dict[Annotated[int, Field(ge=0, le=MOST)], _Length]
    predicted: _Figure
    expected: _Figure
    share: _Figure
    loss: _Figure
    noise: _Figure = 0.0


class _Points(BaseModel):
    points: Annotated[tuple[_Point, ...], Field(max_length=10_000)]


def _differences(file: Mapping[str, Any], here: About) -> Iterator[str]:
    for section, facts in here.items():
        section_facts = file.get(section)
        known = section_facts if isinstance(section_facts, dict) else {}
        for name in {**known, **facts}:
            in_file, now = known.get(name, "not given"), facts.get(name, "not given")
            if in_file != now:
                yield f"{section} {brief(name)} is {brief(str(in_file))} in the file, {now} here"


def _unusable(path: Path, why: str) -> TableError:
    return TableError(
        f"{path.name} {why}", where=str(path), remedy="give another file with -o, or remove this one"
    )


def _digest(tensors: Iterable[Tensor]) -> str:
    """Of numbers: the same for the same ones."""
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(point: Candidate) -> dict[str, Any]:
    """A point as the file has it, whose policy stands above all points."""
    return {name: value for name, value in point.as_dict().items() if name not in ("policy", "keep")}


def _name(mode: str, schedule: Schedule) -> tuple[str, tuple[tuple[int, int], ...]]:
    return mode, tuple(sorted(schedule.items()))
