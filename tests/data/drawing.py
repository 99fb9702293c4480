"""Pictures that are drawn, saved and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from prunec.data import images as reading
from prunec.data.images import ImageSet
from prunec.data.preprocess import Preprocess, scaled_for

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def load_images(
    folder: Path | str, size: Any, mean: Any, std: Any, limit: int | None = None, crop: float = 1.0
) -> ImageSet:
    sides = (size, size) if isinstance(size, int) else size
    return reading.load_images(folder, Preprocess(sides, mean, std, scaled_for(sides, crop)), limit)


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, so that every format and every pixel counts."""
    numbers = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(seed)).mul(255).byte()
    small = Image.frombytes("RGB", (8, 8), bytes(numbers.flatten().tolist()))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def save(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed=seed).save(folder / name)


def names_of(paths: tuple[Path, ...], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def load_images_of(image: Image.Image, folder: Path) -> torch.Tensor:
    folder.mkdir()
    image.save(folder / "one.png")
    return load_images(folder, 30, *PLAIN).images[0]
