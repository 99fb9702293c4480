from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from huggingface_hub import constants
from torch import Tensor, nn

from prunec import sources
from prunec.data import tiny_vit
from prunec.errors import SourceError
from prunec.sources import Source

VIT = "test_vit"  # the smallest that timm has


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub answers and nothing is cached, on every machine."""
    monkeypatch.setattr(sources, "_hub_answers", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny ViT of transformers, saved on disk."""
    path = tmp_path / "vit"
    transformers.ViTForImageClassification(vit_config()).save_pretrained(path)
    return path


def vit_config(**changes: Any) -> transformers.ViTConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTConfig(**{**sizes, "image_size": 32, "patch_size": 8, **changes})


class Plain(nn.Module):
    """A model that says nothing about its input."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.head(self.drop(x)) + self.shift


def check_runs(source: Source) -> None:
    """The source is in eval mode and its own example goes through it, two images at a time."""
    assert not any(part.training for part in source.module.modules())
    with torch.no_grad():
        out = source.module(*source.args, **source.kwargs)
    out = out if isinstance(out, Tensor) else out[0]
    assert out.shape[0] == 2


# The grammar ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [f"timm:{VIT}", VIT, f"{VIT}.r160_in1k"])
def test_timm_by_scheme_and_by_bare_name(spec: str) -> None:
    source = sources.load(spec, pretrained=False)
    assert type(source.module) is timm.models.VisionTransformer
    assert (source.spec, source.weights) == (spec, "random")
    assert source.args[0].shape == (2, 3, 160, 160)
    check_runs(source)


def test_no_network_means_random_weights_and_says_so() -> None:
    source = sources.load(VIT)
    assert source.weights == "random"
    (note,) = source.notes
    assert "the weights are random (they could not be loaded: " in note
    assert "accuracy figures would mean nothing" in note
    assert constants.HF_HUB_OFFLINE is False  # as it was before


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_answer_is_not_asked_again(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline: list[bool] = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        offline.append(constants.HF_HUB_OFFLINE)
        return tiny_vit.TinyViT()

    monkeypatch.setattr(sources, "_hub_answers", lambda: answers)
    monkeypatch.setattr(timm, "create_model", create_model)
    source = sources.load(VIT)
    assert (source.weights, source.notes, offline) == ("pretrained", (), [not answers])
    check_runs(source)


def test_a_hub_that_cannot_be_reached_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert sources._hub_answers() is False


def test_random_as_asked_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_hub_answers", lambda: pytest.fail("asked the hub"))
    assert sources.load(VIT, pretrained=False).notes == (
        "the weights are random (as asked); accuracy figures would mean nothing",
    )


def test_a_timm_model_that_has_no_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "list_pretrained", lambda pattern: [])
    assert sources.load(VIT).notes == (
        "the weights are random (timm has none for it); accuracy figures would mean nothing",
    )


def test_random_weights_are_the_same_every_time_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(1)
    first = sources.load(VIT, pretrained=False).module.head.weight
    after = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(sources.load(VIT, pretrained=False).module.head.weight, first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)


def test_a_folder_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model(VIT, img_size=96, num_classes=7).eval()
    timm.models.save_for_hf(model, tmp_path / "mine", model_args={"img_size": 96}, safe_serialization=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "_hub_answers", lambda: pytest.fail("asked the hub"))
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
    monkeypatch.setattr(sources, "_hub_answers", lambda: pytest.fail("asked the hub"))
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


def test_parameters_missing_from_a_checkpoint_are_told(folder: Path) -> None:
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


def test_shapes() -> None:
    source = sources.load("shapes")
    assert (source.spec, source.weights, source.notes) == ("shapes", "shipped", ())
    assert source.args[0].shape == (2, 3, 72, 72)
    check_runs(source)


def test_shapes_without_its_weights() -> None:
    source = sources.load("shapes", pretrained=False)
    assert source.weights == "random"
    check_runs(source)


def test_a_function_of_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "from prunec.data.tiny_vit import TinyViT\ndef build():\n    return TinyViT()\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    source = sources.load("my_models:build")
    assert (source.spec, source.weights) == ("my_models:build", "given")
    assert sys.path == path
    check_runs(source)


def test_a_module_with_a_mistake_in_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_models.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="'broken_models' cannot be imported: invalid syntax"):
        sources.load("broken_models:build")


# What cannot be read ----------------------------------------------------------------------------------------

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


def test_a_broken_configuration_is_a_source_error(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="the model cannot be read: "):
        sources.load(f"hf:{folder}")


def test_broken_weights_are_an_error_and_never_random(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(SourceError, match="the model cannot be read: "):
        sources.load(f"hf:{folder}")


@pytest.mark.parametrize(
    ("package", "extra", "spec"), [("timm", "timm", VIT), ("transformers", "hf", "hf:a/b")]
)
def test_a_missing_package_names_the_pip_line(
    package: str, extra: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError) as caught:
        sources.load(spec)
    assert caught.value.what == f"{package} is not installed"
    assert caught.value.remedy == f"pip install 'prunec[{extra}]'"


# Modules in hand --------------------------------------------------------------------------------------------


def test_a_module_in_eval_mode_is_taken_as_it_is() -> None:
    module = Plain().eval()
    source = sources.from_module(module, torch.zeros(3, 4))
    assert source.module is module
    assert (source.weights, source.notes) == ("given", ())


def test_a_module_in_training_mode_is_read_through_a_copy_that_shares_its_tensors() -> None:
    module = Plain()
    source = sources.from_module(module, torch.zeros(3, 4))
    assert all(part.training for part in module.modules())
    assert not any(part.training for part in source.module.modules())
    assert source.module.head.weight is module.head.weight
    assert source.module.shift is module.shift
    assert "training mode" in source.notes[0]


def test_one_part_in_training_mode_is_enough() -> None:
    module = Plain().eval()
    module.drop.train()
    assert not sources.from_module(module, torch.zeros(3, 4)).module.drop.training
    assert module.drop.training


def test_a_function_may_give_an_example_with_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_with_example.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(3, 2), torch.ones(5, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    source = sources.load("model_with_example:build")
    assert isinstance(source.module, torch.nn.Linear)
    assert [leaf.shape for leaf in source.args] == [torch.Size([5, 3])]


@pytest.mark.parametrize(
    "said",
    [
        {"mean": 5},
        {"mean": "abc"},
        {"std": (0.5, "a", 0.5)},
        {"std": (0.5, 0.0, 0.5)},
        {"mean": (float("nan"), 0, 0)},
        {"crop_pct": "large"},
        {"crop_pct": [1]},
    ],
)
def test_what_a_model_says_of_its_images_must_be_numbers(said: dict[str, Any]) -> None:
    source = sources.load("shapes")
    source.module.pretrained_cfg = said
    with pytest.raises(SourceError, match="the model's images have the mean"):
        source.normalisation()


@pytest.mark.parametrize("said", [None, 5, "abc", {}])
def test_a_model_may_say_nothing_of_its_images(said: Any) -> None:
    source = sources.load("shapes")
    source.module.pretrained_cfg = said
    assert source.normalisation() == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0)


@pytest.mark.parametrize("place", ["~nobody-at-all/x", "x" * 4000])
@pytest.mark.parametrize("spec", ["{}.safetensors", "{}.pt", "{}.pt2", "hf:{}", "local-dir:{}"])
def test_what_can_be_no_path(spec: str, place: str) -> None:
    with pytest.raises(SourceError, match="can be no path") as error:
        sources.load(spec.format(place))
    assert len(str(error.value)) < 1000
