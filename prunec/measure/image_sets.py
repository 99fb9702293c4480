"""Which images a model is measured on, and which it is calibrated on: never the same ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from prunec.calibration.inputs import ENOUGH
from prunec.data import shapes
from prunec.data.images import are_numbers, load_images
from prunec.errors import CalibrationError, UsageError, brief
from prunec.frontend.sources import ImageSet, Source

MOST = 512
CALIBRATION = ENOUGH
FEW = 32  # scenes that outputs are compared on
SCENES = "synthetic Shapes scenes"
EXAMPLE = "images of the example"


def image_set_of(source: Source, folder: str | Path | None) -> ImageSet | None:
    """Images to measure on: a folder's, or those that the source knows."""
    if folder is None:
        return source.test_images(MOST)
    inputs = [*source.args, *source.kwargs.values()]
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
        raise UsageError(
            f"the model takes {len(inputs)} inputs, and a folder holds images only",
            remedy="leave --images out, or wrap the model so that it takes an image",
        )
    how = source.preprocess
    found = load_images(folder, how, MOST)
    classes = None if are_numbers(found.classes) else len(found.classes)
    name = f"images of {brief(str(folder), 4096)}"
    return ImageSet(found.images, found.labels, name, classes, found.classes, how, source.labels)


def split_off(source: Source, found: ImageSet | None) -> tuple[ImageSet | None, ImageSet]:
    """Images to measure on, and others to calibrate on."""
    known = source.calibration_images(CALIBRATION)
    if known is not None:
        return found, known
    if found is None:
        return None, scenes_for(source)
    count = min(CALIBRATION, len(found.images) // 2)
    chosen = torch.zeros(len(found.images), dtype=torch.bool)
    if count:
        chosen[torch.linspace(0, len(chosen) - 1, count).round().long()] = True  # folders come class by class
    labels = None if found.labels is None else found.labels[~chosen]
    rest = dataclasses.replace(found, images=found.images[~chosen], labels=labels)
    return rest, ImageSet(found.images[chosen], None, f"of the {found.name}", preprocess=found.preprocess)


def doubts(source: Source, found: ImageSet) -> tuple[str, ...]:
    """What should be known about the way in which pictures become this model's input."""
    how = found.preprocess
    if how is None:
        return ()
    said = []
    if not how.origin:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (how.mean, how.std))
        beside = "the weights" if source.weights in ("pretrained", "file") else "the model"
        said.append(
            f"pictures are normalised with mean {mean} and std {std}, which is a guess: no processor stands "
            f"beside {beside}; give --mean, --std and --crop (in Python: preprocess=)"
        )
    if how.undone:
        said.append(f"{how.origin} also asks for {' and '.join(how.undone)}, which is not done here")
    return tuple(said)


def scenes_for(source: Source, start: int = 0, count: int | None = None) -> ImageSet:
    """Scenes of Shapes at the model's size: used where there are no pictures."""
    inputs = [leaf for leaf in (*source.args, *source.kwargs.values()) if isinstance(leaf, Tensor)]
    image = max(inputs, key=lambda leaf: leaf.numel())
    if image.dim() != 4 or image.shape[1] != 3:
        raise CalibrationError(
            f"the model takes no pictures but {list(image.shape)}, so it cannot be calibrated on scenes",
            remedy="calibrate in Python: prunec.transform(model, policy, calibration=inputs)",
        )
    images, _ = shapes.images(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[-1], start, count or CALIBRATION)
    scaled = torch.nn.functional.interpolate(images, size=image.shape[-2:], mode="bilinear", antialias=True)
    how = source.preprocess
    return ImageSet(how.normalise(scaled).to(image.device, image.dtype), None, SCENES, preprocess=how)


def without_pictures(source: Source, example: Tensor) -> ImageSet:
    """What outputs are compared on where nobody gives images: other scenes, or the example if none fit.

    Args:
        source: the model.
        example: the input that it was captured with.
    """
    try:
        return scenes_for(source, start=CALIBRATION, count=FEW)
    except CalibrationError:
        return ImageSet(example, None, EXAMPLE)
