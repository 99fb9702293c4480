"""What an artefact's model takes and gives, so that it can be called where nothing else of it is known.

inputs     name, sizes (nothing for the batch) and precision of each, or its one value
outputs    name, sizes and kind of each: class scores, boxes, a map, features
pictures   how a picture becomes the input
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from prunec.calibration.inputs import pixels_of
from prunec.data.images import MOST_PIXELS
from prunec.data.preprocess import Fit, Interpolation, Preprocess
from prunec.errors import PruneError, UsageError
from prunec.frontend.labels import names_of_classes
from prunec.frontend.sources import Source
from prunec.ir.interface import Interface, name_of
from prunec.ir.program import Planned, Recognised
from prunec.measure import figures
from prunec.measure.fidelity import Kind, Output
from prunec.policy.language import Word

Size = Annotated[int, Field(ge=0, le=2**40)]
Sizes = Annotated[tuple[Size | None, ...], Field(strict=False, max_length=16)]
Numbers = Annotated[tuple[float, ...], Field(strict=False, max_length=8)]
Sides = Annotated[tuple[Size, ...], Field(strict=False, min_length=2, max_length=2)]


class _Record(BaseModel):
    """Strict: a number is no text. Lists, as JSON has them, become tuples."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class InputRecord(_Record):
    """One input of the model: a tensor, or an option that has one value."""

    name: Word
    sizes: Sizes | None = None  # of a tensor, None for the batch
    dtype: Word = ""
    value: bool | int | float | Word | None = None
    by_name: bool = False  # whether it is given as a keyword


class OutputRecord(_Record):
    """One floating-point output."""

    name: Word
    sizes: Sizes
    kind: Kind
    place: Annotated[int, Field(ge=0, le=1024)]  # among the floating-point outputs
    scores: Annotated[int, Field(ge=0, le=1024)] | None = None  # where the class scores of boxes are


class PictureRecord(_Record):
    """How a picture becomes the input; see `Preprocess`."""

    size: Sides
    scaled: Sides
    mean: Numbers
    std: Numbers
    fit: Fit
    interpolation: Interpolation
    rescale: float
    round_down: bool = False
    origin: Word = ""

    def preprocess(self) -> Preprocess:
        """The same as what prepares pictures; UsageError where it cannot be meant."""
        if math.prod(self.size) > MOST_PIXELS:
            raise UsageError(
                f"pictures of {self.size[0]} x {self.size[1]} pixels are larger than prunec prepares",
                where="the artefact's spec",
                remedy="make the artefact again for smaller pictures",
            )
        return Preprocess(**self.model_dump())


class Spec(_Record):
    """What the model takes and gives."""

    inputs: Annotated[tuple[InputRecord, ...], Field(strict=False, max_length=256)]
    outputs: Annotated[tuple[OutputRecord, ...], Field(strict=False, max_length=1024)]
    batch: Annotated[int, Field(ge=1, le=2**16)] | None = None  # how many images it takes; any number: None
    pixels: Word = ""  # the input that pictures become
    pictures: PictureRecord | None = None  # nothing where the input is no picture of three channels


@dataclass(frozen=True, eq=False)
class Description:
    """What `optimize` knows of a model, besides what its report says."""

    spec: Spec
    example: tuple[Any, ...]  # flat inputs, pictures where there were any
    labels: tuple[str, ...] = ()  # the names of its classes


def describe(source: Source, dense: Recognised, pruned: Planned, images: Tensor | None) -> Description:
    """What a pruned model takes and gives, with inputs to try it on."""
    interface, batch = pruned.interface, figures.images_at_a_time(dense, pruned)
    pixels = pixels_of(dense)
    count = batch or 2
    example = figures.inputs(dense, count, images)
    names = interface.leaf_names()
    known = figures.known(dense, source)
    found = figures.outputs(dense, known)
    spec = Spec(
        inputs=tuple(
            _input(name, leaf, interface) for name, leaf in zip(names, interface.example, strict=True)
        ),
        outputs=tuple(map(_output, found)),
        batch=batch,
        pixels=names[[leaf is pixels for leaf in dense.interface.example].index(True)],
        pictures=_pictures(source, pixels),
    )
    return Description(spec, example, _labels(source, found))


def _input(name: str, leaf: Any, interface: Interface) -> InputRecord:
    by_name, batch = re.split(r"[.\[]", name)[0] in interface.keyword, interface.batch
    if not isinstance(leaf, Tensor):
        value = leaf if isinstance(leaf, bool | int | float | str) else None
        return InputRecord(name=name, value=value, by_name=by_name)
    sizes: list[int | None] = list(leaf.shape)
    if sizes and batch is not None and sizes[0] == batch:
        sizes[0] = None
    return InputRecord(name=name, sizes=tuple(sizes), dtype=name_of(leaf.dtype), by_name=by_name)


def _output(found: Output) -> OutputRecord:
    return OutputRecord(
        name=found.name,
        sizes=(None, *found.sizes),
        kind=found.kind,
        place=found.place,
        scores=found.scores,
    )


def _pictures(source: Source, pixels: Tensor) -> PictureRecord | None:
    """How pictures become the input, where it is a batch of pictures and something sensible is said."""
    if pixels.dim() != 4 or pixels.shape[1] != 3 or source.submodule:
        return None
    try:
        known = dataclasses.asdict(source.preprocess)
    except PruneError:
        return None
    return PictureRecord(**{name: known[name] for name in PictureRecord.model_fields})


def _labels(source: Source, found: Sequence[Output]) -> tuple[str, ...]:
    """The names of the model's classes, where it gives a score for each, or for each and one for none."""
    names = names_of_classes(source)
    widths = {size for output in found for size in output.sizes}
    return names if {len(names), len(names) + 1} & widths else ()


def dtype_of(record: InputRecord) -> torch.dtype | None:
    """The precision that a record names; None where PyTorch has none of that name."""
    found = getattr(torch, record.dtype, None)
    return found if isinstance(found, torch.dtype) else None
