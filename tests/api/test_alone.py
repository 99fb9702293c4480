"""An artefact elsewhere, without what it was made from: the same outputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.exporters import ExportedModel

import prunec
from tests.api.making import optimize

#: Runs the artefact where the libraries that models come from cannot be imported: first without prunec.
ALONE = """
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Missing())
folder = sys.argv[1]
import torch
from safetensors.torch import load_file, save_file
pixels = load_file(f"{folder}/example.safetensors")["input.0"]

model = torch.export.load(f"{folder}/model.pt2").module()
with torch.no_grad():
    found = {"torch": model(pixel_values=torch.cat([pixels, pixels, pixels]))["logits"]}
assert BLOCKED.isdisjoint(name.partition(".")[0] for name in sys.modules)
BLOCKED.remove("prunec")

import prunec
model = prunec.load(folder, target="eager")
with torch.no_grad():
    found["prunec"] = model(pixel_values=torch.cat([pixels, pixels, pixels])).logits
assert BLOCKED.isdisjoint(name.partition(".")[0] for name in sys.modules)
save_file(found, sys.argv[2])
"""
BLOCKED = {"timm", "transformers", "torchvision", "prunec"}


def tiny_vit() -> transformers.ViTForImageClassification:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32,
        patch_size=8, id2label={0: "cat", 1: "dog", 2: "bird"}, label2id={"cat": 0, "dog": 1, "bird": 2},
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


def run_alone(*arguments: Path, cwd: Path) -> None:
    path = str(Path(prunec.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {BLOCKED}\n{ALONE}", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path}, cwd=cwd, check=True, timeout=300,
    )  # fmt: skip


def test_an_artefact_needs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    tiny_vit().save_pretrained("checkpoint")
    result = optimize("hf:./checkpoint", keep=0.5, blocks=(0,))
    folder = tmp_path / "moved"
    result.save("out")
    manifest = prunec_json(Path("out"))
    assert manifest["source"] == f"hf:{tmp_path / 'work' / 'checkpoint'}"  # found again from anywhere
    assert json.loads(Path("out/labels.json").read_text(encoding="utf-8")) == ["cat", "dog", "bird"]
    rebuilt = prunec.load("out", rebuild=True)
    shutil.move("out", folder)
    shutil.rmtree("checkpoint")
    pixels = load_file(folder / "example.safetensors")["input.0"]
    with torch.no_grad():
        expected = result.module(pixel_values=torch.cat([pixels] * 3)).logits
        assert torch.allclose(rebuilt(pixel_values=pixels).logits, expected[: len(pixels)], atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ExportedModel.from_pretrained(folder, trust_remote_code=True)
    found = theirs(pixel_values=torch.cat([pixels] * 3))["logits"]
    assert torch.allclose(found, expected, atol=1e-6)  # transformers runs it too
    (tmp_path / "elsewhere").mkdir()
    run_alone(folder, tmp_path / "found.safetensors", cwd=tmp_path / "elsewhere")
    outputs = load_file(tmp_path / "found.safetensors")
    assert set(outputs) == {"torch", "prunec"}
    assert all(torch.allclose(logits, expected, atol=1e-6) for logits in outputs.values())


def prunec_json(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "prunec.json").read_text(encoding="utf-8")))
