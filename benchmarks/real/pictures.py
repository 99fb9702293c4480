"""Photographs and solar cells as inputs: split by file into those that calibrate and those that measure."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from backbone import SIZE
from fetch import CELLS, Wheels
from PIL import Image
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILES = {
    "scikit-image": (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
        "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
        "rocket.jpg",
    ),
    "scikit-learn": ("china.jpg", "flower.jpg"),
    "matplotlib": ("grace_hopper.jpg",),
}  # fmt: skip
SMALLEST = 0.5  # of the shorter side: a crop


@dataclass(frozen=True)
class Cells:
    """Pictures of solar cells, and whether each is defective."""

    images: Tensor  # [n, 3, 224, 224]
    defective: Tensor  # [n], bool


def photographs(wheels: Wheels) -> tuple[list[Image.Image], list[Image.Image]]:
    """Those to calibrate on, and those to measure on: every second file, in the order of their names."""
    named = sorted((name, package) for package, names in FILES.items() for name in names)
    opened = [_opened(wheels.read(package, f"/{name}")) for name, package in named]
    return opened[0::2], opened[1::2]


def crops(photos: Sequence[Image.Image], count: int, seed: int) -> Tensor:
    """Random square crops, mirrored at random, of one photograph after another: [count, 3, 224, 224]."""
    chance = random.Random(seed)
    start = chance.randrange(len(photos))
    return torch.stack([_crop(photos[(start + at) % len(photos)], chance) for at in range(count)])


def cells(wheels: Wheels, train: int, test: int) -> tuple[Cells, Cells]:
    """Cells to fit on and cells to measure on, drawn once from all."""
    lines = wheels.read(CELLS, "data/labels.csv").decode().splitlines()
    rows = [(name, float(share)) for name, share, _ in (line.split() for line in lines)]
    chosen = random.Random(0).sample(rows, train + test)
    return _cells(wheels, chosen[:train]), _cells(wheels, chosen[train:])


def _cells(wheels: Wheels, rows: Sequence[tuple[str, float]]) -> Cells:
    images = [_tensor(_opened(wheels.read(CELLS, f"/{name}"))) for name, _ in rows]
    return Cells(torch.stack(images), torch.tensor([share > 0.5 for _, share in rows]))


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _crop(photo: Image.Image, chance: random.Random) -> Tensor:
    side = round(min(photo.size) * chance.uniform(SMALLEST, 1))
    left, top = (chance.randint(0, whole - side) for whole in photo.size)
    image = _tensor(photo.crop((left, top, left + side, top + side)))
    return image.flip(2) if chance.random() < 0.5 else image


def _tensor(photo: Image.Image) -> Tensor:
    """A picture as the model takes it, scaled and normalised."""
    pixels = np.asarray(photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return ((torch.from_numpy(pixels) - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1).contiguous()
