from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from timm.data import ImageNetInfo
from torch import nn

from prunec.data import shapes
from prunec.frontend import sources
from prunec.frontend.labels import names_of_classes
from prunec.frontend.source import Source


class Named(nn.Module):
    def __init__(self, count: int, **config: Any) -> None:
        super().__init__()
        self.num_classes, self.pretrained_cfg = count, config


def source(module: nn.Module, weights: Any = "pretrained", labels: tuple[str, ...] = ()) -> Source:
    return Source("timm:x", module, (), {}, weights, labels=labels)


def test_the_built_in_model_knows_its_shapes() -> None:
    found = sources.load("shapes")
    assert names_of_classes(found) == shapes.CLASS_NAMES
    assert len(shapes.CLASS_NAMES) == found.module.head.out_features
    assert names_of_classes(dataclasses.replace(found, submodule="blocks")) == ()


def test_what_a_model_says_comes_first() -> None:
    assert names_of_classes(source(Named(2, label_names=["a", "b"]), labels=("x", "y"))) == ("x", "y")
    assert names_of_classes(source(Named(2, label_names=["a", "b"]))) == ("a", "b")
    assert names_of_classes(source(Named(3, label_names=["a", "b"]))) == ()


def test_models_of_imagenet_have_its_names() -> None:
    names = names_of_classes(source(Named(1000)))
    assert names == tuple(ImageNetInfo().index_to_description(number) for number in range(1000))
    assert "tench" in names[0]
    assert names_of_classes(source(Named(1000), "random")) == ()
    assert names_of_classes(source(Named(999))) == ()


@pytest.mark.parametrize("module", [nn.Identity(), Named(0)])
def test_others_have_none(module: nn.Module) -> None:
    assert names_of_classes(source(module)) == ()
