from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

import pytest
import timm.layers
import timm.models
import torch
import torchvision.models
import torchvision.ops
import transformers.models
from torch import nn
from transformers import PretrainedConfig

from prunec.data import tiny_vit
from prunec.files import trust

#: Named one by one, and so looked at one by one.
NAMED_CLASSES = {
    "timm.models._features.FeatureInfo",
    "transformers.generation.configuration_utils.GenerationConfig",
    "torchvision.models.detection._utils.BalancedPositiveNegativeSampler",
    "torchvision.models.detection._utils.BoxCoder",
    "torchvision.models.detection._utils.Matcher",
}
PACKAGES = (torch.nn.modules, timm.layers, timm.models, torchvision.models, torchvision.ops)
#: Of transformers all configurations (a class that looks names up hid there), and some models.
FAMILIES = ("vit", "dinov2", "clip", "siglip", "detr", "yolos", "swin", "beit", "dpt", "sam", "auto")


def modules() -> Iterator[str]:
    """The names of the modules that trusted names may stand in."""
    for package in PACKAGES:
        yield from (
            found.name
            for found in pkgutil.walk_packages(
                package.__path__, f"{package.__name__}.", onerror=lambda _: None
            )
        )
    for folder in sorted(Path(transformers.models.__path__[0]).iterdir()):
        for file in sorted(folder.glob("configuration_*.py")):
            yield f"transformers.models.{folder.name}.{file.stem}"
    for family in FAMILIES:
        for file in Path(transformers.models.__path__[0], family).glob("*.py"):
            if not file.stem.startswith(("convert", "tokenization", "image_processing", "modular")):
                yield f"transformers.models.{family}.{file.stem}"


@pytest.fixture(scope="module")
def trusted() -> dict[str, tuple[str, object]]:
    """Everything in these modules that is trusted, by name."""
    found = {}
    for module in modules():
        try:
            names = vars(importlib.import_module(module))
        except Exception:  # noqa: BLE001 - a part of a library that needs another library
            continue
        for name in list(names):
            if (what := trust.find(f"{module}.{name}")) is not None:
                found[f"{module}.{name}"] = what
    return found


def test_the_walk_meets_what_models_are_made_of(trusted: dict[str, tuple[str, object]]) -> None:
    kinds = [kind for kind, _ in trusted.values()]
    assert kinds.count("module") > 1000
    assert kinds.count("config") > 300
    assert trusted["timm.layers.mlp.Mlp"] == ("module", timm.layers.Mlp)


def test_nothing_is_trusted_but_modules_configurations_members_and_what_is_named(
    trusted: dict[str, tuple[str, object]],
) -> None:
    bases = {"module": nn.Module, "config": PretrainedConfig, "enum": Enum}
    for name, (kind, found) in trusted.items():
        if name in NAMED_CLASSES or name in trust.FUNCTIONS:
            continue
        assert isinstance(found, type), name
        assert issubclass(found, bases[kind]), name
        assert found.__module__ == name.rpartition(".")[0]


def test_no_trusted_class_does_anything_while_its_state_is_read(
    trusted: dict[str, tuple[str, object]],
) -> None:
    """Those that read a state in a way of their own are PyTorch's; no configuration is a mapping."""
    for name, (kind, found) in trusted.items():
        if kind == "module":
            assert isinstance(found, type)
            owner = next(base for base in found.__mro__ if "__setstate__" in vars(base))
            assert owner.__module__.startswith("torch.nn.modules."), name
        if kind in ("config", "plain"):
            assert isinstance(found, type)
            assert not issubclass(found, Mapping | nn.Module), name
            assert "__setstate__" not in dir(found), name
            assert found.__new__ is object.__new__, name


@pytest.mark.parametrize("name", sorted(trust.PLAIN_CLASSES | trust.FUNCTIONS))
def test_what_is_named_is_there(name: str) -> None:
    assert trust.find(name) is not None


def test_what_is_named_is_what_was_looked_at() -> None:
    assert trust.PLAIN_CLASSES == NAMED_CLASSES


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("torch.nn.modules.linear.Linear", "module"),
        ("timm.layers.format.Format", "enum"),
        ("transformers.models.vit.configuration_vit.ViTConfig", "config"),
        ("transformers.models.vit.modeling_vit.ViTModel", "module"),
        ("torch.nn.functional.gelu", "function"),
        ("prunec.data.tiny_vit.TinyViT", "module"),
        # near-misses
        ("transformers.models.auto.configuration_auto._LazyConfigMapping", None),
        ("transformers.models.auto.configuration_auto.AutoConfig", None),
        ("transformers.models.auto.auto_factory._LazyAutoMapping", None),
        ("transformers.models.vit.convert_vit_timm_to_pytorch.main", None),
        ("transformers.models.clip.modeling_clip.CLIPOutput", None),  # a mapping
        ("transformers.models.clip.tokenization_clip.CLIPTokenizer", None),
        ("torch.fx.graph_module.GraphModule", None),
        ("torch.jit._script.ScriptModule", None),
        ("torch.nn.functional.interpolate", None),
        ("torch.nn.modules.module.Module.forward", None),
        ("torch.hub.load", None),
        ("timm.models._factory.create_model", None),
        (
            "timm.layers.ml_decoder.TransformerDecoderLayerOptimal",
            None,
        ),  # reads its state in a way of its own
        ("timm.models._hub.torch", None),  # what a module imported is not its own
        ("timm.layers.mlp.partial", None),
        ("timm.models.no_such_file.Model", None),
        ("prunec.data.images.Path", None),
        ("builtins.eval", None),
        ("os.system", None),
        ("", None),
        ("Linear", None),
    ],
)
def test_what_is_trusted(name: str, kind: str | None) -> None:
    found = trust.find(name)
    assert (found and found[0]) == kind


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torch.nn.modules.normalization.LayerNorm", True),
        ("timm.layers.mlp.Mlp", True),
        ("timm.models.vision_transformer.VisionTransformer", False),
        ("prunec.data.tiny_vit.TinyViT", False),
        ("transformers.models.vit.configuration_vit.ViTConfig", False),
    ],
)
def test_a_class_may_be_held_where_making_it_loads_nothing(name: str, layer: bool) -> None:
    assert trust.is_layer(name) is layer


def test_a_package_beside_the_file_is_not_taken_for_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `python -m prunec`, which looks in the folder that it is started in first."""
    fake = tmp_path / "torchvision" / "models"
    fake.mkdir(parents=True)
    for folder in (fake.parent, fake):
        (folder / "__init__.py").touch()
    (fake / "planted.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # not installed, were it not for the folder
    assert trust.find("torchvision.models.planted.Model") is None
    assert not Path("ran").exists()
    assert sys.path[:2] == ["", str(tmp_path)]


def test_a_module_is_trusted_after_dynamo_has_patched_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile puts a function of its own in place of nn.Module.__setstate__."""
    monkeypatch.setattr(nn.Module, "__setstate__", lambda self, state: vars(self).update(state))
    assert trust.find("torch.nn.modules.linear.Linear") == ("module", nn.Linear)


def test_the_shipped_model_is_of_a_trusted_class() -> None:
    assert trust.find("prunec.data.tiny_vit.TinyViT") == ("module", tiny_vit.TinyViT)
