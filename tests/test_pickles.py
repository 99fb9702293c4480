from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from prunec import pickles
from prunec.data.tiny_vit import classifier

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "image_size": 32, "patch_size": 8}  # fmt: skip


def detector() -> nn.Module:
    return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "shapes": classifier,
    "timm, an enumeration and a partial": lambda: timm.create_model("test_vit2"),
    "timm, rotary": lambda: (
        timm.create_model("vit_tiny_patch16_dinov3", depth=1)
        if "vit_tiny_patch16_dinov3" in timm.list_models()
        else timm.create_model("test_vit3")
    ),
    "transformers": lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL)),
    "attributes of tensors": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL)),
    "torch": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1),
    "plain helpers": detector,
    "a function": lambda: nn.ModuleList(
        [nn.TransformerEncoderLayer(8, 2, 16, activation=nn.functional.gelu)]
    ),
}


def read(content: Any, folder: Path, **options: Any) -> Any:
    torch.save(content, folder / "x.pt", **options)
    return pickles.read(folder / "x.pt")


@pytest.mark.parametrize("name", MODELS)
def test_a_module_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model = MODELS[name]().eval()
    found = read(model, tmp_path)
    assert type(found) is type(model)
    assert [(path, type(part)) for path, part in found.named_modules()] == [
        (path, type(part)) for path, part in model.named_modules()
    ]
    expected = model.state_dict()
    assert list(found.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    for one, other in zip(found.modules(), model.modules(), strict=True):
        assert vars(one).keys() == vars(other).keys()
    assert repr(found) == repr(model)


def test_its_outputs_are_the_same(tmp_path: Path) -> None:
    model = timm.create_model("test_vit").eval()
    pixels = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.equal(read(model, tmp_path)(pixels), model(pixels))


def test_what_was_shared_is_shared(tmp_path: Path) -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    model.append(model[0])
    found = read(model, tmp_path)
    assert found[1].weight is found[0].weight
    assert found[2] is found[0]


def test_whether_a_parameter_is_trained_is_kept(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    model.weight.no_decay = True  # type: ignore[assignment]
    found = read(model, tmp_path)
    assert (found.weight.requires_grad, found.bias.requires_grad) == (False, True)
    assert found.weight.no_decay is True


def test_a_partial_of_a_layer_is_read(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.norm = functools.partial(nn.LayerNorm, eps=1e-6)
    found = read(model, tmp_path).norm
    assert (found.func, found.args, found.keywords) == (nn.LayerNorm, (), {"eps": 1e-6})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_checkpoint_is_read(tmp_path: Path, zipped: bool) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    plain = {
        "epoch": 3,
        "seen": {1, 2},
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "raw": b"\x00",
    }
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **plain}
    found = read(content, tmp_path, _use_new_zipfile_serialization=zipped)
    assert found.keys() == content.keys()
    assert torch.equal(found["model"]["weight"], model.weight)
    assert {key: found[key] for key in plain} == plain
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], optimizer.state[model.weight]["exp_avg"])


@pytest.mark.parametrize(
    "kind", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
)
def test_numbers_of_all_kinds_are_read(tmp_path: Path, kind: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(kind)
    found = read({"a": tensor, "turned": tensor.t(), "none": tensor[:0]}, tmp_path)
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found["turned"], tensor.t())
    assert found["none"].shape == (0, 3)


def test_names_are_found_without_unpickling(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": nn.ReLU()}, tmp_path / "x.pt")
    assert {"torch._utils._rebuild_tensor_v2", "torch.nn.modules.activation.ReLU"} <= pickles.scan(
        tmp_path / "x.pt"
    )


def test_a_record_does_nothing() -> None:
    """Whatever a name stands for, reading makes an inert object of it."""
    record = pickles._record("os.system")
    made = record("touch ran")
    made.__setstate__({"a": 1})
    assert (made.name, made.args, made.state) == ("os.system", ("touch ran",), {"a": 1})
    assert not Path("ran").exists()


def test_an_unpickled_container_is_a_plain_one(tmp_path: Path) -> None:
    """A state dict may carry attributes of its own, which could take the place of its methods."""
    state = nn.Linear(2, 2).state_dict()
    state.move_to_end = "mine"  # type: ignore[assignment]
    found = read(state, tmp_path)
    assert vars(found) == {}
    assert list(found) == ["weight", "bias"]


def test_gradients_and_hooks_of_tensors_are_left_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    torch.save(weight, buffer)
    found = read({"weight": weight}, tmp_path)["weight"]
    assert isinstance(found, Tensor)
    assert found.grad is None
