"""What a transformed model says of itself, and what it takes: as the model of Hugging Face or timm does."""

from __future__ import annotations

import copy
import inspect
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import prunec
from tests.tiny import ViT, pixels


def vit(**changes: Any) -> transformers.PreTrainedModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **{**sizes, "image_size": 32, "patch_size": 8, "num_labels": 5, **changes}
    )
    return transformers.ViTForImageClassification(config).eval()


def transformed(model: nn.Module, **options: Any) -> nn.Module:
    return prunec.transform(model, prunec.Policy.load("evit", keep=0.5, blocks=(1,)), **options)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return vit()


@pytest.fixture(scope="module")
def fast(model: nn.Module) -> nn.Module:
    return transformed(model)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# --- attributes ---------------------------------------------------------------------------------


def test_the_signature_is_the_models(model: nn.Module, fast: nn.Module) -> None:
    for module in (fast, copy.deepcopy(fast)):
        assert inspect.signature(module.forward) == inspect.signature(model.forward)
        assert inspect.signature(module) == inspect.signature(model)


@pytest.mark.parametrize(
    "name", ["config", "device", "dtype", "num_labels", "main_input_name", "name_or_path"]
)
def test_what_the_model_says_it_says_too(model: nn.Module, fast: nn.Module, name: str) -> None:
    assert getattr(fast, name) == getattr(model, name)


def test_timm_models_keep_their_configuration_and_get_no_other() -> None:
    model = timm.create_model("test_vit", img_size=64, num_classes=7).eval()
    fast = prunec.transform(model, prunec.Policy.load("evit", keep=0.5, blocks=(1,)))
    assert (fast.num_classes, fast.pretrained_cfg) == (7, model.pretrained_cfg)
    assert fast.default_cfg is model.default_cfg
    assert not hasattr(fast, "config")
    assert not hasattr(fast, "device")
    with pytest.raises(
        AttributeError, match="only the forward of VisionTransformer was captured, not its forw"
    ):
        fast.forward_features(torch.zeros(1, 3, 64, 64))
    with pytest.raises(AttributeError, match="'VisionTransformer' object has no attribute 'nonsense'"):
        fast.nonsense  # noqa: B018


class Talkative(ViT):
    kind = "talkative"

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self._own, self.program, self.act = [4, 4], "mine", "theirs", torch.relu

    @property
    def twice(self) -> int:
        return 2 * self.sizes[0]

    @cached_property
    def rows(self) -> int:
        return len(self.head.weight)


def test_attributes_of_all_kinds() -> None:
    model = Talkative().eval()
    fast = prunec.transform(model, prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=pixels())
    assert (fast.kind, fast.twice, fast.rows) == ("talkative", 8, 7)
    assert fast.sizes is model.sizes
    assert not hasattr(fast, "_own")
    assert not hasattr(fast, "act")
    assert fast.program.plan is not None  # what prunec keeps there stays
    twin = copy.deepcopy(fast)
    twin.sizes.append(5)
    assert (twin.sizes, fast.sizes) == ([4, 4, 5], [4, 4])


def test_properties_speak_of_the_weights_that_there_are(model: nn.Module, fast: nn.Module) -> None:
    twin = copy.deepcopy(fast).double()
    assert (twin.dtype, fast.dtype, model.dtype) == (torch.float64, torch.float32, torch.float32)
    assert twin.config is not fast.config
    assert fast.config is model.config


def test_a_pipeline_of_transformers_runs(fast: nn.Module, images: Tensor) -> None:
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    numbers = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(numbers)
    classify = transformers.pipeline("image-classification", model=fast, image_processor=processor)
    found = {entry["label"]: entry["score"] for entry in classify(picture)}
    with torch.no_grad():
        expected = fast(**processor(picture, return_tensors="pt")).logits.softmax(-1)[0]
    assert found == pytest.approx({f"LABEL_{place}": float(score) for place, score in enumerate(expected)})


def test_what_optimize_and_load_return_says_the_same(
    tmp_path: Path, model: nn.Module, images: Tensor
) -> None:
    result = prunec.optimize(
        model,
        prunec.Policy.load("evit", keep=0.5, blocks=(1,)),
        measure=prunec.Measure(target="eager", batch=2, rounds=1),
    )
    for module in (result.module, prunec.load(result.save(tmp_path / "out"), model=vit())):
        assert inspect.signature(module.forward) == inspect.signature(model.forward)
        assert (module.config.num_labels, module.device, module.main_input_name) == (
            5,
            torch.device("cpu"),
            "pixel_values",
        )
        found = module(images, output_hidden_states=False)
        assert isinstance(found, type(model(images)))
        with pytest.raises(prunec.UsageError, match="'labels' was not given at capture"):
            module(images, labels=torch.zeros(3, dtype=torch.long))


# --- keywords -----------------------------------------------------------------------------------

USUAL = [
    {"return_dict": True},
    {"return_dict": None},
    {"output_hidden_states": False},
    {"output_attentions": False},
    {"output_attentions": None, "labels": None},
]


@pytest.mark.parametrize("options", USUAL)
def test_options_as_the_configuration_has_them_are_as_good_as_none(
    fast: nn.Module, images: Tensor, options: dict[str, Any]
) -> None:
    assert torch.equal(fast(images, **options).logits, fast(images).logits)


@pytest.mark.parametrize("options", [{"return_dict": False}, {"output_hidden_states": True}])
def test_other_options_are_refused_with_the_example_that_would_do(
    fast: nn.Module, images: Tensor, options: dict[str, Any]
) -> None:
    with pytest.raises(prunec.UsageError, match="was not given at capture") as caught:
        fast(images, **options)
    (name,) = options
    assert f"example={{'pixel_values': ..., {name!r}: ...}}" in (caught.value.remedy or "")


def test_an_example_with_that_option_does(model: nn.Module, images: Tensor) -> None:
    more = transformed(model, example={"pixel_values": images, "output_hidden_states": True})
    assert len(more(images, output_hidden_states=True).hidden_states) == 3
    with pytest.raises(prunec.UsageError, match="missing input 'output_hidden_states'"):
        more(images)
    usual = transformed(model, example={"pixel_values": images, "output_hidden_states": False})
    for options in ({}, {"output_hidden_states": None}, {"output_hidden_states": False}):
        assert usual(images, **options).hidden_states is None


def test_a_configuration_that_says_otherwise_counts(images: Tensor) -> None:
    fast = transformed(vit(output_hidden_states=True))
    assert len(fast(images, output_hidden_states=True).hidden_states) == 3
    with pytest.raises(prunec.UsageError, match="'output_hidden_states' was not given at capture"):
        fast(images, output_hidden_states=False)


def test_a_keyword_that_forward_does_not_have_is_none_of_its_inputs() -> None:
    fast = prunec.transform(ViT().eval(), prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=pixels())
    for value in (None, 3):
        with pytest.raises(prunec.UsageError, match="forward has no input 'pixel'; nearest: pixels"):
            fast(pixels(), pixel=value)


def test_labels_of_the_example_give_the_loss(model: nn.Module, images: Tensor) -> None:
    labels = torch.tensor([4, 0, 2])
    fast = transformed(model, example={"pixel_values": images, "labels": labels})
    found = fast(images[:2], labels=labels[:2])
    torch.testing.assert_close(found.loss, nn.functional.cross_entropy(found.logits, labels[:2]))
    assert fast.program.stages[-1].name == "certify"
    assert ", own counts: " in fast.program.stages[-1].notes[0]
    with pytest.raises(prunec.UsageError, match="missing input 'labels'"):
        fast(images)
