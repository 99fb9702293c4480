from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import prunec
from prunec.errors import UsageError
from prunec.ir.program import ProgramModule
from tests import tiny


class Trunk(nn.Module):
    """A ViT that yields its patches as a map."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = tiny.Embedding(side=16, prefix=0)
        self.blocks = nn.Sequential(*(tiny.Block() for _ in range(3)))
        self.stride = 4

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks(self.embed(pixels))
        return x.transpose(1, 2).reshape(x.shape[0], 16, 16, 16)


class Backbone(nn.Module):
    """One feature map, as torchvision's detectors take them; it reads an attribute of its body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out_channels = Trunk(), 16

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        assert self.body.stride == 4
        return OrderedDict({"0": self.body(pixels)})


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    torch.manual_seed(0)
    model = MaskRCNN(
        Backbone(),
        num_classes=3,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16,),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 0),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 3, 0),
        rpn_pre_nms_top_n_test=20,
        rpn_post_nms_top_n_test=20,
        box_score_thresh=0.0,
        box_nms_thresh=1.0,
        box_detections_per_img=5,
    )
    return model.eval()


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(*args, **kwargs)


def check_shares(model: nn.Module, fast: nn.Module) -> None:
    """The same class, names and tensors, and no module of the original in the copy."""
    assert type(fast) is type(model)
    old, new = model.state_dict(keep_vars=True), fast.state_dict(keep_vars=True)
    assert old.keys() == new.keys()
    assert all(old[name] is new[name] for name, _ in model.named_parameters())
    assert all(old[name].data_ptr() == new[name].data_ptr() for name in old)
    assert not set(model.modules()) & set(fast.modules())


# Torchvision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_a_mask_rcnn_that_keeps_everything_equals(
    detector: nn.Module, images: list[Tensor], count: int
) -> None:
    before = list(detector.modules())
    fast = prunec.transform(
        detector, tiny.policy(keep=1.0), submodule="backbone.body", example=(images[:count],)
    )
    expected = run(detector, images)
    for one, other in zip(run(fast, images), expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)
    assert list(detector.modules()) == before
    assert type(detector.backbone.body) is Trunk
    assert not detector.backbone.body._forward_pre_hooks
    assert isinstance(fast.backbone.body, ProgramModule)
    check_shares(detector, fast)


def test_a_mask_rcnn_with_fewer_tokens_gives_the_same_shapes(
    detector: nn.Module, images: list[Tensor]
) -> None:
    fast = prunec.transform(detector, tiny.policy(keep=0.6), submodule="backbone.body", example=(images,))
    expected = run(detector, images)
    for one, other in zip(run(fast, images), expected, strict=True):
        assert {name: value.shape for name, value in one.items()} == {
            name: value.shape for name, value in other.items()
        }
    assert "256 -> 154 tokens" in repr(fast.backbone.body)
    assert not torch.equal(*(run(model.backbone, torch.stack(images))["0"] for model in (detector, fast)))


# Hugging Face -----------------------------------------------------------------------------------------------

TINY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def yolos() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        **TINY, num_hidden_layers=3, image_size=[32, 48], patch_size=8, num_detection_tokens=5
    )
    return transformers.YolosForObjectDetection(config).eval()


def test_a_hugging_face_detector(yolos: nn.Module) -> None:
    pixels = torch.randn(3, 3, 32, 48)
    expected = run(yolos, pixels)
    same = prunec.transform(yolos, tiny.policy(keep=1.0), submodule="vit")  # the example is inferred
    found = run(same, pixels)
    assert type(found) is type(expected)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=1e-4, atol=1e-5)
    check_shares(yolos, same)
    fewer = run(prunec.transform(yolos, tiny.policy(keep=0.6), submodule="vit"), pixels)
    assert fewer.logits.shape == expected.logits.shape
    assert not torch.allclose(fewer.logits, expected.logits, atol=1e-5)


def test_the_encoder_of_a_detr_like_detector() -> None:
    """It sees tokens and positions, not pixels; the backbone and the decoder are left alone."""
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"]
    )
    sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in
             {"layers": 2, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
    config = transformers.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, d_model=16, num_queries=5, **sizes
    )
    model = transformers.DetrForObjectDetection(config).eval()
    example = {"pixel_values": torch.randn(2, 3, 160, 160)}
    same, fewer = (
        prunec.transform(model, tiny.policy(keep=keep), submodule="model.encoder", example=example)
        for keep in (1.0, 0.6)
    )
    pixels = torch.randn(3, 3, 160, 160)
    expected = run(model, pixels)
    torch.testing.assert_close(run(same, pixels).logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert run(fewer, pixels).pred_boxes.shape == expected.pred_boxes.shape
    assert "25 -> 15 tokens" in repr(fewer.model.encoder)
    check_shares(model, same)


# What cannot be ---------------------------------------------------------------------------------------------


class Pipeline(nn.Module):
    """Calls a part as often as it is told, on crops of the image."""

    def __init__(self, *sides: int) -> None:
        super().__init__()
        self.part, self.idle, self.flag = tiny.ViT(), tiny.ViT(), Flag()
        self.again, self.sides = self.part, sides

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.flag(on=True)
        return sum(self.part(pixels[..., :side, :side]) for side in self.sides)  # type: ignore[return-value]


class Flag(nn.Module):
    def forward(self, on: bool) -> bool:
        return on


@pytest.mark.parametrize(
    ("within", "what", "remedy"),
    [
        ("prat", "Pipeline has no part 'prat'; nearest: part", "named_modules"),
        ("", "Pipeline has no part ''", "named_modules"),
        ("idle", "the part is not called", "forward calls"),
        ("flag", "the part is called without a tensor", "inside or around"),
    ],
)
def test_a_part_that_cannot_be_captured_says_why(within: str, what: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        prunec.transform(Pipeline(20), tiny.policy(), submodule=within, example=tiny.pixels())
    assert remedy in (caught.value.remedy or "")


def test_a_part_that_is_called_with_different_shapes_warns() -> None:
    model = Pipeline(20, 20, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = prunec.transform(model, tiny.policy(), submodule="part", example=tiny.pixels())
    assert fast.part is fast.again  # one module at two places stays one
    model.part.forward = lambda pixels: pixels.mean()  # type: ignore[method-assign]
    model.sides = (20, 16)
    with (
        pytest.warns(UserWarning, match="part is called 2 times with 2 different shapes"),
        pytest.raises(prunec.PruneError),
    ):
        prunec.transform(model, tiny.policy(), submodule="part", example=tiny.pixels())


def test_a_model_in_training_mode_is_left_in_it() -> None:
    model = Pipeline(20).train()
    fast = prunec.transform(model, tiny.policy(keep=1.0), submodule="part", example=tiny.pixels())
    assert all(part.training for part in model.modules())
    assert not any(part.training for part in fast.modules())
    pixels = tiny.pixels(3)
    torch.testing.assert_close(run(fast, pixels), run(model, pixels))
