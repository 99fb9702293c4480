from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import prunec.measure.image_sets
from prunec.api.verbs import optimize
from prunec.artefact.spec import InputRecord, Spec, dtype_of
from prunec.data import shapes
from prunec.errors import UsageError
from prunec.frontend.sources import from_module
from prunec.measure.measure import Measure
from prunec.policy.policy import Policy
from tests import tiny

PICTURES = {
    "size": [4, 4], "scaled": [8, 8], "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "fit": "cover",
    "interpolation": "bicubic", "rescale": 1 / 255,
}  # fmt: skip


class Named(tiny.ViT):
    """Called by names, with an option."""

    def forward(self, pixels: Tensor, scale: float = 1.0, *, flip: bool = False) -> Any:
        return {"logits": super().forward(pixels) * scale, "flipped": torch.tensor([1])}


def described(module: nn.Module, example: Any) -> Any:
    measure = Measure(target="eager", batch=2, rounds=5)
    return optimize(from_module(module, example), "norm", measure=measure).description


def test_what_a_model_takes_and_gives() -> None:
    torch.manual_seed(0)
    found = described(Named().eval(), {"pixels": tiny.pixels(2), "scale": 2.0, "flip": False})
    pixels, scale, flip = found.spec.inputs
    assert pixels == InputRecord(
        name="pixels", sizes=(None, *tiny.pixels(1).shape[1:]), dtype="float32", by_name=True
    )
    assert (scale.name, scale.value, scale.by_name) == ("scale", 2.0, True)
    assert (flip.name, flip.value) == ("flip", False)
    (output,) = found.spec.outputs  # whole numbers are no scores
    assert (output.name, output.kind, output.place) == ("logits", "class scores", 0)
    assert (found.spec.batch, found.spec.pixels) == (None, "pixels")
    assert found.spec.pictures.size == tuple(tiny.pixels(1).shape[2:])
    assert found.labels == ()
    assert Spec.model_validate(found.spec.model_dump(mode="json")) == found.spec


def test_the_built_in_model_names_its_classes_and_prepares_its_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prunec.measure.image_sets, "MOST", 8)
    measure = Measure(target="eager", batch=2, rounds=5)
    found = optimize("shapes", Policy.load("evit", keep=0.9), measure=measure).description
    assert found.labels == shapes.CLASS_NAMES
    pictures, _ = shapes.images(shapes.CLASSIFICATION, 3, 0, 2)
    prepared = found.spec.pictures.preprocess().normalise(pictures)
    assert torch.allclose(prepared, shapes.normalize(pictures), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", [4]),
        ("size", [4, -1]),
        ("fit", "crop"),
        ("interpolation", "magic"),
        ("rescale", "x"),
        ("mean", 0),
    ],
)
def test_a_spec_that_cannot_be_meant(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate({"inputs": [], "outputs": [], "pictures": {**PICTURES, key: value}})


@pytest.mark.parametrize(("key", "value"), [("std", [0.0] * 3), ("size", [0, 4]), ("size", [50000, 50000])])
def test_pictures_that_cannot_be_prepared(key: str, value: object) -> None:
    spec = Spec.model_validate({"inputs": [], "outputs": [], "pictures": {**PICTURES, key: value}})
    assert spec.pictures is not None
    with pytest.raises(UsageError):
        spec.pictures.preprocess()


def test_a_precision_by_its_name() -> None:
    assert dtype_of(InputRecord(name="x", dtype="bfloat16")) is torch.bfloat16
    assert dtype_of(InputRecord(name="x", dtype="load")) is None
