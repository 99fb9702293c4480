from __future__ import annotations

import io
from pathlib import Path

import fetch
import numpy as np
import pictures
import pytest
import torch
from PIL import Image

from tests.benchmarks_real.test_fetch import wheel


def png(value: int, side: int = 60) -> bytes:
    """A picture of one grey."""
    data = io.BytesIO()
    Image.fromarray(np.full((side, side + 20), value, dtype=np.uint8)).save(data, "png")
    return data.getvalue()


@pytest.fixture
def wheels(tmp_path: Path) -> fetch.Wheels:
    """Photographs whose greys tell them apart, and ten cells."""
    names = sorted((name, package) for package, files in pictures.FILES.items() for name in files)
    for package in pictures.FILES:
        greys = {name: png(10 * at) for at, (name, holder) in enumerate(names) if holder == package}
        wheel(tmp_path, package, **greys)
    labels = "\n".join(f"images/cell{at}.png  {at % 4 / 3}  mono" for at in range(10))
    cells = {f"images/cell{at}.png": png(20 * at, 30) for at in range(10)}
    wheel(tmp_path, fetch.CELLS, **cells, **{"labels.csv": labels.encode()})
    return fetch.Wheels(tmp_path)


def test_no_photograph_both_calibrates_and_measures(wheels: fetch.Wheels) -> None:
    calibrate, measure = pictures.photographs(wheels)
    greys = [{photo.getpixel((0, 0)) for photo in part} for part in (calibrate, measure)]
    assert len(greys[0]) + len(greys[1]) == sum(map(len, pictures.FILES.values()))
    assert not greys[0] & greys[1]


def test_crops_depend_on_the_seed_alone_and_go_through_the_photographs(wheels: fetch.Wheels) -> None:
    photos, _ = pictures.photographs(wheels)
    found = pictures.crops(photos, len(photos), seed=3)
    assert found.shape == (len(photos), 3, 224, 224)
    assert torch.equal(found, pictures.crops(photos, len(photos), seed=3))
    assert len({round(float(crop.mean()), 4) for crop in found}) == len(photos)


def test_cells_are_drawn_once_and_defective_above_a_half(wheels: fetch.Wheels) -> None:
    train, test = pictures.cells(wheels, 6, 4)
    assert (train.images.shape, test.images.shape) == ((6, 3, 224, 224), (4, 3, 224, 224))
    assert int(train.defective.sum() + test.defective.sum()) == 4  # 2/3 and 1, of ten in turn
    everything = torch.cat([train.images, test.images]).mean(dim=(1, 2, 3))
    assert len(set(everything.tolist())) == 10


def test_pixels_are_scaled_and_normalised(wheels: fetch.Wheels) -> None:
    image = pictures._tensor(Image.new("RGB", (10, 10), (255, 0, 0)))
    assert image[:, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
