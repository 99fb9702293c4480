from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunec.data import tiny_vit
from prunec.data.shapes import (
    CLASSIFICATION,
    HELD_OUT_SEEDS,
    NUM_CLASSES,
    images,
    normalize,
    scenes,
)
from prunec.data.tiny_vit import TinyViT, classifier
from prunec.errors import SourceError


@pytest.fixture(scope="module")
def model() -> TinyViT:
    return classifier()


def test_the_classifier_is_tiny(model: TinyViT) -> None:
    assert 1.0e6 < sum(p.numel() for p in model.parameters()) < 1.4e6
    assert tiny_vit.WEIGHTS.stat().st_size <= 4 * 2**20
    assert len(model.blocks) == 12
    assert model.pos_embed.shape[1] - 1 >= 64
    assert not model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())


@torch.no_grad()
def test_shipped_weights_read_held_out_scenes(model: TinyViT) -> None:
    image, label = images(CLASSIFICATION, HELD_OUT_SEEDS[1], 0, 512)
    accuracy = (model(normalize(image)).argmax(1) == label).float().mean()
    assert accuracy >= 0.9


@torch.no_grad()
def test_the_answer_rests_on_the_object(model: TinyViT) -> None:
    made = scenes(CLASSIFICATION, HELD_OUT_SEEDS[1], 0, 256)
    size = CLASSIFICATION.size
    place = torch.arange(size) + 0.5
    centre = (made.boxes[:, 0, :2] + made.boxes[:, 0, 2:]) / 2
    near = (place - centre[..., None]).abs() < CLASSIFICATION.radius[1] * size  # [B, x | y, size]
    window = near[:, 0, None, :] & near[:, 1, :, None]  # larger than every object, so it shows no outline
    hidden = made.image.masked_fill(window[:, None], 0.5)
    accuracy = (model(normalize(hidden)).argmax(1) == made.label).float().mean()
    assert accuracy < 0.4


def test_untrained_weights_know_nothing_and_missing_ones_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tiny_vit, "WEIGHTS", tmp_path / "absent.safetensors")
    with pytest.raises(SourceError, match="absent"):
        classifier()
    assert classifier(pretrained=False)(torch.zeros(2, 3, 72, 72)).shape == (2, NUM_CLASSES)


def test_weights_of_another_model_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"head.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    monkeypatch.setattr(tiny_vit, "WEIGHTS", tmp_path / "other.safetensors")
    with pytest.raises(SourceError, match="cannot be read"):
        classifier()


def test_it_exports_with_a_dynamic_batch(model: TinyViT) -> None:
    exported = torch.export.export(
        model, (torch.zeros(2, 3, 72, 72),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    image = normalize(images(CLASSIFICATION, HELD_OUT_SEEDS[1], 0, 5)[0])
    logits: Tensor = exported.module()(image)
    torch.testing.assert_close(logits, model(image), rtol=1e-4, atol=1e-4)
