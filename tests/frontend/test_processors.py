"""ImageSet as the processors of transformers, the transforms of timm and those of torchvision make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from PIL import Image
from torchvision.transforms._presets import ImageClassification

from prunec.data.images import load_images
from prunec.errors import SourceError
from prunec.frontend import processors

SIZES = ((90, 61), (50, 83))  # the margin of the crop is odd for one of them
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"height": 32, "width": 32}
STEP = 1.01 / 255  # how far Pillow's scaling and torchvision's may lie apart, before the division by std


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Image.Image]]:
    folder = tmp_path_factory.mktemp("pictures")
    drawn = []
    for seed, size in enumerate(SIZES):
        numbers = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(seed)).mul(255).byte()
        small = Image.frombytes("RGB", (8, 8), bytes(numbers.flatten().tolist()))
        drawn.append(small.resize(size, Image.Resampling.BICUBIC))
        drawn[-1].save(folder / f"{seed}.png")
    return folder, drawn


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "stretched": ("ViTImageProcessor", {"size": SQUARE, **IMAGENET}),
    "covered, cropped": ("BitImageProcessor", {"size": {"shortest_edge": 37}, "crop_size": SQUARE}),
    "covered": ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
    "stretched, cropped": ("DeiTImageProcessor", {"size": {"height": 40, "width": 40}, "crop_size": SQUARE}),
    "a share": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    "not normalised": ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False}),
    "not rescaled": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False}),
    "twice the scale": ("ViTImageProcessor", {"size": SQUARE, "rescale_factor": 1 / 127.5}),
    "nearest": ("ViTImageProcessor", {"size": SQUARE, "resample": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_processor_of_transformers(
    case: str, tmp_path: Path, pictures: tuple[Path, list[Image.Image]]
) -> None:
    kind, options = CASES[case]
    getattr(transformers, kind)(**options).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    said = processors.read_folder(tmp_path)
    how = processors.preprocess_of(said, (32, 32), "here")
    expected = processor(pictures[1], return_tensors="pt")["pixel_values"]
    step = STEP * how.rescale * 255 / min(how.std)
    torch.testing.assert_close(load_images(pictures[0], how).images, expected, rtol=0, atol=step)
    assert (how.origin, how.undone) == ("the model's processor", ())
    assert processors.input_size(said) == (32, 32) or case == "a share"


@pytest.mark.parametrize(
    "said",
    [
        {"crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
        {"crop_pct": 0.875, "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3},
        {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
        {"crop_pct": 0.8, "crop_mode": "squash", "interpolation": "bicubic"},
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_it_equals_the_transform_of_timm(
    said: dict[str, Any], size: tuple[int, int], pictures: tuple[Path, list[Image.Image]]
) -> None:
    said = {"mean": (0.5,) * 3, "std": (0.5,) * 3, **said}
    transform = timm.data.create_transform((3, *size), is_training=False, **said)
    expected = torch.stack([transform(picture) for picture in pictures[1]])
    found = load_images(pictures[0], processors.preprocess_of(said, size, "here")).images
    if size[0] != size[1] and said.get("crop_mode") != "squash":  # timm rounds the longer side there
        assert (found - expected).abs().mean() < 0.1
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_it_equals_the_transforms_of_torchvision(pictures: tuple[Path, list[Image.Image]]) -> None:
    transforms = ImageClassification(crop_size=32, resize_size=37)
    how = processors.preprocess_of(transforms, (32, 32), "here")
    expected = torch.stack([transforms(picture) for picture in pictures[1]])
    torch.testing.assert_close(load_images(pictures[0], how).images, expected, rtol=0, atol=1e-6)


def test_a_processor_in_hand_is_read_too() -> None:
    found = processors.preprocess_of(transformers.ViTImageProcessor(**IMAGENET), (224, 224), "here")
    assert found.mean == (0.485, 0.456, 0.406)


def test_what_a_processor_leaves_out_its_class_says() -> None:
    said = processors.with_defaults({"image_processor_type": "CLIPImageProcessor"}, transformers)
    assert (said["size"]["shortest_edge"], said["resample"]) == (224, 3)
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": 30, "image_mean": [0.1, 0.2, 0.3]}
    how = processors.preprocess_of(processors.with_defaults(old, transformers), (30, 30), "here")
    assert (how.fit, how.interpolation, how.mean) == ("stretch", "bilinear", (0.1, 0.2, 0.3))
    for name in ("PreTrainedModel", "utils", "NoSuchProcessor"):  # no processors: nothing is taken of them
        assert processors.with_defaults({"image_processor_type": name}, transformers) == {
            "image_processor_type": name
        }


def test_what_is_not_done_is_reported() -> None:
    said = {"size": {"longest_edge": 1024}, "do_flip_channel_order": True, "do_pad": True, **IMAGENET}
    how = processors.preprocess_of(said, (32, 32), "here")
    assert how.undone == ("do_flip_channel_order", "the size {'longest_edge': 1024}")
    border = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_mode": "border"}
    assert processors.preprocess_of(border, (32, 32), "here").undone == ("the crop mode border",)


@pytest.mark.parametrize(
    "said",
    [
        {"image_mean": "abc"},
        {"image_std": [0, 0, 0]},
        {"image_mean": [0.5, 0.5]},
        {"resample": 17, "do_resize": True},
        {"size": {"height": -3, "width": 3}, "do_resize": True},
        {"rescale_factor": float("inf"), "do_resize": True},
        {"interpolation": "magic"},
        {"crop_pct": 7},
    ],
)
def test_what_cannot_be_meant(said: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="pictures"):
        processors.preprocess_of(said, (32, 32), "here")
