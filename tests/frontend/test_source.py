from __future__ import annotations

from typing import Any

import pytest
import torch

from prunec.data.preprocess import Preprocess
from prunec.errors import SourceError
from prunec.frontend import sources
from tests.frontend.models import Plain


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
    with pytest.raises(SourceError, match="pictures") as caught:
        assert source.preprocess
    assert "--mean, --std and --crop" in str(caught.value.remedy)


@pytest.mark.parametrize("said", [None, 5, "abc", {}])
def test_a_model_may_say_nothing_of_its_images(said: Any) -> None:
    source = sources.load("shapes")
    source.module.pretrained_cfg = said
    assert source.preprocess == Preprocess((72, 72), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert source.preprocess.origin == ""
