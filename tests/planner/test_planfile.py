"""Plans as files: what is written is read again, and each mistake is told with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from prunec.errors import PlanError, PolicyError
from prunec.frontend.sources import Source
from prunec.planner.planfile import PlanFile
from prunec.planner.planning import Decision
from prunec.planner.result import PlanResult
from prunec.planner.workshop import Candidate
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal
from prunec.schedules.schedule import scheduled
from tests.planner.imagined import ANATOMY, POLICY, mapped

CHOSEN = Candidate("static", {6: 5, 3: 13}, 0.7125, 0.0123456789, 0.73, 0.01, 0.004)


def planned(chosen: Candidate = CHOSEN, **decision: Any) -> PlanResult:
    plan = mapped()
    policy = scheduled(POLICY, ANATOMY, chosen.schedule)
    made = Decision(chosen, (chosen,), **decision)
    return PlanResult(policy, plan.lowering, Goal(latency=0.75), (plan,), made, {"table": 1.0})


def written(of: PlanResult | None = None, **changes: Any) -> str:
    given = {"spec": "shapes", "weights": "shipped", **changes}
    source = Source(module=nn.Identity(), args=(), kwargs={}, **given)
    return PlanFile.of(of or planned(), source, target="eager", batch=4).text("mine.yaml")


def mistake(tmp_path: Path, text: str | bytes) -> str:
    file = tmp_path / "plan.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PlanError) as caught:
        PlanFile.read(file)
    assert caught.value.where == str(file)
    assert "prunec plan" in str(caught.value.remedy)
    assert caught.value.what.startswith(f"{file} is no plan: ")
    return caught.value.what.removeprefix(f"{file} is no plan: ")


def edited(**changes: Any) -> str:
    plain = yaml.safe_load(written())
    return yaml.safe_dump({name: value for name, value in {**plain, **changes}.items() if value is not ...})


# What is written --------------------------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(written())
    plan = PlanFile.read(tmp_path / "mine.yaml")
    assert plan.schedule == {3: 13, 6: 5}
    assert (plan.source, plan.weights, plan.target, plan.mode, plan.batch) == (
        "shapes", "shipped", "eager", "static", 4,
    )  # fmt: skip
    assert Policy.load(plan.policy) == POLICY
    assert plan.text("mine.yaml") == written()


def test_it_says_how_to_go_on_and_what_was_measured() -> None:
    text = written()
    assert text.startswith("# A plan for prunec: edit `schedule`, then run `prunec apply mine.yaml`.\n")
    assert "schedule:\n  3: 13\n  6: 5\n" in text
    about = yaml.safe_load(text)["about"]
    assert about == {
        "goal": "at most 0.75 of the dense time", "device": "a device", "torch": "2.15.0",
        "predicted_share": 0.7125, "measured_share": 0.73, "predicted_loss": 0.012346, "measured_loss": 0.01,
    }  # fmt: skip


def test_what_was_not_measured_is_left_out() -> None:
    foreseen = Candidate("static", {3: 9}, 0.7, 0.01)
    about = yaml.safe_load(written(planned(foreseen, notes=("predicted, not built",))))["about"]
    assert "measured_share" not in about
    assert "measured_loss" not in about
    assert about["notes"] == ["predicted, not built"]


def test_a_plan_without_sites_says_so_and_why(tmp_path: Path) -> None:
    bare = Candidate("static", {}, 0.9, 0.0, 0.9, 0.0)
    (tmp_path / "plan.yaml").write_text(written(planned(bare, reason="it does not pay", gains=False)))
    plan = PlanFile.read(tmp_path / "plan.yaml")
    assert plan.schedule == {}
    assert plan.about["why_no_site"] == "it does not pay"


def test_weights_in_a_file_come_with_their_architecture(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(written(spec="w.safetensors", arch="timm:vit_tiny_patch16_224"))
    assert PlanFile.read(tmp_path / "plan.yaml").arch == "timm:vit_tiny_patch16_224"


def test_the_shapes_of_an_example_are_kept(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(written(example="pixel_values=2x3x96x96"))
    assert PlanFile.read(tmp_path / "plan.yaml").example == "pixel_values=2x3x96x96"
    assert "example" not in written()


# Mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shedule": {}}, "shedule: Extra inputs are not permitted"),
        ({"version": 2}, "version: Input should be 1"),
        ({"batch": 0}, "batch: Input should be greater than or equal to 1"),
        ({"schedule": ...}, "schedule: Field required"),
        ({"schedule": {3: 0}}, "schedule.3: Input should be greater than or equal to 1"),
        ({"schedule": {3: "few"}}, "schedule.3: Input should be a valid integer"),
        ({"schedule": {-1: 9}}, "schedule.-1"),
        ({"schedule": [3, 9]}, "schedule: Input should be a valid dictionary"),
        ({"target": ..., "mode": ...}, "target: Field required; mode: Field required"),
    ],
)
def test_each_mistake_is_reported_with_its_place(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in mistake(tmp_path, edited(**changes))


def test_what_is_no_yaml_or_no_mapping(tmp_path: Path) -> None:
    told = mistake(tmp_path, "schedule: {3: 9\nbatch: 4")
    assert told.startswith("it is not valid YAML: ")
    assert "line 2" in told
    assert "\n" not in told
    assert mistake(tmp_path, "").startswith("the file: Input should be")
    assert mistake(tmp_path, "- 3\n- 9\n").startswith("the file: Input should be")
    assert mistake(tmp_path, b"\x89PNG\xff\xfe").startswith("it is not valid YAML: ")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.yaml is no plan: it cannot be read: No such file") as caught:
        PlanFile.read(tmp_path / "none.yaml")
    assert caught.value.where == str(tmp_path / "none.yaml")
    with pytest.raises(PlanError, match="it cannot be read: it is a folder, not a file"):
        PlanFile.read(tmp_path)


def test_a_mistake_in_the_policy_is_reported_in_the_words_of_policies(tmp_path: Path) -> None:
    plain = yaml.safe_load(written())
    plain["policy"]["scorer"]["kind"] = "cls_attenton"
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(PolicyError, match="nearest: cls_attention"):
        PlanFile.read(tmp_path / "plan.yaml")


# What a model says to an edited schedule --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "words", "place"),
    [
        ({3: 9, 6: 13}, "13 tokens cannot leave the site of block 6: 9 enter, so 3 to 8 can", "block 6"),
        ({3: 9, 6: 9}, "9 tokens cannot leave the site of block 6: 9 enter", "block 6"),
        ({3: 17}, "17 tokens cannot leave the site of block 3: 17 enter, so 3 to 16 can", "block 3"),
        ({3: 2}, "2 tokens cannot leave the site of block 3", "block 3"),
        ({8: 9}, "there is no block 8, the model has blocks 0 to 7", "block 8"),
    ],
)
def test_a_schedule_that_the_model_cannot_run(schedule: dict[int, int], words: str, place: str) -> None:
    with pytest.raises(PolicyError, match=words) as caught:
        scheduled(POLICY, ANATOMY, schedule)
    assert caught.value.where == f"schedule of policy evit, {place}"
