"""Plans: found, printed, edited and applied; goals of `optimize`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from PIL import Image

from prunec.api import verbs
from prunec.latency import sites
from prunec.latency.table import LatencyTable
from prunec.planner import planned
from prunec.planner.workshop import Workshop
from prunec.policy.policy import Policy
from prunec.report.report import Report
from tests.cli.running import PLANNED, Call, failure

PLAN = {
    "source": PLANNED[0],
    "weights": "given",
    "policy": yaml.safe_load(Policy.load("evit").to_yaml()),
    "target": "eager",
    "mode": "static",
    "batch": 2,
}


def test_plan_edit_apply(call: Call, home: Path, table: tuple[str, str], shares: Callable[..., None]) -> None:
    shares(lambda one: 0.7 if one.schedule else 0.98)
    said = call("plan", *PLANNED, *table, "--max-drop", "10", "--sites", "1")
    assert said.code == 0
    plain = yaml.safe_load(said.out)
    assert said.out.startswith("# A plan for prunec: edit `schedule`")
    assert "`prunec apply plan.yaml --trust-source`" in said.out.partition("\nversion")[0]
    ((block, leaves),) = plain["schedule"].items()
    assert block == 2
    assert 2 <= leaves < 65
    assert plain["about"]["measured_share"] == 0.7
    (home / "plan.yaml").write_text(said.out.replace(f"  {block}: {leaves}\n", "  1: 40\n  2: 24\n"))
    done = call("apply", "plan.yaml", "--trust-source", "--rounds", "5", "-o", "out", "--json")
    assert done.code == 0
    assert [(site["block"], site["leaves"]) for site in done.json["plan"]["sites"]] == [(1, 40), (2, 24)]
    assert done.json["planner"] is None
    assert (home / "out" / "prunec.json").exists()
    assert verbs.load("out", trust_source=True) is not None


@pytest.mark.parametrize(
    ("schedule", "code", "words"),
    [
        ({1: 24, 2: 40}, 2, "block 2: 24 enter, so 3 to 23 can"),
        ({7: 24}, 2, "block 7"),
        ({1: -3}, 1, "schedule.1: "),
    ],
)
def test_a_wrong_schedule_is_reported_with_its_block(
    call: Call, home: Path, schedule: Mapping[int, int], code: int, words: str
) -> None:
    plan = {
        **PLAN,
        "schedule": dict(schedule),
    }
    (home / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert words in failure(call("apply", "plan.yaml", "--trust-source", "-o", "out"), code)
    assert not (home / "out").exists()


def test_the_example_that_a_plan_names_is_shapes_and_never_a_file(call: Call, home: Path) -> None:
    plan = {
        **PLAN,
        "schedule": {2: 30},
        "example": "2x3x32x32",
    }
    (home / "plan.yaml").write_text(yaml.safe_dump(plan))
    done = call("apply", "plan.yaml", "--trust-source", "--rounds", "5", "-o", "out", "--json")
    assert (done.code, done.json["example"]) == (0, "2x3x32x32")
    (home / "plan.yaml").write_text(yaml.safe_dump({**plan, "example": "a.safetensors"}))
    failed = failure(call("apply", "plan.yaml", "--trust-source", "-o", "out"), 2)
    assert failed.startswith("'a.safetensors' are no shapes of inputs\n  where: example")


def test_a_guess_about_pictures_is_warned_of(call: Call, home: Path, table: tuple[str, str]) -> None:
    (home / "images").mkdir()
    for name in range(16):
        Image.new("RGB", (40, 32), (16 * name, 90, 40)).save(home / "images" / f"{name}.png")
    goal = ("plan", *PLANNED, *table, "--max-drop", "10", "--sites", "1", "--predict", "--images", "images")
    assert "warning: pictures are normalised with mean 0.5, 0.5, 0.5 and std" in call(*goal).err
    assert "pictures are" not in call(*goal, "--mean", "0,0,0", "--std", "1,1,1").err


def test_plan_json_tells_how_it_was_found(call: Call, table: tuple[str, str]) -> None:
    said = call("plan", *PLANNED, *table, "--max-drop", "10", "--sites", "1", "--json")
    assert said.code == 0
    found = said.json
    assert set(found) >= {"goal", "modes", "losses", "chosen", "candidates", "scale", "reason", "seconds"}
    assert found["goal"] == {"share": None, "loss": 10}
    assert all(one["share"] > 0 and one["loss"] >= 0 for one in found["candidates"])
    (mode,) = found["modes"]
    assert mode["mode"] == "static"
    shares = [point["share"] for point in mode["frontier"]]
    assert shares == sorted(shares)


def test_a_prediction_is_valid_json_and_builds_nothing(
    call: Call, table: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workshop, "build", None)
    said = call("plan", *PLANNED, *table, "--max-drop", "10", "--predict", "--json")
    assert said.code == 0
    assert (said.json["chosen"]["share"], said.json["chosen"]["loss"]) == (None, None)


def test_a_goal_out_of_reach_is_one_message(call: Call, table: tuple[str, str]) -> None:
    text = failure(call("plan", *PLANNED, *table, "--latency", "0.01", "--sites", "1"), 1)
    assert "no schedule of policy 'evit'" in text
    assert "0.01" in text
    assert "to do: ask for less" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "got none"),
        (("--latency", "0.5", "--speedup", "2"), "got latency and speedup"),
        (("--latency", "1.5"), "got 1.5"),
    ],
)
def test_goals_that_are_none(call: Call, arguments: tuple[str, ...], words: str) -> None:
    assert words in failure(call("plan", *PLANNED, *arguments), 2)


def test_optimize_for_a_goal_reports_how_it_was_planned(
    call: Call, table: tuple[str, str], shares: Callable[..., None]
) -> None:
    shares(lambda one: 0.7 if one.schedule else 0.98)
    goal = ("--max-drop", "10", "--sites", "1", "--rounds", "5")
    said = call("optimize", *PLANNED, *table, *goal, "-o", "out", "--require-speedup")
    assert said.code == 0
    assert said.err.splitlines().count("prunec: capture, recognise") == 1  # for the plan and the model
    assert re.search(r"^planned +a loss of at most 10: block \d: \d+, mode static$", said.out, flags=re.M)
    assert re.search(r"^ +> \d\.\d+ 0\.700 ±0\.001", said.out, flags=re.M)
    report = json.loads(Path("out/report.json").read_text())
    assert report["planner"]["chosen"]["share"] == 0.7


def test_no_gain_is_code_5_where_a_speedup_is_required(
    call: Call, table: tuple[str, str], shares: Callable[..., None]
) -> None:
    shares(lambda one: 0.97 if one.schedule else 0.98)
    arguments = (
        "optimize",
        *PLANNED,
        *table,
        "--max-drop",
        "10",
        "--sites",
        "1",
        "--rounds",
        "5",
        "-o",
        "out",
    )
    required = call(*arguments, "--require-speedup")
    text = failure(required, 5)
    assert "scoring and gathering cost about as much" in text or "is bound by launches" in text
    assert "to do: use the model as it is" in text
    assert "no site" in required.out
    assert Path("out/prunec.json").exists()  # what it is without sites, all the same
    assert call(*arguments).code == 0


def test_a_missed_goal_is_code_5_too(call: Call, table: tuple[str, str], shares: Callable[..., None]) -> None:
    shares(lambda one: 0.9 if one.schedule else 0.99)
    goal = ("--latency", "0.85", "--sites", "1", "--rounds", "5")
    said = call("optimize", *PLANNED, *table, *goal, "-o", "out", "--require-speedup")
    assert "the goal was missed: 0.900 of the dense time measured" in failure(said, 5)


def test_apply_without_a_gain_is_code_5(
    call: Call, home: Path, shares: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Report, "no_gain", "it is as slow as before")
    plan = {
        **PLAN,
        "schedule": {2: 30},
    }
    (home / "plan.yaml").write_text(yaml.safe_dump(plan))
    arguments = ("apply", "plan.yaml", "--trust-source", "--rounds", "5", "-o", "out")
    assert "it is as slow as before" in failure(call(*arguments, "--require-speedup"), 5)


# The choice of policy ---------------------------------------------------------------------------------------


def test_the_policy_is_chosen_and_the_others_say_what_they_lost(
    call: Call, shares: Callable[..., None], table: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paying = LatencyTable.read(Path(table[1]))
    monkeypatch.setattr(planned, "control_table", lambda dense, request: paying)
    monkeypatch.setattr(sites, "beside", lambda base, first, others, *_, **__: [base for _ in others])
    shares(lambda one: 0.7 if one.schedule else 0.98)
    model, target = PLANNED[0], PLANNED[3:]
    goal = ("--max-drop", "10", "--sites", "1")
    said = call("plan", model, *target, "--policies", "evit, norm,algm,nothing-fits", *goal)
    assert "nothing-fits" in failure(said, 2)
    said = call("plan", model, *target, "--policies", "evit, norm,dtop", *goal)
    assert said.code == 0
    plain = yaml.safe_load(said.out)
    assert plain["policy"]["name"] in ("evit", "norm")
    told = {line.strip("> ").partition(":")[0]: line for line in plain["about"]["policies"]}
    assert set(told) == {"evit", "norm", "dtop", "random"}
    assert "the control" in told["random"]
    assert "at the least" in told["dtop"]  # its sites come too late


def test_a_policy_of_several_steps_is_planned_by_its_rate(
    call: Call, shares: Callable[..., None], home: Path
) -> None:
    shares(lambda one: 0.7 if one.schedule else 0.98)
    said = call("plan", PLANNED[0], *PLANNED[3:], "--policy", "algm", "--max-drop", "0.001")
    assert said.code == 0
    plain = yaml.safe_load(said.out)
    assert plain["schedule"] is None
    assert 0 < plain["policy"]["keep"] <= 1
    (home / "plan.yaml").write_text(said.out)
    done = call("apply", "plan.yaml", "--trust-source", "--rounds", "5", "-o", "out", "--json")
    assert done.code == 0
    assert done.json["policy"]["keep"] == plain["policy"]["keep"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", PLANNED[0], "--latency", "0.5"), "--policies"),
        (("plan", *PLANNED, "--policies", "norm", "--latency", "0.5"), "--policies"),
        (("optimize", PLANNED[0], "--policy", "auto"), "--keep"),
        (("optimize", PLANNED[0], "--policy", "auto", "--keep", "0.5", "--dry-run"), "--dry-run"),
        (("optimize", PLANNED[0], "--policy", "auto", "--keep", "0.5", "--latency", "0.5"), "--keep"),
    ],
)
def test_what_says_no_policy_or_two_things(call: Call, arguments: tuple[str, ...], words: str) -> None:
    said = call(*arguments)
    assert said.code == 2
    assert words in said.err


def test_at_a_keep_presets_are_compared_at_equal_work(call: Call) -> None:
    keep = ("--policy", "auto", "--keep", "0.5", "--rounds", "5", "-o", "out")
    said = call("optimize", PLANNED[0], *PLANNED[3:], *keep, "--json")
    assert said.code == 0
    planner = said.json["planner"]
    losses = {one["policy"]: one["loss"] for one in planner["policies"] if one["loss"] is not None}
    assert losses[planner["policy"]] == min(loss for name, loss in losses.items() if name != "random")
    assert "FLOPs" in planner["notes"][0]
