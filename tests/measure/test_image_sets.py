"""Which images are measured on, which are calibrated on, and what is doubtful about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from prunec.data.preprocess import Preprocess
from prunec.errors import CalibrationError, UsageError
from prunec.frontend import sources
from prunec.frontend.source import ImageSet, Source
from prunec.measure import image_sets
from prunec.measure.image_sets import doubts, image_set_of, scenes_for, split_off, without_pictures
from tests.tiny import ViT


def source_of(*example: Tensor) -> Source:
    model = ViT()
    model.image_size = 8
    return sources.from_module(model.eval(), example or (torch.zeros(2, 3, 8, 8),))


def numbered(count: int) -> ImageSet:
    images = torch.arange(count).view(-1, 1, 1, 1).float()
    return ImageSet(images, torch.arange(count), "pictures", count)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_no_image_is_measured_on_and_calibrated_on(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sets, "CALIBRATION", 16)
    rest, chosen = split_off(source_of(), numbered(count))
    assert rest is not None
    assert rest.labels is not None
    own, others = chosen.images.flatten().tolist(), rest.images.flatten().tolist()
    assert sorted(own + others) == list(range(count))
    assert rest.labels.tolist() == others  # labels go with their images
    assert len(own) == min(16, count // 2)
    assert chosen.labels is None
    if len(own) > 1:  # folders come class by class: all parts of them are calibrated on
        assert (own[0], own[-1]) == (0, count - 1)


def test_without_images_scenes_are_calibrated_on_at_the_models_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sets, "CALIBRATION", 4)
    rest, chosen = split_off(source_of(torch.zeros(2, 3, 12, 10)), None)
    assert rest is None
    assert chosen.images.shape == (4, 3, 12, 10)
    assert chosen.images.std() > 0.1


def test_outputs_are_compared_on_other_scenes_than_those_of_a_calibration() -> None:
    source = source_of()
    shown, calibrated = without_pictures(source, torch.zeros(2, 3, 8, 8)), scenes_for(source)
    assert shown.name == calibrated.name == image_sets.SCENES
    assert len(shown.images) == image_sets.FEW
    assert not any(torch.equal(one, other) for one in shown.images for other in calibrated.images)


def test_what_takes_no_pictures_is_compared_on_its_example() -> None:
    example = torch.zeros(2, 1, 8, 8)
    shown = without_pictures(source_of(example), example)
    assert shown.images is example
    assert shown.name == image_sets.EXAMPLE


def test_what_takes_no_pictures_has_no_scenes() -> None:
    with pytest.raises(CalibrationError, match=r"\[2, 1, 8, 8\]") as caught:
        scenes_for(source_of(torch.zeros(2, 1, 8, 8)))
    assert "calibration=" in (caught.value.remedy or "")


def test_a_folder_is_read_at_the_models_size_and_named(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / folder / "one.png")
    found = image_set_of(source_of(), tmp_path)
    assert found is not None
    assert found.images.shape == (2, 3, 8, 8)
    assert (found.classes, found.folders) == (2, ("cat", "dog"))
    assert str(tmp_path) in found.name


def test_a_model_of_two_inputs_is_not_measured_on_a_folder(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    two = sources.from_module(Two().eval(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)))
    with pytest.raises(UsageError, match="2 inputs"):
        image_set_of(two, tmp_path)


def test_a_guess_and_what_is_not_done_are_doubtful() -> None:
    half = (0.5, 0.5, 0.5)
    guess = Preprocess((8, 8), half, half, (8, 8))
    found = replace(numbered(1), preprocess=guess)
    (said,) = doubts(source_of(), found)
    assert "guess" in said
    assert "--mean" in said
    known = replace(guess, origin="a processor", undone=("padding", "rotation"))
    (said,) = doubts(source_of(), replace(found, preprocess=known))
    assert "padding and rotation" in said
    assert doubts(source_of(), replace(found, preprocess=replace(guess, origin="a processor"))) == ()
    assert doubts(source_of(), numbered(1)) == ()
