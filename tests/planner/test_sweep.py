"""The measured frontier: what is built in which run, and what a file of an earlier run is worth."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunec.compiler import recognise
from prunec.errors import TableError
from prunec.frontend import sources
from prunec.frontend.sources import ImageSet
from prunec.planner import sweep as module
from prunec.planner.planned import Request, Search
from prunec.planner.sweep import Sweep, proposals, read, sweep
from prunec.planner.workshop import Candidate
from prunec.policy.policy import Policy
from prunec.targets.eager import Eager
from tests.planner.imagined import Imagined, explored, mapped, table
from tests.tiny import ViT

ABOUT = {
    "model": {"source": "imagined", "weights": "given"},
    "place": {"device": "a device", "torch": "2.15.0"},
    "work": {"batch": 8, "target": "eager"},
    "policy": {"name": "evit", "sites": {"blocks": [3, 6]}},
    "search": {"first": 2, "sites": 2, "blocks": None},
}


def point(share: float, loss: float, block: int = 2) -> Candidate:
    return Candidate("static", {block: 9}, share, loss, share, loss, 0.01)


def swept(*points: Candidate) -> Sweep:
    return Sweep(ABOUT, points, (mapped(),), {"table": 1.0})


# Which schedules --------------------------------------------------------------------------------------------


def test_the_model_without_sites_and_some_of_the_frontier_ends_included() -> None:
    plan = mapped()
    bare, *others = proposals([plan], 5)
    assert bare == (plan, plan.dense_choice)
    with_sites = [choice for choice in plan.choices if choice.sites]
    shares = [plan.share(choice) for _, choice in others]
    assert len(others) == 5
    assert others[0][1] == with_sites[0]
    assert others[-1][1] == with_sites[-1]
    steps = [later - earlier for earlier, later in itertools.pairwise(shares)]
    assert max(steps) < 1.6 * min(steps)


def test_a_short_frontier_is_taken_whole() -> None:
    plan = mapped()
    assert len(proposals([plan], 1000)) == len(plan.choices)  # of which one has no site
    _, (_, only) = proposals([plan], 1)
    assert only == plan.choices[0]


def test_of_two_modes_only_what_the_other_does_not_beat() -> None:
    slow = mapped(table(seconds=lambda n: n + 4, mode="padded", dense=8 * 17.0), mode="padded")
    fast = mapped(table(mode="packed"), mode="packed")
    assert {str(plan.lowering) for plan, _ in proposals([slow, fast], 50)[1:]} == {str(fast.lowering)}
    steep = mapped(table(seconds=lambda n: n if n == 17 else 5 + (n - 5) / 4, mode="packed"), mode="packed")
    costly = mapped(table(mode="padded"), mode="padded", lost=0.5)
    found = proposals([steep, costly], 50)[1:]
    assert len({str(plan.lowering) for plan, _ in found}) == 2
    points = [(plan.share(choice), choice.loss) for plan, choice in found]
    assert points == sorted(points)
    assert [loss for _, loss in points] == sorted((loss for _, loss in points), reverse=True)


# Runs -------------------------------------------------------------------------------------------------------


def test_points_come_run_by_run_and_each_is_built_once() -> None:
    workshop = Imagined()
    states = list(sweep(explored(mapped()), workshop, 8))
    assert [len(points) for points in states] == [3, 6, 9]
    assert workshop.runs == 3
    assert len(workshop.built) == len(set(workshop.built)) == 9
    for earlier, later in itertools.pairwise(states):
        assert later[: len(earlier)] == earlier
    assert [dict(one.schedule) for one in states[-1]].count({}) == 1
    assert all(math.isfinite(one.share + one.loss) for one in states[-1])


def test_what_is_known_is_not_built_again() -> None:
    first, *_ = sweep(explored(mapped()), Imagined(), 8)
    workshop = Imagined()
    *_, last = sweep(explored(mapped()), workshop, 8, first)
    known = {(one.mode, tuple(sorted(one.schedule.items()))) for one in first}
    assert not known & set(workshop.built)
    assert last[: len(first)] == first
    assert len(last) == 9
    assert list(sweep(explored(mapped()), workshop, 8, last)) == []


# The measured frontier --------------------------------------------------------------------------------------


def test_on_the_frontier_is_what_no_point_beats() -> None:
    fast, middle, slow = point(0.5, 0.3), point(0.6, 0.2), point(0.7, 0.0)
    beaten, same_time, same_loss = point(0.65, 0.25), point(0.6, 0.21), point(0.66, 0.2)
    assert swept(slow, beaten, same_time, fast, same_loss, middle).best == (fast, middle, slow)
    assert swept(fast).best == (fast,)
    assert swept().best == ()


def test_json_has_all_and_is_valid() -> None:
    found = swept(point(0.7, 0.1), point(0.5, 0.3), point(0.8, 0.2))
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert {"format", *ABOUT, "points", "modes", "losses", "seconds"} == set(plain)
    assert [entry["share"] for entry in plain["points"]] == [0.5, 0.7, 0.8]
    assert [entry["frontier"] for entry in plain["points"]] == [True, True, False]
    assert plain["points"][0] == {
        "mode": "static", "schedule": {"2": 9}, "predicted": 0.5, "expected": 0.3, "share": 0.5, "loss": 0.3,
        "noise": 0.01, "frontier": True,
    }  # fmt: skip
    (mode,) = plain["modes"]
    assert mode["table"]["dense"] == 136
    assert mode["frontier"][-1] == {"share": 1.0, "loss": 0.0, "schedule": {}}
    assert plain["losses"]["kind"] == "divergence"


# Its file ---------------------------------------------------------------------------------------------------


def test_a_file_gives_its_points_back(tmp_path: Path) -> None:
    found = swept(point(0.5, 0.3), point(0.7, 0.1, 3))
    file = tmp_path / "sweep.json"
    assert read(file, ABOUT) == ()
    found.write(file)
    assert read(file, ABOUT) == found.points
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_a_run_that_is_cut_off_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sweep.json"
    swept(point(0.5, 0.3)).write(file)
    before = file.read_text()

    def full(path: Path, text: str, **_: Any) -> None:
        with path.open("w") as stream:
            stream.write(text[:50])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        swept(point(0.5, 0.3), point(0.6, 0.2)).write(file)
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("model", {"source": "another"}, "model source is imagined in the file, another here"),
        ("place", {"device": "a GPU"}, "place device is a device in the file, a GPU here"),
        ("place", {"threads": 2}, "place threads is not given in the file, 2 here"),
        ("work", {"batch": 1}, "work batch is 8 in the file, 1 here"),
        ("policy", {"name": "norm"}, "policy name is evit in the file, norm here"),
        ("policy", {"sites": {"blocks": [1]}}, "policy sites is {'blocks': [3, 6]} in the file"),
        ("search", {"first": 1}, "search first is 2 in the file, 1 here"),
    ],
)
def test_a_file_of_something_else_is_refused_with_what_differs(
    tmp_path: Path, section: str, change: dict[str, Any], words: str
) -> None:
    file = tmp_path / "sweep.json"
    swept(point(0.5, 0.3)).write(file)
    here = {**ABOUT, section: {**ABOUT[section], **change}}  # type: ignore[dict-item]
    with pytest.raises(TableError) as caught:
        read(file, here)
    assert caught.value.what.startswith(f"sweep.json is a sweep of something else: {words}")
    assert ";" not in caught.value.what  # nothing else differs
    assert caught.value.where == str(file)
    assert "-o" in str(caught.value.remedy)


POINT = point(0.5, 0.3).as_dict()


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda plain: {**plain, key: value}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plain: [plain], "is not a sweep of format 1"),
        (changed("format", 2), "is not a sweep of format 1"),
        (changed("points", "none"), "is damaged: points: "),
        (changed("points", [{"mode": "static"}]), "is damaged: points.0.schedule: "),
        (changed("points", [{**POINT, "mode": "[/red]"}]), "is damaged: points.0.mode: String should match"),
        (changed("points", [{**POINT, "share": None}]), "is damaged: points.0.share: Input should be"),
        (changed("points", [{**POINT, "schedule": {"-1": 2}}]), "is damaged: points.0.schedule.-1"),
        (changed("points", [POINT] * 10_001), "is damaged: points: Tuple should have at most 10000"),
        (changed("work", None), "work batch is not given in the file, 8 here"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(change(swept(point(0.5, 0.3)).as_dict())))
    with pytest.raises(TableError, match=words):
        read(file, ABOUT)
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(TableError, match=r"is not a sweep that can be read"):
        read(file, ABOUT)


# What it is of ----------------------------------------------------------------------------------------------


def test_weights_images_and_options_are_reported_apart(tiny: Any) -> None:
    source, dense, request = tiny
    told = module.about(source, dense, request)
    assert told == module.about(source, dense, request)
    assert json.loads(json.dumps(told, allow_nan=False))["work"]["batch"] == 4
    assert "mode" not in told["work"]
    pictures = replace(request.images, images=request.images.images + 1)
    assert module.about(source, dense, replace(request, images=pictures))["search"] != told["search"]
    for search in (Search(first=1), Search(sites=1), Search(blocks=(1,))):
        assert module.about(source, dense, replace(request, search=search))["search"] != told["search"]
    with torch.no_grad():
        next(source.module.parameters()).add_(1)
    assert module.about(source, dense, request)["model"] != told["model"]


@pytest.fixture
def tiny() -> Any:

    images = torch.randn(4, 3, 20, 20)
    source = sources.from_module(ViT().eval(), images)
    request = Request(Policy.load("evit"), Eager(), "eager", 4, ImageSet(images, None, "noise"))
    return source, recognise(source), request
