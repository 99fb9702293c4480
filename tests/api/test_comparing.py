"""Outputs are compared on every run: on whatever images there are, and with a warning where they are bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunec
from prunec.data.tiny_vit import TinyViT
from prunec.errors import UsageError
from tests import tiny
from tests.api.making import EVIT, optimize, pictures, vit


def test_without_images_scenes_are_compared_on_and_it_is_said() -> None:
    report = optimize(vit(), **EVIT).report
    assert report.accuracy is not None
    assert (report.accuracy.images, report.images) == (32, "synthetic Shapes scenes")
    assert report.accuracy.random is not None
    assert "give --images" in " ".join(report.notes)
    assert report.accuracy.resized.startswith("left out")


def test_a_model_of_no_pictures_is_compared_on_its_example() -> None:
    report = optimize(Grey().eval(), example=torch.randn(2, 1, 20, 20), **EVIT).report
    assert report.accuracy is not None
    assert (report.accuracy.images, report.images) == (2, "images of the example")


class Grey(nn.Module):
    """Reads one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny.ViT()

    def forward(self, pixels: Tensor) -> Any:
        return self.body(pixels.expand(-1, 3, -1, -1))


class Classes(nn.Module):
    """Returns no scores, but which class is the best."""

    def __init__(self) -> None:
        super().__init__()
        self.body = vit()

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image).argmax(1)


def test_what_cannot_be_compared_is_noted_and_stops_nothing() -> None:
    report = optimize(Classes().eval(), example=torch.randn(2, 3, 20, 20), **EVIT).report
    assert report.accuracy is None
    assert "not compared" in " ".join(report.notes)


class Chaotic(TinyViT):
    """Whatever changes a little before the end changes its scores beyond recognition."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.sin(3 * super().forward(image))


def test_useless_outputs_warn_and_are_in_the_verdict() -> None:
    with pytest.warns(UserWarning, match="than zeros would be") as warned:
        result = optimize(vit(Chaotic), **EVIT)
    assert "outputs are worse than zeros" in result.verdict
    assert result.report.useless
    assert result.report.doubts == tuple(str(each.message) for each in warned)
    assert set(result.report.doubts) <= set(result.report.warnings)
    assert result.report.text().startswith("WARNING ")


def test_what_is_only_timed_is_not_judged() -> None:
    untrained = optimize(vit(Chaotic), "dynamicvit", keep=0.5, calibrate=False).report
    assert untrained.untrained
    assert (untrained.useless, untrained.doubts) == ("", ())
    assert untrained.accuracy is not None


def test_a_metric_of_ones_own_stands_beside_the_others(tmp_path: Path) -> None:
    def surest(output: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return output.softmax(1).gather(1, labels[:, None])[:, 0]

    folder = pictures(tmp_path / "images", "2", "5")
    report = optimize(
        vit(), images=folder, preprocess={"mean": 0.5, "std": 0.5}, metric=surest, **EVIT
    ).report
    found = report.accuracy
    assert found is not None
    assert found.random is not None
    assert found.metric == "surest"
    assert 0 < (found.dense.metric or 0) < 1
    assert found.pruned.metric != found.dense.metric
    assert report.as_dict()["accuracy"]["random"]["metric"] == found.random.metric
    assert "metric       surest" in report.text()


def test_a_metric_that_fails_is_an_error_where_there_are_no_images() -> None:
    with pytest.raises(UsageError, match="for 32 images"):
        optimize(vit(), metric=lambda output, labels: "good", **EVIT)


def test_what_only_plans_takes_no_metric() -> None:
    measure = prunec.Measure(target="eager", metric=lambda output, labels: 0.0)
    with pytest.raises(UsageError, match="metric has no effect here"):
        prunec.plan(vit(), "evit", prunec.Goal(latency=0.6), measure=measure)
