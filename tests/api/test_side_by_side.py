"""A dense and a pruned model beside each other: times, FLOPs, and the same images for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunec
from prunec.errors import TargetError, UsageError
from tests.tiny import ViT, pixels

HOW = prunec.Measure(target="eager", batch=2, rounds=5)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = ViT(depth=2).eval()
    return model, prunec.transform(model, prunec.Policy.load("norm", keep=0.4, blocks=(1,)), example=pixels())


def test_dense_and_pruned_beside_each_other(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    said: list[str] = []
    how = prunec.Measure(target="eager", batch=3, rounds=5, progress=said.append)
    images = pixels(5)
    found = prunec.benchmark(model, fast, images=images, example=pixels(), measure=how)
    assert set(found.timings) == {"dense", "pruned"}
    assert found.batch == 3
    assert found.flops["pruned"] < found.flops["dense"]
    assert found.comparison is not None
    assert found.comparison.images == 5
    assert found.comparison.dense.agreement == 1.0
    with torch.no_grad():
        cosine = torch.nn.functional.cosine_similarity(fast(images), model(images)).mean()
    assert found.comparison.pruned.similarity == pytest.approx(float(cosine), abs=1e-5)
    assert said[-1] == "compare on images"
    assert "pruned is " in str(found)
    assert "on 5 images that were given" in str(found)
    assert json.loads(json.dumps(found.as_dict()))["speedup"] == pytest.approx(found.speedup)


def test_without_images_only_times_are_compared(pair: tuple[Any, Any]) -> None:
    found = prunec.benchmark(*pair, example=pixels(), measure=HOW)
    assert found.comparison is None
    assert found.as_dict()["comparison"] is None


def test_the_second_module_must_be_one_of_prunec(pair: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="the second module was not made by prunec"):
        prunec.benchmark(pair[0], pair[0], example=pixels())


@pytest.mark.parametrize(
    ("field", "images"), [({"calibrate": False}, None), ({"preprocess": {"crop": 0.9}}, pixels())]
)
def test_settings_without_effect_are_refused(pair: tuple[Any, Any], field: Any, images: Any) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(field))} has no effect here") as caught:
        prunec.benchmark(*pair, images=images, example=pixels(), measure=prunec.Measure(**field))
    assert str(caught.value.where).startswith("benchmark")


def test_a_folder_that_is_none_is_an_error(pair: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(prunec.PruneError, match="nowhere"):
        prunec.benchmark(*pair, images=tmp_path / "nowhere", example=pixels(), measure=HOW)


def test_an_unknown_target(pair: tuple[Any, Any]) -> None:
    with pytest.raises(TargetError, match="unknown target 'eagre'"):
        prunec.benchmark(*pair, measure=prunec.Measure(target="eagre"))


def test_a_metric_of_ones_own_and_what_is_far_off_is_said(pair: tuple[Any, Any]) -> None:
    model, fast = pair

    def largest(output: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return output.max(1).values

    how = prunec.Measure(target="eager", batch=2, rounds=5, metric=largest)
    images = pixels(4)
    found = prunec.benchmark(model, fast, images=images, example=pixels(), measure=how)
    assert found.comparison is not None
    assert found.comparison.metric == "largest"
    with torch.no_grad():
        expected = model(images).max(1).values.mean()
    assert found.comparison.dense.metric == pytest.approx(float(expected), abs=1e-5)
    (output,) = found.as_dict()["comparison"]["outputs"]
    assert output["kind"] == "class scores"
    distance = found.comparison.pruned.relative_l2
    assert distance is not None
    assert ("warning: " in str(found)) is (distance > 0.5)
