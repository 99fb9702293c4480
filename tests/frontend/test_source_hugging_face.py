from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import prunec
from prunec.errors import SourceError, UsageError
from prunec.frontend import source_reading, sources
from tests.frontend.models import check_runs, vit_config


def test_a_saved_folder(folder: Path) -> None:
    source = sources.load(f"hf:{folder}")
    assert type(source.module) is transformers.ViTForImageClassification
    assert (source.weights, source.notes, source.args) == ("pretrained", (), ())
    assert source.kwargs["pixel_values"].shape == (2, 3, 32, 32)
    check_runs(source)


def test_a_saved_folder_by_a_relative_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert sources.load("hf:./vit").weights == "pretrained"


def test_a_saved_folder_never_asks_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_reading, "hub_answers", lambda: pytest.fail("asked the hub"))
    assert sources.load(f"hf:{folder}").weights == "pretrained"


def test_a_folder_without_weights_gives_a_random_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    source = sources.load(f"hf:{folder}")
    assert source.weights == "random"
    assert "accuracy figures would mean nothing" in source.notes[0]
    check_runs(source)


def test_a_folder_can_be_built_without_its_weights(folder: Path) -> None:
    source = sources.load(f"hf:{folder}", pretrained=False)
    assert (type(source.module), source.weights) == (transformers.ViTForImageClassification, "random")


@pytest.mark.parametrize("architectures", [None, ["NoSuchModel"]])
def test_an_architecture_that_is_not_named_becomes_the_base_model(
    tmp_path: Path, architectures: list[str] | None
) -> None:
    model = transformers.ViTModel(vit_config())
    model.save_pretrained(tmp_path / "vit")
    config = vit_config(architectures=architectures)
    config.save_pretrained(tmp_path / "vit")
    source = sources.load(f"hf:{tmp_path / 'vit'}")
    assert (type(source.module), source.weights) == (transformers.ViTModel, "pretrained")


def test_parameters_missing_from_a_checkpoint_are_reported(folder: Path) -> None:
    config = vit_config(architectures=["ViTModel"])  # whose pooler the classifier does not have
    config.save_pretrained(folder)
    source = sources.load(f"hf:{folder}")
    assert source.weights == "pretrained"
    assert source.notes == (
        "2 parameters are not in the checkpoint and are random: pooler.dense.bias, pooler.dense.weight",
    )


def test_half_precision_checkpoints_compute_in_single(tmp_path: Path) -> None:
    transformers.ViTForImageClassification(vit_config()).half().save_pretrained(tmp_path / "half")
    source = sources.load(f"hf:{tmp_path / 'half'}")
    assert {p.dtype for p in source.module.parameters()} == {torch.float32}
    check_runs(source)


def test_a_broken_configuration_is_a_source_error(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="the model cannot be read: "):
        sources.load(f"hf:{folder}")


def test_broken_weights_are_an_error_and_never_random(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(SourceError, match="the model cannot be read: "):
        sources.load(f"hf:{folder}")


def dinov2(folder: Path, size: int) -> Path:
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    transformers.Dinov2Model(transformers.Dinov2Config(**tiny, image_size=size)).save_pretrained(folder)
    return folder


def test_the_processor_says_the_size_of_the_input(tmp_path: Path) -> None:
    folder = dinov2(tmp_path / "dino", 56)  # its position embedding is scaled to what comes
    assert sources.load(f"hf:{folder}").kwargs["pixel_values"].shape == (2, 3, 56, 56)
    transformers.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    source = sources.load(f"hf:{folder}")
    assert source.kwargs["pixel_values"].shape == (2, 3, 32, 32)
    assert (source.example, source.notes) == ("pixel_values=2x3x32x32", ())
    assert (source.preprocess.scaled, source.preprocess.size) == ((40, 40), (32, 32))
    larger = sources.load(f"hf:{folder}", image_size=(64, 64))
    assert (larger.preprocess.scaled, larger.preprocess.size) == ((80, 80), (64, 64))


def test_a_size_that_the_model_does_not_take_is_reported(folder: Path) -> None:
    transformers.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(folder)
    source = sources.load(f"hf:{folder}")
    assert source.kwargs["pixel_values"].shape == (2, 3, 32, 32)
    (note,) = source.notes
    assert note.startswith(
        "its processor makes pictures of 48 x 48, which the model does not take, and is read at 32 x 32: "
    )


def test_a_processor_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "models--me--dino"
    dinov2(place / "snapshots" / "abc", 56)
    transformers.ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(
        place / "snapshots" / "abc"
    )
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    source = sources.load("hf:me/dino")
    assert source.weights == "pretrained"
    assert source.kwargs["pixel_values"].shape == (2, 3, 24, 24)


def test_a_processor_that_cannot_be_read(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"preprocessor_config\.json is not valid JSON"):
        sources.load(f"hf:{folder}")
    (folder / "preprocessor_config.json").write_text('{"image_mean": ["a"], "size": 32}')
    with pytest.raises(SourceError, match="pictures"):
        assert sources.load(f"hf:{folder}").preprocess


def test_the_caller_knows_better(folder: Path) -> None:
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    own = sources.load(f"hf:{folder}").preprocess
    changed = sources.load(f"hf:{folder}", preprocess={"mean": (0, 0, 0), "crop": 0.5}).preprocess
    assert (changed.mean, changed.std, changed.scaled, changed.fit) == (
        (0, 0, 0),
        own.std,
        (64, 64),
        "stretch",
    )
    assert changed.origin == "the caller, else the model's processor"
    whole = prunec.Preprocess(32, std=0.25)
    assert sources.load(f"hf:{folder}", preprocess=whole).preprocess == whole
    with pytest.raises(UsageError, match="preprocessing has no 'men'; nearest: mean"):
        assert sources.load(f"hf:{folder}", preprocess={"men": 1}).preprocess
    with pytest.raises(UsageError, match="a list says nothing of pictures"):
        assert sources.load(f"hf:{folder}", preprocess=[1]).preprocess
