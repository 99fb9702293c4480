"""Images in the place of a program's example, as many at a time as it takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunec.errors import REPORT, CalibrationError, InternalError
from prunec.ir.program import Recognised
from prunec.scorers.fitting import HELD_OUT

BATCH = 8
ENOUGH = 64  # images that a calibration holds on


def fitting_batches(program: Recognised, images: Tensor) -> Tensor:
    """The images, as many as fill whole batches; CalibrationError when they do not fit or are too few."""
    example = pixels_of(program)
    if images.shape[1:] != example.shape[1:] or images.dtype != example.dtype:
        raise CalibrationError(
            f"the images to calibrate on are {images.dtype}{list(images.shape)}, the model takes "
            f"{example.dtype}{['n', *example.shape[1:]]}",
            remedy="give images as the model gets them: scaled, normalised, in its precision",
        )
    size = batch_of(program)
    images = images if program.interface.batch else images[: len(images) // size * size]
    if len(images) < 2 * HELD_OUT:
        raise CalibrationError(
            f"{len(images)} images are too few to calibrate on",
            remedy=f"give {2 * HELD_OUT} or more; {ENOUGH} are plenty",
        )
    return images.to(example.device)


def batch_of(program: Recognised) -> int:
    """How many images run at a time: what the model fixed, if it did."""
    return BATCH if program.interface.batch else len(pixels_of(program))


def pixels_of(program: Recognised) -> Tensor:
    """The example's images."""
    places = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    leaf = program.interface.example[places.index(program.anatomy.pixels)]
    if not isinstance(leaf, Tensor):
        raise InternalError(f"the image input {program.anatomy.pixels!r} is no tensor", remedy=REPORT)
    return leaf


def call_on(program: Recognised, images: Tensor) -> tuple[Any, ...]:
    """Flat inputs with these images in the place of the example's."""
    places = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    batch = program.interface.batch

    def filled(place: str, leaf: Any) -> Any:
        if place == program.anatomy.pixels:
            return images
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch:
            return leaf[:1].expand(len(images), *leaf.shape[1:])
        return leaf

    return tuple(map(filled, places, program.interface.example))
