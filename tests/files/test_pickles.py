from __future__ import annotations

from argparse import Namespace
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from prunec.data.tiny_vit import classifier
from prunec.files import pickles
from tests.files.reading import Stranger, read

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
