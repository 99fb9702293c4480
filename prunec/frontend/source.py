"""What a source is: a model in eval mode, inputs that it accepts, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunec.capture.example_inputs import Example, example_of, infer, shapes_text
from prunec.data import shapes
from prunec.data.preprocess import Preprocess
from prunec.frontend import processors
from prunec.frontend.processors import preprocess_of

Weights = Literal["pretrained", "random", "given", "shipped", "file"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to measure on, normalised for the model, and how to call them in a report."""

    images: Tensor  # [n, 3, H, W]
    labels: Tensor | None  # [n]
    name: str
    classes: int | None = None  # how many the labels number, where folders name them by words
    folders: tuple[str, ...] = ()  # those that name the classes, in the order of the labels
    preprocess: Preprocess | None = None  # what became of them, where they were pictures
    names: tuple[str, ...] = ()  # of the model's classes, as far as it has any


@dataclass(frozen=True)
class Asked:
    """What a caller says of a source besides its name."""

    pretrained: bool = True
    example: Example | str | None = None  # an input, or its shapes as text
    image_size: tuple[int, int] | None = None  # of the input that is made up where there is no example
    preprocess: object = None  # a Preprocess, a processor, or single values by name
    arch: str | None = None  # a SOURCE that builds the model for a file of weights
    allow_pickle: bool = False  # whether what a file holds may run code
    submodule: str | None = None  # the path of the part that is meant

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the input, where the caller says them."""
        values = processors.values_of(self.preprocess) or {}
        said = self.preprocess.size if isinstance(self.preprocess, Preprocess) else values.get("size")
        return self.image_size or (None if said is None else Preprocess(said).size)


@dataclass(frozen=True, eq=False)
class Source:
    """A model in eval mode, inputs that it accepts, and where its weights come from."""

    spec: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: Weights
    notes: tuple[str, ...] = ()
    arch: str = ""  # the SOURCE that weights from a file were put into
    exported: ExportedProgram | None = None  # captured already, by whoever wrote the .pt2 file
    example: str = ""  # the shapes of the inputs, where the model by itself would have others
    processor: Mapping[str, Any] | None = None  # what stands beside the weights about pictures, as written
    chosen: object = None  # what the caller says about pictures
    submodule: str = ""  # which part of the model this is, where it is one
    labels: tuple[str, ...] = field(default=(), repr=False)  # the names of its classes, as far as it has any

    def test_images(self, count: int) -> ImageSet | None:
        """Held-out images for this model, if the source knows any."""
        if self.spec != "shapes" or self.submodule:
            return None
        seed = shapes.HELD_OUT_SEEDS[0]
        images, labels = shapes.images(shapes.CLASSIFICATION, seed, 0, count)
        return ImageSet(shapes.normalize(images), labels, "held-out Shapes images")

    def calibration_images(self, count: int) -> ImageSet | None:
        """Images that a policy may be fitted to, other than the test images, if the source knows any."""
        if self.spec != "shapes" or self.submodule:
            return None
        images, labels = shapes.images(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[-1], 0, count)
        return ImageSet(shapes.normalize(images), labels, "other held-out Shapes images")

    @property
    def preprocess(self) -> Preprocess:
        """How pictures become this model's input: as the caller says, else its processor, else a guess.

        Raises:
            SourceError: what the model says cannot be meant.
            UsageError: what the caller says cannot.
        """
        inputs = [leaf for leaf in (*self.args, *self.kwargs.values()) if isinstance(leaf, torch.Tensor)]
        largest = max(inputs, key=lambda leaf: leaf.numel())
        size, where = (int(largest.shape[-2]), int(largest.shape[-1])), f"source {self.spec!r}"
        values = processors.values_of(self.chosen)
        if self.chosen is not None and values is None:
            return preprocess_of(self.chosen, size, "preprocess")
        config = getattr(self.module, "pretrained_cfg", None)
        said = self.processor or (config if processors.describes_processing(config) else None)
        found = Preprocess(size) if said is None else preprocess_of(said, size, where)
        others = {name: value for name, value in (values or {}).items() if name != "size"}
        return found.changed(others, "the caller")


def made(
    spec: str,
    module: nn.Module,
    weights: Weights,
    notes: tuple[str, ...] = (),
    asked: Asked | None = None,
    *,
    processor: Mapping[str, Any] | None = None,
) -> Source:
    """A source of a module: its inputs as they are given, else as the model says of itself.

    Args:
        spec: what it is called.
        module: in eval mode.
        weights: where they come from.
        notes: what should be known.
        asked: what the caller says.
        processor: what stands beside the weights about pictures.

    Raises:
        UsageError: the example is no input, or none can be inferred.
    """
    asked = asked or Asked()
    if asked.example is not None:
        args, kwargs = example_of(asked.example, module)
    else:
        args, kwargs = infer(module, asked.size)
    own = asked.example is None and asked.size is None
    return Source(
        spec,
        module,
        args,
        kwargs,
        weights,
        notes,
        example="" if own else shapes_text(args, kwargs),
        processor=processor,
        chosen=asked.preprocess,
        labels=_labels(module),
    )


def _labels(module: nn.Module) -> tuple[str, ...]:
    """The names of a model's classes; those that transformers makes up say nothing."""
    said = getattr(getattr(module, "config", None), "id2label", None)
    if not isinstance(said, Mapping) or set(said) != set(range(len(said))):
        return ()
    names = tuple(str(said[number]) for number in range(len(said)))
    return () if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
