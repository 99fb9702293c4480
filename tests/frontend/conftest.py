"""No network, and a folder of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from huggingface_hub import constants

from prunec.frontend import source_reading
from tests.frontend.models import vit_config


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub answers and nothing is cached, on every machine."""
    monkeypatch.setattr(source_reading, "hub_answers", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny ViT of transformers, saved on disk."""
    path = tmp_path / "vit"
    transformers.ViTForImageClassification(vit_config()).save_pretrained(path)
    return path
