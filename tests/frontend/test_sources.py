from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

import prunec
from prunec.data import tiny_vit
from prunec.data.preprocess import Preprocess
from prunec.errors import SourceError, UsageError
from prunec.frontend import source_reading, sources
from prunec.frontend.sources import Source

VIT = "test_vit"  # the smallest that timm has


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

    monkeypatch.setattr(source_reading, "hub_answers", lambda: answers)
    monkeypatch.setattr(timm, "create_model", create_model)
    source = sources.load(VIT)
    assert (source.weights, source.notes, offline) == ("pretrained", (), [not answers])
    check_runs(source)


def test_a_hub_that_cannot_be_reached_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert source_reading.hub_answers() is False


def test_random_as_asked_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_reading, "hub_answers", lambda: pytest.fail("asked the hub"))
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
        {"mean": (0.5, 0.5)},
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
    with pytest.raises(SourceError, match="what the model says of its pictures cannot be meant") as caught:
        assert source.preprocess
    assert "--mean, --std and --crop" in str(caught.value.remedy)


@pytest.mark.parametrize("said", [None, 5, "abc", {}])
def test_a_model_may_say_nothing_of_its_images(said: Any) -> None:
    source = sources.load("shapes")
    source.module.pretrained_cfg = said
    assert source.preprocess == Preprocess((72, 72), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert source.preprocess.origin == ""


# Folders without a scheme, arguments, checkpoints of other sizes -----------------------------------------


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


def test_a_folder_of_the_name_of_a_model_of_timm_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / VIT).mkdir()
    assert sources.load(VIT, pretrained=False).spec == VIT


def test_a_folder_that_is_no_models_says_what_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="there is no such folder or file"):
        sources.load("./nowhere")
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match=r"that of no model: its config.json cannot be read") as caught:
        sources.load("./out")
    assert "config.json and model.safetensors" in str(caught.value.remedy)
    (tmp_path / "out" / "prunec.json").write_text("{}")
    with pytest.raises(SourceError, match="an artefact of prunec, not a model to start from"):
        sources.load("./out")


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
    with pytest.raises(SourceError, match=r"do not fit the model: size mismatch for head.weight") as caught:
        sources.load(str(path), arch=f"timm:{VIT}?num_classes=11")  # what is said is not overruled
    assert "timm:ID?num_classes=10" in str(caught.value.remedy)


def test_a_checkpoint_without_a_head(tmp_path: Path) -> None:
    save_file(timm.create_model(VIT, num_classes=0).state_dict(), tmp_path / "mine.safetensors")
    source = sources.load(str(tmp_path / "mine.safetensors"), arch=VIT)
    assert source.arch == f"{VIT}?num_classes=0"


# Examples and pictures --------------------------------------------------------------------------------------


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


def test_a_size_that_the_model_does_not_take_is_told(folder: Path) -> None:
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
    with pytest.raises(SourceError, match="what the model says of its pictures cannot be meant"):
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
    with pytest.raises(SourceError, match="what stands beside the weights about pictures holds no mapping"):
        sources.load(str(tmp_path / "plain.safetensors"), arch="shapes")


@pytest.mark.parametrize("place", ["~nobody-at-all/x", "x" * 4000])
@pytest.mark.parametrize("spec", ["{}.safetensors", "{}.pt", "{}.pt2", "hf:{}", "local-dir:{}"])
def test_what_can_be_no_path(spec: str, place: str) -> None:
    with pytest.raises(SourceError, match="can be no path") as error:
        sources.load(spec.format(place))
    assert len(str(error.value)) < 1000
