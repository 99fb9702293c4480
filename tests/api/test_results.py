from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prunec
import prunec.measure.image_sets
from prunec.api.verbs import Result
from prunec.errors import UsageError
from prunec.frontend import sources
from tests.api.making import EVIT, images, optimize, vit


def test_the_manifest_is_all_that_is_needed(saved: tuple[Path, Result]) -> None:
    manifest = json.loads((saved[0] / "prunec.json").read_text(encoding="utf-8"))
    assert list(manifest) == [
        "format", "source", "weights", "target", "policy", "plan", "certificate", "submodule",
        "arch", "example", "precision",
        "versions", "spec", "portable", "files", "checksums", "digest",
    ]  # fmt: skip
    assert prunec.Policy.load(manifest["policy"]) == prunec.Policy.load("evit", **EVIT)
    assert manifest["plan"]["sites"][0]["leaves"] == 15
    assert manifest["versions"] == {"prunec": prunec.__version__, "torch": torch.__version__}
    weights = load_file(saved[0] / "model.safetensors")
    assert weights.keys() == vit().state_dict().keys()


def test_an_example_in_any_form_is_an_artefacts_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Source .*already"):
        optimize(sources.from_module(vit()), example="2x3x20x20")
    source = sources.load("timm:test_vit?dynamic_img_size=true", pretrained=False, image_size=(96, 96))
    folder = optimize(source, keep=0.5, blocks=(2,)).save(tmp_path / "out")
    assert json.loads((folder / "prunec.json").read_text(encoding="utf-8"))["example"] == "2x3x96x96"
    assert prunec.load(folder)(images(2, 96)).shape == (2, 1000)
    assert prunec.load(folder, rebuild=True)(images(2, 96)).shape == (2, 1000)
