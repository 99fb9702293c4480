"""Pictures through the model of an artefact: prepared as its spec says, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunec import compat, documents
from prunec.api.loading import load
from prunec.api.results import LABELS
from prunec.artefact import artefact, recorded
from prunec.artefact.answers import Answer, answers, leaves_of, stacked
from prunec.artefact.manifest import Manifest, unreadable
from prunec.artefact.spec import Spec
from prunec.data.images import decode_image, read_image
from prunec.data.preprocess import Preprocess
from prunec.errors import UsageError

#: Images at a time, where the model takes any number.
BATCH = 8


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says about pictures."""

    images: tuple[str, ...]
    answers: tuple[list[Answer], ...]  # for each image one for each output
    outputs: dict[str, Tensor]  # by name, over all images

    def as_dict(self) -> list[dict[str, Any]]:
        """Plain data, for JSON."""
        return [
            {"image": image, "outputs": found} for image, found in zip(self.images, self.answers, strict=True)
        ]


def run(
    folder: str | Path, images: Sequence[str | Path], *, target: str | None = "eager", top: int = 5
) -> Answers:
    """What an artefact's model says about pictures.

    Args:
        folder: the artefact.
        images: files of pictures.
        target: the backend; eager answers at once, a compiled one is for many pictures.
        top: how many classes to name.

    Raises:
        SourceError: the artefact, or one of the pictures, cannot be read.
        UsageError: the model takes no pictures.
    """
    predictor = Predictor(folder, target=target, top=top)
    pixels = [predictor.read(image) for image in images]  # before the model: a bad one is known at once
    size = predictor.spec.batch or BATCH
    batches = [predictor.outputs(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    found = [answer for leaves in batches for answer in predictor.answers(leaves)]
    return Answers(tuple(map(str, images)), tuple(found), stacked(batches, predictor.spec))


class Predictor:
    """An artefact's model, loaded once for many pictures.

    predictor = prunec.Predictor("out")
    predictor.predict([predictor.read("cat.jpg"), predictor.read(content_of_another_file)])
    """

    def __init__(self, folder: str | Path, *, target: str | None = None, top: int = 5) -> None:
        """Read what the artefact says of its model; that itself is loaded when it is first asked.

        Args:
            folder: the artefact.
            target: the backend; None: the one that the artefact was made for.
            top: how many classes to name.

        Raises:
            SourceError: the artefact cannot be read.
            UsageError: the model takes no pictures.
        """
        self.folder, self.target, self.top = folder, target, top
        place, manifest = artefact.opened(folder)
        self.spec, self.preprocess = _for_pictures(place, manifest)
        self.labels = labels_of(place, manifest)
        self._example = example_of(place, manifest, self.spec)

    @cached_property
    def model(self) -> nn.Module:
        """The model on its backend."""
        return load(self.folder, target=self.target)

    def read(self, image: str | Path | bytes) -> Tensor:
        """A picture as the model takes it, of a file or of a file's content; SourceError where it is none."""
        if isinstance(image, bytes):
            return decode_image(image, self.preprocess)
        return read_image(image, self.preprocess)

    def predict(self, pixels: Sequence[Tensor]) -> list[list[Answer]]:
        """For each picture an answer for each output, the main one first; all in one batch.

        A model that takes a fixed number of pictures takes no more than that.
        """
        return self.answers(self.outputs(pixels))

    def outputs(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """What the model gives, all pictures in one batch."""
        most = self.spec.batch
        if most is not None and len(pixels) > most:
            raise UsageError(
                f"{len(pixels)} pictures are more than the {most} that the model takes at once",
                remedy=f"give {most} at a time",
            )
        return _run(self.model, self.spec, self._example, torch.stack(list(pixels)))

    def answers(self, leaves: Sequence[Tensor]) -> list[list[Answer]]:
        """What outputs say about each picture."""
        return answers(self.spec, self.labels, leaves, self.top)


def _for_pictures(folder: Path, manifest: Manifest) -> tuple[Spec, Preprocess]:
    if manifest.spec is None:
        raise UsageError(
            f"{folder} does not say how pictures become its model's input: an older prunec wrote it",
            remedy="write it again with this version",
        )
    if manifest.spec.pictures is None:
        raise UsageError(
            f"the model of {folder} takes no pictures, but {_names(manifest.spec)}",
            remedy="call it from Python: prunec.load(folder)",
        )
    return manifest.spec, manifest.spec.pictures.preprocess()


def _names(spec: Spec) -> str:
    return ", ".join(one.name for one in spec.inputs)


def labels_of(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """The names of the model's classes, where the artefact has any; SourceError where the file is damaged."""
    if LABELS not in manifest.files:
        return ()
    artefact.check(folder, manifest, LABELS)
    try:
        found = documents.load(folder / LABELS, "json", documents.LARGE)
    except documents.Unreadable as error:
        raise unreadable(folder, f"{LABELS} {error}") from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise unreadable(folder, f"{LABELS} is no list of names")
    return tuple(found)


def example_of(folder: Path, manifest: Manifest, spec: Spec) -> list[Any]:
    """The flat inputs that were recorded."""
    artefact.check(folder, manifest, recorded.FILE)
    return recorded.read(folder, spec)[0]


def _run(model: nn.Module, spec: Spec, flat: Sequence[Any], pixels: Tensor) -> list[Tensor]:
    """The outputs on some pictures; of a fixed batch the last one fills what is missing."""
    count = len(pixels)
    if spec.batch is not None and count < spec.batch:
        pixels = torch.cat([pixels, pixels[-1:].expand(spec.batch - count, *pixels.shape[1:])])
    inputs = [
        _filled(leaf, one.name == spec.pixels, one.sizes, pixels)
        for leaf, one in zip(flat, spec.inputs, strict=True)
    ]
    return [leaf[:count] for leaf in leaves_of(called(model, inputs))]


def _filled(leaf: Any, is_pixels: bool, sizes: Sequence[int | None] | None, pixels: Tensor) -> Any:
    if is_pixels:
        return pixels.to(leaf.dtype)
    if sizes and sizes[0] is None:
        return leaf[:1].expand(len(pixels), *leaf.shape[1:])
    return leaf


def called(model: nn.Module, flat: Sequence[Any]) -> Any:
    """What a model of an artefact gives on flat inputs."""
    args, kwargs = compat.tree_unflatten(list(flat), model.__dict__["program"].interface.in_spec)
    with torch.inference_mode():
        return model(*args, **kwargs)
