from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from prunec.data import tiny_vit
from prunec.errors import SourceError, UsageError
from prunec.frontend import source_reading, sources
from tests.frontend.models import VIT, check_runs


@pytest.mark.parametrize("spec", [f"timm:{VIT}", VIT, f"{VIT}.r160_in1k"])
def test_timm_by_scheme_and_by_bare_name(spec: str) -> None:
    source = sources.load(spec, pretrained=False)
    assert type(source.module) is timm.models.VisionTransformer
    assert (source.spec, source.weights) == (spec, "random")
    assert source.args[0].shape == (2, 3, 160, 160)
    check_runs(source)


def test_a_timm_model_that_has_no_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "list_pretrained", lambda pattern: [])
    assert sources.load(VIT).notes == (
        "the weights are random (timm has none for it); accuracy figures would mean nothing",
    )


def test_a_folder_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model(VIT, img_size=96, num_classes=7).eval()
    timm.models.save_for_hf(model, tmp_path / "mine", model_args={"img_size": 96}, safe_serialization=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source_reading, "hub_answers", lambda: pytest.fail("asked the hub"))
    source = sources.load("local-dir:mine")
    assert (source.spec, source.weights, source.notes) == ("local-dir:mine", "pretrained", ())
    assert source.args[0].shape == (2, 3, 96, 96)
    assert torch.equal(source.module.head.weight, model.head.weight)
    check_runs(source)
    assert sources.load("local-dir:mine", pretrained=False).weights == "random"


def test_a_model_of_timm_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return tiny_vit.TinyViT()

    said: dict[str, Any] = {"img_size": 64}
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", lambda name: ({}, "test_vit", said))
    monkeypatch.setattr(timm, "create_model", create_model)
    source = sources.load("hf-hub:me/mine")
    assert (source.spec, source.weights, asked) == (
        "hf-hub:me/mine",
        "pretrained",
        [("hf-hub:me/mine", True)],
    )
    said["pretrained_cfg_overlay"] = {"file": "other.pth"}
    with pytest.raises(SourceError, match="where weights are: pretrained_cfg_overlay"):
        sources.load("hf-hub:me/mine")
    assert len(asked) == 1


def test_a_folder_of_the_name_of_a_model_of_timm_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / VIT).mkdir()
    assert sources.load(VIT, pretrained=False).spec == VIT


def test_a_file_may_not_name_a_folder_of_timm_without_its_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    timm.models.save_for_hf(timm.create_model(VIT), tmp_path / "mine", safe_serialization=True)
    with pytest.raises(SourceError, match=r"the file names the source 'mine'.*may run code"):
        sources.load_named("mine", "plan.yaml")


def test_arguments_of_timm() -> None:
    source = sources.load(f"timm:{VIT}?num_classes=10&img_size=64x96&global_pool=avg", pretrained=False)
    assert (source.module.num_classes, source.module.global_pool) == (10, "avg")
    assert source.args[0].shape == (2, 3, 64, 96)
    assert not sources.runs_code(source.spec)
    assert sources.load(f"{VIT}?in_chans=1", pretrained=False).args[0].shape == (2, 1, 160, 160)


def test_a_new_head_on_pretrained_weights_is_random_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **given: real(name, **given))
    assert sources.load(f"timm:{VIT}?num_classes=10").notes == (
        "the head of 10 classes is random: the pretrained weights have 1000",
    )
    assert sources.load(f"timm:{VIT}?num_classes=1000").notes == ()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("num_clases=10", "'num_clases' is none that is taken; nearest: num_classes"),
        ("checkpoint_path=evil.pth", "'checkpoint_path' is none that is taken"),
        ("pretrained_cfg_overlay=x", "'pretrained_cfg_overlay' is none that is taken"),
        ("num_classes=__import__('os')", "num_classes cannot be .*: it is a whole number up to 1000000"),
        ("num_classes=-1", "num_classes cannot be '-1'"),
        ("num_classes", "num_classes cannot be ''"),
        ("num_classes=1&num_classes=2", "'num_classes' is given twice"),
        ("img_size=1x2x3", "img_size cannot be '1x2x3': it is a number of pixels such as 224"),
        ("global_pool=evil", "global_pool cannot be 'evil': it is one of avg"),
        ("dynamic_img_size=1", "dynamic_img_size cannot be '1': it is true or false"),
    ],
)
def test_arguments_that_are_none(query: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", None)
    with pytest.raises(UsageError, match=words):
        sources.load(f"timm:{VIT}?{query}")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_of_other_sizes_is_read_as_what_it_is(tmp_path: Path, suffix: str) -> None:
    model = timm.create_model(VIT, num_classes=10, img_size=96, in_chans=1).eval()
    path = tmp_path / f"mine{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    source = sources.load(str(path), arch=f"timm:{VIT}")
    arch = f"timm:{VIT}?num_classes=10&in_chans=1&img_size=96x96"
    assert (source.arch, source.notes) == (arch, (f"the weights are of {arch}, by their sizes",))
    assert torch.equal(source.module.head.weight, model.head.weight)
    assert source.args[0].shape == (2, 1, 96, 96)
    assert sources.load(str(path), arch=arch).notes == ()
    with pytest.raises(SourceError, match=r"size mismatch for head.weight") as caught:
        sources.load(str(path), arch=f"timm:{VIT}?num_classes=11")  # what is said is not overruled
    assert "timm:ID?num_classes=10" in str(caught.value.remedy)


def test_a_checkpoint_without_a_head(tmp_path: Path) -> None:
    save_file(timm.create_model(VIT, num_classes=0).state_dict(), tmp_path / "mine.safetensors")
    source = sources.load(str(tmp_path / "mine.safetensors"), arch=VIT)
    assert source.arch == f"{VIT}?num_classes=0"


def test_weights_may_say_how_pictures_are_normalised(tmp_path: Path) -> None:
    state = sources.load("shapes").module.state_dict()
    said = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.5}
    save_file(state, tmp_path / "own.safetensors", {"pretrained_cfg": json.dumps(said)})
    found = sources.load(str(tmp_path / "own.safetensors"), arch="shapes").preprocess
    assert (found.mean, found.scaled) == ((0.1, 0.2, 0.3), (144, 144))
    save_file(state, tmp_path / "plain.safetensors")
    assert sources.load(str(tmp_path / "plain.safetensors"), arch="shapes").preprocess.origin == ""
    transformers.ViTImageProcessor(image_mean=[0.7, 0.8, 0.9]).save_pretrained(tmp_path)
    beside = sources.load(str(tmp_path / "plain.safetensors"), arch="shapes").preprocess
    assert (beside.mean, beside.size) == ((0.7, 0.8, 0.9), (72, 72))
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(SourceError, match="holds no mapping"):
        sources.load(str(tmp_path / "plain.safetensors"), arch="shapes")
