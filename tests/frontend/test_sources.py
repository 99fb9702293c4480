from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import transformers

from prunec.errors import SourceError, UsageError
from prunec.frontend import sources
from tests.frontend.models import VIT, Plain, check_runs


def test_shapes() -> None:
    source = sources.load("shapes")
    assert (source.spec, source.weights, source.notes) == ("shapes", "shipped", ())
    assert source.args[0].shape == (2, 3, 72, 72)
    check_runs(source)


def test_shapes_without_its_weights() -> None:
    source = sources.load("shapes", pretrained=False)
    assert source.weights == "random"
    check_runs(source)


MISTAKES: list[tuple[str, str, str]] = [
    (
        "vit_tny_patch16_224",
        "timm has no model 'vit_tny_patch16_224'; nearest: vit_tiny_patch16_224",
        "timm:ID",
    ),
    ("timm:zzzzzzzz", "timm has no model 'zzzzzzzz'", "timm.list_models()"),
    (
        f"{VIT}.r160_in2k",
        f"timm has no weights 'r160_in2k' for {VIT}; nearest: r160_in1k",
        "r160_in1k",
    ),
    ("google/vit", "'google/vit' does not say where to look", "hf:google/vit"),
    ("google/vit", "'google/vit' does not say where to look", "hf-hub:google/vit"),
    ("hf-hub:timm/not-cached", "the model cannot be read: ", "network"),
    ("local-dir:nowhere", "there is no such folder", "save_for_hf"),
    ("model.pt2", "there is no such file", "path"),
    ("some/model.pt", "there is no such file", "path"),
    ("model.pth", "there is no such file", "path"),
    ("model.safetensors", "there is no such file", "path"),
    ("hf:./nowhere", "there is no such folder", "save_pretrained"),
    ("hf:google/not-cached", "the model cannot be read: ", "network"),
    ("no_such_package:build", "'no_such_package' cannot be imported: No module named", "shapes"),
    (":build", "'' cannot be imported", "shapes"),
    ("math:sqr", "math has no function 'sqr'; nearest: sqrt", "no arguments"),
    ("math:pi", "math has no function 'pi'", "no arguments"),
    ("math:sqrt", "math:sqrt raised TypeError: ", "without arguments"),
    ("builtins:dict", "builtins:dict returned a dict, not an nn.Module", "the model itself"),
]


@pytest.mark.parametrize(("spec", "what", "remedy"), MISTAKES)
def test_a_source_that_cannot_be_read_says_why(spec: str, what: str, remedy: str) -> None:
    with pytest.raises(SourceError) as caught:
        sources.load(spec)
    assert caught.value.what.startswith(what)
    assert caught.value.where == f"source {spec!r}"
    assert remedy in (caught.value.remedy or "")


def test_a_folder_is_read_by_the_library_whose_configuration_lies_in_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = timm.create_model(VIT, num_classes=7)
    timm.models.save_for_hf(model, tmp_path / "mine", safe_serialization=True)
    for spec, full in (("./vit", "hf:./vit"), ("vit", "hf:./vit"), (str(folder), f"hf:{folder}")):
        source = sources.load(spec)
        assert (source.spec, type(source.module)) == (full, transformers.ViTForImageClassification)
    source = sources.load("./mine")
    assert (source.spec, source.weights) == ("local-dir:./mine", "pretrained")
    assert torch.equal(source.module.head.weight, model.head.weight)


def test_a_folder_that_is_no_models_says_what_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="there is no such folder or file"):
        sources.load("./nowhere")
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match=r"config.json cannot be read") as caught:
        sources.load("./out")
    assert "config.json and model.safetensors" in str(caught.value.remedy)
    (tmp_path / "out" / "prunec.json").write_text("{}")
    with pytest.raises(SourceError, match="artefact of prunec"):
        sources.load("./out")


def test_shapes_as_text_are_an_example(folder: Path) -> None:
    source = sources.from_module(Plain(), "3x4,3x2")
    assert [leaf.shape for leaf in source.args] == [(3, 4), (3, 2)]
    assert source.example == "3x4,3x2"
    source = sources.from_module(Plain().half(), "x=1x4")
    assert (source.kwargs["x"].shape, source.kwargs["x"].dtype) == ((2, 4), torch.float16)
    source = sources.load(VIT, pretrained=False, image_size=(64, 96))
    assert (source.args[0].shape, source.example) == ((2, 3, 64, 96), "2x3x64x96")
    assert sources.load(f"hf:{folder}").example == ""  # as the model says by itself


@pytest.mark.parametrize("text", ["", "2x", "axb", "2x3,x=2x3", "x=2,x=3", "x.safetensors", "2,,3"])
def test_texts_that_are_no_shapes(text: str) -> None:
    with pytest.raises(UsageError, match="are no shapes of inputs"):
        sources.from_module(Plain(), text)


@pytest.mark.parametrize("text", ["2x0x4", "2x3x99999x99999", "999x3x4x4"])
def test_shapes_without_bounds_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"the example has .* numbers"):
        sources.from_module(Plain(), text)
