"""`--submodule`: a part of a model that cannot be captured whole."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import prunec
from prunec.planner.planfile import PlanFile
from tests.cli.running import EVIT, Call, message
from tests.planner.test_planfile import written

DETECTOR = ("models_of_a_user:detector", "--example", "2x3x20x20")
BODY = (*DETECTOR, "--submodule", "body")


def test_a_part_is_optimized_saved_and_put_in_its_place(call: Call, home: Path) -> None:
    said = call("optimize", *BODY, *EVIT, "--target", "eager", "--rounds", "5", "--batch", "2", "-o", "out")
    assert said.code == 0
    assert "model        models_of_a_user:detector, body of it (given weights)" in said.out.splitlines()
    image = torch.randn(2, 3, 20, 20)
    model = importlib.import_module("models_of_a_user").detector()
    expected = prunec.transform(
        model, prunec.Policy.load("evit", keep=0.5, blocks=(0,)), submodule="body", example=(image,)
    )
    for part in (prunec.load("out", trust_source=True), prunec.load("out", model=model, example=image)):
        model.body = part
        with torch.no_grad():
            torch.testing.assert_close(model(image), expected(image))
        model = importlib.import_module("models_of_a_user").detector()


def test_its_graph_and_what_is_recognised(call: Call) -> None:
    assert "block" in call("graph", *BODY, "-p", "norm", "--diff").out
    assert "2/2 blocks" in call("explain", *BODY).out


@pytest.mark.parametrize("path", ["bodie", "body.blocks.9"])
def test_a_part_that_is_none(call: Call, path: str) -> None:
    said = message(call("explain", *DETECTOR, "--submodule", path), 2)
    assert f"Detector has no part {path!r}" in said.what


def test_a_plan_remembers_the_part(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(written(submodule="body"))
    assert PlanFile.read(tmp_path / "plan.yaml").submodule == "body"
