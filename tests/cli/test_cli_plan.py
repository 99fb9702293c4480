"""The planner on the command line: each command on a model of the user's, small enough for seconds."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from prunec import cli
from prunec.api import verbs
from prunec.latency.table import LatencyTable
from prunec.planner import planned
from prunec.planner.planning import Candidate, Workshop
from prunec.policy.policy import Policy
from prunec.report.report import Report

MODELS = """\
import torch
from torch import nn
from prunec.data.tiny_vit import TinyViT


def vit(seed=0):
    torch.manual_seed(seed)
    model = TinyViT(image_size=32, patch_size=4, dim=32, depth=4, heads=2, num_classes=7)
    nn.init.normal_(model.head.weight)
    return model


def other():
    return vit(1)
"""
MODEL = ("models_of_a_planner:vit", "--policy", "evit", "--target", "eager", "--batch", "2")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        def refuse(name: str) -> None:
            raise ValueError(f"{name} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


Call = Callable[..., Said]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables that one test measures serve the next; all are of this very machine."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def home(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "models_of_a_planner.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.setenv("PRUNEC_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("models_of_a_planner", None)


@pytest.fixture
def call(home: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    level = logging.getLogger("torch").level

    def run(*arguments: str) -> Said:
        code = cli.main(list(arguments))
        return Said(code, *capsys.readouterr())

    yield run
    logging.getLogger("torch").setLevel(level)


@pytest.fixture
def table(call: Call) -> tuple[str, str]:
    """A table of this place by which shorter streams pay: a model for tests is too small for that."""
    assert call("bench", *MODEL, "--table", "table.json").code == 0
    measured = LatencyTable.read(Path("table.json"))
    row = tuple(map(float, measured.counts))
    blocks, dense = (row,) * len(measured.blocks), row[0] * len(measured.blocks)
    paying = replace(measured, blocks=blocks, dense=dense, fixed=0.0, sites=(0.0, 0.0, 0.0, 0.0))
    paying.write(Path("table.json"))
    return "--latency-table", "table.json"


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Candidate], float]], None]:
    """Schedules are built and timed, but what they take is what the test says."""

    def told(share: Callable[[Candidate], float]) -> None:
        real = Workshop.measured

        def measured(self: Workshop) -> tuple[Candidate, ...]:
            return tuple(replace(one, share=share(one), noise=0.001) for one in real(self))

        monkeypatch.setattr(Workshop, "measured", measured)

    return told


def failure(said: Said, code: int) -> str:
    assert said.code == code
    assert "Traceback" not in said.err
    assert "fault of prunec" not in said.err
    return said.err.rpartition("prunec: ")[2]


# plan, apply ------------------------------------------------------------------------------------------------


def test_plan_edit_apply(call: Call, home: Path, table: tuple[str, str], shares: Callable[..., None]) -> None:
    shares(lambda one: 0.7 if one.schedule else 0.98)
    said = call("plan", *MODEL, *table, "--max-drop", "10", "--sites", "1")
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
        ({1: 24, 2: 40}, 2, "40 tokens cannot leave the site of block 2: 24 enter, so 3 to 23 can"),
        ({7: 24}, 2, "there is no block 7, the model has blocks 0 to 3"),
        ({1: -3}, 1, "schedule.1: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_schedule_is_told_with_its_block(
    call: Call, home: Path, schedule: Mapping[int, int], code: int, words: str
) -> None:
    plan = {
        "source": MODEL[0], "weights": "given", "policy": yaml.safe_load(Policy.load("evit").to_yaml()),
        "target": "eager", "mode": "static", "batch": 2, "schedule": dict(schedule),
    }  # fmt: skip
    (home / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert words in failure(call("apply", "plan.yaml", "--trust-source", "-o", "out"), code)
    assert not (home / "out").exists()


def test_the_example_that_a_plan_names_is_shapes_and_never_a_file(call: Call, home: Path) -> None:
    plan = {
        "source": MODEL[0], "weights": "given", "policy": yaml.safe_load(Policy.load("evit").to_yaml()),
        "target": "eager", "mode": "static", "batch": 2, "schedule": {2: 30}, "example": "2x3x32x32",
    }  # fmt: skip
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
    goal = ("plan", *MODEL, *table, "--max-drop", "10", "--sites", "1", "--predict", "--images", "images")
    assert "warning: pictures are normalised with mean 0.5, 0.5, 0.5 and std" in call(*goal).err
    assert "pictures are" not in call(*goal, "--mean", "0,0,0", "--std", "1,1,1").err


def test_plan_json_tells_how_it_was_found(call: Call, table: tuple[str, str]) -> None:
    said = call("plan", *MODEL, *table, "--max-drop", "10", "--sites", "1", "--json")
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
    said = call("plan", *MODEL, *table, "--max-drop", "10", "--predict", "--json")
    assert said.code == 0
    assert (said.json["chosen"]["share"], said.json["chosen"]["loss"]) == (None, None)


def test_a_goal_out_of_reach_is_one_message(call: Call, table: tuple[str, str]) -> None:
    text = failure(call("plan", *MODEL, *table, "--latency", "0.01", "--sites", "1"), 1)
    assert "no schedule of policy 'evit' reaches at most 0.01 of the dense time" in text
    assert "to do: ask for less" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of latency, speedup and max_drop, got none"),
        (("--latency", "0.5", "--speedup", "2"), "got latency and speedup"),
        (("--latency", "1.5"), "latency is a share of the dense model's time, in (0, 1), got 1.5"),
    ],
)
def test_goals_that_are_none(call: Call, arguments: tuple[str, ...], words: str) -> None:
    assert words in failure(call("plan", *MODEL, *arguments), 2)


# optimize ---------------------------------------------------------------------------------------------------


def test_optimize_for_a_goal_reports_how_it_was_planned(
    call: Call, table: tuple[str, str], shares: Callable[..., None]
) -> None:
    shares(lambda one: 0.7 if one.schedule else 0.98)
    said = call("optimize", *MODEL, *table, "--max-drop", "10", "--sites", "1", "--rounds", "5", "-o", "out",
                "--require-speedup")  # fmt: skip
    assert said.code == 0
    assert re.search(r"^planned +a loss of at most 10: block \d: \d+, mode static$", said.out, flags=re.M)
    assert re.search(r"^ +> \d\.\d+ 0\.700 ±0\.001", said.out, flags=re.M)
    report = json.loads(Path("out/report.json").read_text())
    assert report["planner"]["chosen"]["share"] == 0.7


def test_no_gain_is_code_5_where_a_speedup_is_required(
    call: Call, table: tuple[str, str], shares: Callable[..., None]
) -> None:
    shares(lambda one: 0.97 if one.schedule else 0.98)
    arguments = ("optimize", *MODEL, *table, "--max-drop", "10", "--sites", "1", "--rounds", "5", "-o", "out")
    required = call(*arguments, "--require-speedup")
    text = failure(required, 5)
    assert "scoring and gathering cost about as much" in text or "is bound by launches" in text
    assert "to do: use the model as it is" in text
    assert "no site" in required.out
    assert Path("out/prunec.json").exists()  # what it is without sites, all the same
    assert call(*arguments).code == 0


def test_a_missed_goal_is_code_5_too(call: Call, table: tuple[str, str], shares: Callable[..., None]) -> None:
    shares(lambda one: 0.9 if one.schedule else 0.99)
    said = call("optimize", *MODEL, *table, "--latency", "0.85", "--sites", "1", "--rounds", "5", "-o", "out",
                "--require-speedup")  # fmt: skip
    assert "the goal was missed: 0.900 of the dense time measured" in failure(said, 5)


def test_apply_without_a_gain_is_code_5(
    call: Call, home: Path, shares: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Report, "no_gain", "it is as slow as before")
    plan = {
        "source": MODEL[0], "weights": "given", "policy": yaml.safe_load(Policy.load("evit").to_yaml()),
        "target": "eager", "mode": "static", "batch": 2, "schedule": {2: 30},
    }  # fmt: skip
    (home / "plan.yaml").write_text(yaml.safe_dump(plan))
    arguments = ("apply", "plan.yaml", "--trust-source", "--rounds", "5", "-o", "out")
    assert "it is as slow as before" in failure(call(*arguments, "--require-speedup"), 5)


# Tables -----------------------------------------------------------------------------------------------------


def foreign(path: str) -> None:
    """The table of a device that is not here."""
    table = LatencyTable.read(Path(path))
    replace(table, place={**table.place, "device": "a far device"}).write(Path(path))


def test_a_table_is_measured_shown_exported_and_kept(call: Call, home: Path, cache: Path) -> None:
    said = call("bench", *MODEL, "--table", "deep/table.json")
    assert said.code == 0
    assert re.search(r"^65 +\d+\.\d{3} +\d+\.\d{3} +\d+\.\d{3}", said.out, flags=re.M)
    assert re.search(r"^dense +\d+\.\d{3}", said.out, flags=re.M)
    assert "batch 2" in said.out
    table = LatencyTable.read(home / "deep" / "table.json")
    assert list((cache / "latency").glob("*.json"))
    again = call("bench", *MODEL, "--json")
    assert again.json["dense"] == table.dense
    assert "time " not in again.err  # it came from the cache


def test_a_foreign_table_predicts_and_is_refused_for_building(call: Call) -> None:
    assert call("bench", *MODEL, "--table", "far.json").code == 0
    foreign("far.json")
    goal = ("--max-drop", "10", "--sites", "1", "--latency-table", "far.json")
    text = failure(call("optimize", *MODEL, *goal, "-o", "out"), 1)
    assert re.search(r"the latency table does not fit: device is a far device in the table, .* here", text)
    assert not Path("out").exists()
    said = call("plan", *MODEL, *goal, "--predict")
    assert said.code == 0
    about = yaml.safe_load(said.out)["about"]
    assert about["device"] == "a far device"
    assert "measured_share" not in about
    assert about["notes"] == ["predicted, not built: nothing was timed"]


def test_a_table_that_was_measured_in_noise_is_warned_of(call: Call, table: tuple[str, str]) -> None:
    goal = ("plan", *MODEL, *table, "--max-drop", "10", "--sites", "1", "--predict")
    noisy, kept = "the latency table was measured in noise", LatencyTable.read(Path("table.json"))
    replace(kept, spread=0.15).write(Path("table.json"))
    assert noisy not in call(*goal).err
    replace(kept, spread=0.41).write(Path("table.json"))
    said = call(*goal)
    assert said.code == 0
    assert f"prunec: warning: {noisy}, its samples lie 41% apart" in said.err


def test_a_table_that_only_says_to_be_of_the_model_is_refused(call: Call, table: tuple[str, str]) -> None:
    goal = ("plan", *MODEL, *table, "--max-drop", "10", "--sites", "1", "--predict")
    kept = LatencyTable.read(Path("table.json"))
    replace(kept, blocks=kept.blocks[:-1]).write(Path("table.json"))
    told = failure(call(*goal), 1)
    depth, tokens = len(kept.blocks), kept.counts[0]
    assert f"the latency table has {depth - 1} blocks from {tokens} tokens, and the model {depth}" in told
    assert "where: table.json" in told


def test_a_table_of_another_batch_does_not_even_predict(call: Call) -> None:
    assert call("bench", *MODEL, "--table", "table.json").code == 0
    said = call(
        "plan", *MODEL[:-1], "4", "--max-drop", "10", "--latency-table", "table.json", "--predict"
    )  # fmt: skip
    assert "batch is 2 in the table, 4 here" in failure(said, 1)


def test_a_file_that_cannot_be_written_is_known_before_the_work(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("")
    monkeypatch.setattr(verbs, "latency_table", None)
    monkeypatch.setattr(verbs, "sweep", None)
    assert "file/table.json cannot be written" in failure(
        call("bench", *MODEL, "--table", "file/table.json"), 2
    )
    assert "where: -o" in failure(call("sweep", *MODEL, "-o", "file/sweep.json"), 2)
    assert ". cannot be written: it is a folder" in failure(call("sweep", *MODEL, "-o", "."), 2)


# sweep ------------------------------------------------------------------------------------------------------


def test_a_sweep_shows_points_by_time_and_goes_on_where_it_stopped(
    call: Call, table: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("sweep", *MODEL, *table, "--sites", "1", "-o", "deep/sweep.json")
    said = call(*arguments, "--points", "2")
    assert said.code == 0
    rows = re.findall(r"^(\*?) +(\d\.\d{3}) ±\d\.\d{3} +\d\.\d{3} .* static +(\S.*)$", said.out, flags=re.M)
    assert len(rows) == 3
    assert [share for _, share, _ in rows] == sorted(share for _, share, _ in rows)
    assert rows[0][0] == "*"
    assert sum(schedule.strip() == "no site" for *_, schedule in rows) == 1
    assert "written to deep/sweep.json" in said.out

    built = []
    real = Workshop.build

    def build(self: Workshop, *given: Any) -> None:
        built.append(given)
        real(self, *given)

    monkeypatch.setattr(Workshop, "build", build)
    again = call(*arguments, "--points", "2", "--json")
    assert again.json["points"] == json.loads(Path("deep/sweep.json").read_text())["points"]
    assert built == []
    more = call(*arguments, "--points", "3", "--json")
    assert 1 <= len(built) <= 2
    assert len(more.json["points"]) == 3 + len(built)
    assert [entry for entry in more.json["points"] if {**entry, "frontier": True} in again.json["points"]]


def test_a_sweep_of_another_model_is_refused_before_anything_is_measured(
    call: Call, table: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("sweep", *MODEL, *table, "--sites", "1", "--points", "1", "-o", "sweep.json").code == 0
    before = Path("sweep.json").read_text()
    monkeypatch.setattr(planned, "tables", None)
    other = ("sweep", "models_of_a_planner:other", *MODEL[1:], "--sites", "2", "-o", "sweep.json")
    text = failure(call(*other), 1)
    assert "model source is models_of_a_planner:vit in the file, models_of_a_planner:other here" in text
    assert "model parameters is " in text
    assert "search sites is 1 in the file, 2 here" in text
    assert Path("sweep.json").read_text() == before


def test_drawing_without_the_extra_says_what_to_install(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "prunec.report.drawing", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(verbs, "sweep", None)
    text = failure(call("sweep", *MODEL, "--plot", "sweep.png"), 2)
    assert "jinja2 is not installed" in text
    assert "to do: pip install 'prunec[report]'" in text
