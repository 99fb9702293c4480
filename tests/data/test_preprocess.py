from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import transforms

from prunec.errors import UsageError
from tests.data.drawing import MEAN, PLAIN, STD, load_images, load_images_of, picture


@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (16, 16), (7, 5), (333, 127)])
@pytest.mark.parametrize("crop", [1.0, 0.9])
def test_it_equals_torchvision(tmp_path: Path, shape: tuple[int, int], crop: float) -> None:
    picture(*shape).save(tmp_path / "one.png")
    reference = transforms.Compose(
        [
            transforms.Resize(int(16 / crop), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(16),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    found = load_images(tmp_path, 16, MEAN, STD, crop=crop).images[0]
    torch.testing.assert_close(found, reference(picture(*shape)), rtol=0, atol=1e-6)


def test_a_size_may_be_higher_than_wide(tmp_path: Path) -> None:
    picture(60, 30).save(tmp_path / "wide.png")
    picture(30, 60).save(tmp_path / "tall.png")
    assert load_images(tmp_path, (24, 8), *PLAIN).images.shape == (2, 3, 24, 8)


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    original = picture()
    original.convert("L").save(tmp_path / "grey.png")
    original.convert("RGBA").save(tmp_path / "alpha.png")
    original.convert("CMYK").save(tmp_path / "print.jpg")
    original.convert("P").save(tmp_path / "palette.png", transparency=b"\x00\x80\xff")
    found = load_images(tmp_path, 30, *PLAIN)
    expected = load_images_of(original, tmp_path / "reference")
    for path, image in zip(found.paths, found.images, strict=True):
        reference = expected.mean(0, keepdim=True) if path.stem == "grey" else expected
        assert (image - reference).abs().mean() < 0.1, path.name


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = [0, 16384, 32768, 65280]
    data = b"".join(value.to_bytes(2, "little") for value in values)
    Image.frombytes("I;16", (2, 2), data).save(tmp_path / "deep.png")
    found = load_images(tmp_path, 2, *PLAIN).images[0, 0]
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 64.0, 128.0, 255.0]) / 255)


@pytest.mark.parametrize(
    "wrong", [{"mean": (0.5, 0.5)}, {"std": (1.0, 1.0, 0.0)}, {"limit": 0}, {"crop": 0.0}, {"crop": 1.5}]
)
def test_arguments_that_cannot_be_meant(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        load_images(tmp_path, **{"size": 8, "mean": MEAN, "std": STD, **wrong})
