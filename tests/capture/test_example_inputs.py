from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from prunec.capture import example_inputs
from prunec.capture.example_inputs import infer, inputs
from prunec.data import tiny_vit
from prunec.errors import UsageError

VIT = "test_vit"  # the smallest that timm has


def vit_config(**changes: Any) -> transformers.ViTConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTConfig(**{**sizes, "image_size": 32, "patch_size": 8, **changes})


class Plain(nn.Module):
    """A model that says nothing about its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def inferred(module: nn.Module) -> Tensor:
    """The image that is inferred; the model takes it, and it has a batch of two."""
    args, kwargs = infer(module.eval())
    with torch.no_grad():
        module(*args, **kwargs)
    (image,) = (*args, *kwargs.values())
    assert image.shape[0] == 2
    return image


def test_examples_in_all_three_forms() -> None:
    x, y = torch.rand(2, 4), torch.rand(2, 4)
    assert inputs(x) == ((x,), {})
    assert inputs((x, y)) == inputs([x, y]) == ((x, y), {})
    assert inputs({"x": x, "y": None}) == ((), {"x": x, "y": None})
    assert inputs(transformers.BatchFeature({"x": x}))[1]["x"] is x


def test_a_batch_of_one_is_repeated() -> None:
    x, table = torch.rand(1, 4), torch.rand(5, 4)
    (doubled, other), _ = inputs((x, table))
    assert torch.equal(doubled, x.expand(2, 4))
    assert other is table
    assert inputs({"x": x})[1]["x"].shape == (2, 4)


def test_nested_inputs_are_inputs() -> None:
    x, scale = torch.rand(1, 4), torch.tensor(2.0)
    batch = {"x": x, "extra": {"scale": scale, "names": ["a"]}}
    for example, place in (((batch,), 0), ([batch], 0), ({"batch": batch}, "batch")):
        args, kwargs = inputs(example)
        (found,) = (*args, *kwargs.values())
        assert place in (0, *kwargs)
        assert found["x"].shape == (2, 4)
        assert found["extra"] == {"scale": scale, "names": ["a"]}
    args, _ = inputs(([x, x],))
    assert [each.shape for each in args[0]] == [(2, 4), (2, 4)]


def test_a_dataclass_is_to_be_registered() -> None:
    @dataclasses.dataclass
    class Batch:
        x: Tensor

    with pytest.raises(UsageError, match="an example must hold a tensor, got a tuple") as caught:
        inputs((Batch(torch.rand(2, 4)),))
    assert "torch.export.register_dataclass(Batch)" in (caught.value.remedy or "")


@pytest.mark.parametrize("batch", [2, 5])
def test_a_larger_batch_is_left_alone(batch: int) -> None:
    x, mask = torch.rand(batch, 4), torch.rand(1, 4)
    args, _ = inputs((x, mask))
    assert args[0] is x
    assert args[1] is mask


@pytest.mark.parametrize("example", ["cat.png", (), {}, (1, 2), 3])
def test_an_example_without_a_tensor_is_refused(example: Any) -> None:
    with pytest.raises(UsageError, match="an example must hold a tensor") as caught:
        inputs(example)
    assert (caught.value.where, bool(caught.value.remedy)) == ("example=", True)


def test_nothing_to_infer_from_asks_for_an_example() -> None:
    with pytest.raises(UsageError, match="no example input can be inferred") as caught:
        infer(Plain())
    assert caught.value.where == f"{__name__}.Plain"
    assert "example=" in (caught.value.remedy or "")


def test_a_text_model_has_no_image_to_infer() -> None:
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 10},
        vision_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    )
    with pytest.raises(UsageError, match="no example input can be inferred"):
        infer(transformers.CLIPModel(config))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (3, 160, 160)),
        ({"img_size": 96}, (3, 96, 96)),
        ({"in_chans": 1, "img_size": (64, 96)}, (1, 64, 96)),
    ],
)
def test_timm_models_know_their_input(options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    assert inferred(timm.create_model(VIT, **options)).shape == (2, *shape)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, (3, 32, 32)),
        ({"image_size": [32, 48]}, (3, 32, 48)),
        ({"image_size": (48, 32)}, (3, 48, 32)),
        ({"num_channels": 1}, (1, 32, 32)),
    ],
)
def test_hugging_face_models_know_their_input(changes: dict[str, Any], shape: tuple[int, int, int]) -> None:
    assert inferred(transformers.ViTModel(vit_config(**changes))).shape == (2, *shape)


def test_an_image_size_may_be_a_mapping() -> None:
    assert example_inputs._image_size({"height": 32, "width": 48}) == (3, 32, 48)
    assert example_inputs._image_size({"shortest_edge": 32}) is None


def test_the_vision_part_of_a_configuration_counts() -> None:
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.SiglipConfig(
        text_config={**tiny, "vocab_size": 10}, vision_config={**tiny, "image_size": 32, "patch_size": 8}
    )
    assert inferred(transformers.SiglipForImageClassification(config)).shape == (2, 3, 32, 32)


def test_an_image_size_of_the_model_itself_counts() -> None:
    assert inferred(tiny_vit.TinyViT()).shape == (2, 3, 72, 72)


def test_examples_follow_the_dtype_of_the_model_and_repeat() -> None:
    module = copy.deepcopy(tiny_vit.TinyViT()).to(torch.bfloat16)
    first, second = (inferred(module) for _ in range(2))
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, second)
