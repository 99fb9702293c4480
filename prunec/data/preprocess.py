"""How a picture becomes the input of a model: scaled, cropped around its centre, normalised.

picture --scale--> covers `scaled`, or is stretched to it --crop--> `size` --normalise--> input
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prunec.errors import UsageError, did_you_mean, shown

Fit = Literal["cover", "stretch"]
#: Pillow's names of its filters, in the order of its numbers.
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocess:
    """What a model's pictures went through in training, and go through here."""

    size: tuple[int, int]  # height and width of the model's input
    mean: tuple[float, ...] = HALF  # of each channel, after `rescale`
    std: tuple[float, ...] = HALF
    scaled: tuple[int, int] = (0, 0)  # height and width that the picture is scaled to; `size` when left out
    fit: Fit = "cover"  # cover: keep its proportions; stretch: do not
    interpolation: Interpolation = "bicubic"
    rescale: float = 1 / 255  # of values from 0 to 255
    round_down: bool = (
        False  # where a margin is odd: transformers rounds down, torchvision to the even number
    )
    origin: str = ""  # what says so; nothing does where it is empty
    undone: tuple[str, ...] = ()  # what else it says, and is not done here

    def __post_init__(self) -> None:
        """UsageError where a value cannot be meant; a single number is that of all sides or channels."""
        for name in ("size", "scaled"):
            sides = getattr(self, name)
            sides = (sides, sides) if isinstance(sides, int) else tuple(sides)
            object.__setattr__(self, name, sides)
        if self.scaled == (0, 0):
            object.__setattr__(self, "scaled", self.size)
        for name in ("mean", "std"):
            values = getattr(self, name)
            values = (values,) if isinstance(values, int | float) else tuple(values)
            object.__setattr__(self, name, values * 3 if len(values) == 1 else values)
        self._check()

    def _check(self) -> None:
        for name in ("size", "scaled"):
            sides = getattr(self, name)
            if len(sides) != 2 or not all(isinstance(side, int) and 0 < side < 2**16 for side in sides):
                raise _wrong(name, sides, "a number of pixels, or height and width")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3 or not are_numbers(getattr(self, name)):
                raise _wrong(name, getattr(self, name), "three numbers, one for each channel")
        if 0 in self.std:
            raise _wrong("std", self.std, "numbers other than 0: each channel is divided by them")
        if not are_numbers([self.rescale]) or self.rescale == 0:
            raise _wrong("rescale", self.rescale, "a number other than 0")
        if self.fit not in get_args(Fit):
            raise _wrong("fit", self.fit, "cover or stretch")
        if self.interpolation not in INTERPOLATIONS:
            raise _wrong("interpolation", self.interpolation, f"one of {', '.join(INTERPOLATIONS)}")

    def at(self, size: tuple[int, int]) -> Preprocess:
        """The same for another input size: the crop keeps the same share of the scaled picture."""
        if size == self.size:
            return self
        scaled = tuple(
            round(side * to / now) for side, to, now in zip(self.scaled, size, self.size, strict=True)
        )
        return dataclasses.replace(self, size=size, scaled=scaled)  # type: ignore[arg-type]

    def changed(self, changes: Mapping[str, Any], origin: str) -> Preprocess:
        """With some values by name; `crop` is the share of the scaled picture that the crop keeps."""
        if not changes:
            return self
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("origin", "undone")]
        for name in changes:
            if name not in (*names, "crop"):
                raise UsageError(
                    f"preprocessing has no {name!r}{did_you_mean(name, names)}",
                    where="preprocess",
                    remedy=f"choose among {', '.join([*names, 'crop'])}",
                )
        values = {name: value for name, value in changes.items() if name != "crop"}
        new_origin = f"{origin}, else {self.origin}" if self.origin else origin
        new = dataclasses.replace(self, **values, origin=new_origin)
        crop = changes.get("crop")
        return new if crop is None else dataclasses.replace(new, scaled=scaled_for(new.size, crop))

    def margin(self, scaled: int, side: int) -> int:
        """What the crop leaves out before a side, in pixels."""
        return int((scaled - side) / 2) if self.round_down else round((scaled - side) / 2)

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] in 0..1 as the model takes them."""
        factor = self.rescale * 255
        images = images if abs(factor - 1) < 1e-6 else images * factor
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        how = f"scaled ({self.interpolation}) to cover" if self.fit == "cover" else f"{self.interpolation} to"
        crop = "" if self.scaled == self.size else f" {_sides(self.scaled)}, cropped to"
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{how}{crop} {_sides(self.size)}, mean {mean}, std {std}"


def scaled_for(size: tuple[int, int], crop: float) -> tuple[int, int]:
    """The size of which `size` is that share, as timm rounds it."""
    if not are_numbers([crop]) or not 0 < crop <= 1:
        raise _wrong("crop", crop, "a share of the scaled picture, in (0, 1]")
    return math.floor(size[0] / crop), math.floor(size[1] / crop)


def are_numbers(values: object) -> bool:
    """Whether all are finite numbers."""
    return isinstance(values, tuple | list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _wrong(name: str, value: object, wanted: str) -> UsageError:
    return UsageError(
        f"{name} is {shown(value)} in the preprocessing of pictures",
        where="preprocess",
        remedy=f"give {wanted}",
    )
