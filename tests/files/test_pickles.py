from __future__ import annotations

import functools
import io
from argparse import Namespace
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from prunec.data.tiny_vit import classifier
from prunec.files import pickles
from prunec.files.opcodes import Call, parse

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


def test_a_call_is_parsed_and_not_made() -> None:
    """Whatever a name stands for, reading makes an inert value of it."""
    value, _ = parse(
        io.BytesIO(b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch ran\x85R}X\x01\x00\x00\x00aK\x01sb.")
    )
    assert isinstance(value, Call)
    assert (value.name, value.args, value.state.pairs) == ("os.system", ("touch ran",), [("a", 1)])
    assert not Path("ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_torch_can_be_asked_for(tmp_path: Path, protocol: int) -> None:
    content = {"a": nn.Linear(2, 2), "b": [b"\x00", (1.5, None, True, -(10**12))]}
    found = read(content, tmp_path, pickle_protocol=protocol)
    assert torch.equal(found["a"].weight, content["a"].weight)  # type: ignore[union-attr]
    assert found["b"] == content["b"]


@dataclass
class Stranger:
    """Of a class that nobody trusts."""

    name: str


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_stands_beside_the_model_is_passed_over(tmp_path: Path, key: str, zipped: bool) -> None:
    """As training scripts write it: a namespace, a path, a number of NumPy's, an object of their own."""
    state = nn.Linear(2, 2).state_dict()
    beside = {"args": Namespace(lr=0.1, out=Path("a")), "best": np.float64(0.5), "own": Stranger("x"),
              "seen": defaultdict(int, {1: 2}), "counts": Counter("ab"), "list": deque([1])}  # fmt: skip
    torch.save({**beside, key: state}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = pickles.read(tmp_path / "x.pt", ("state_dict", "model"))
    assert list(found) == [key]
    assert all(torch.equal(found[key][name], tensor) for name, tensor in state.items())
    with pytest.raises(pickles.NotTrusted, match=r"wants .*argparse\.Namespace"):
        pickles.read(tmp_path / "x.pt")


def test_a_stranger_inside_the_model_is_not_passed_over(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1), "own": Stranger("x")}}, tmp_path / "x.pt")
    with pytest.raises(pickles.NotTrusted, match=r"wants .*Stranger"):
        pickles.read(tmp_path / "x.pt", ("model",))


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
