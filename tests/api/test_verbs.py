from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prunec
import prunec.measure.image_sets
from prunec.api.verbs import Result
from prunec.errors import UsageError
from prunec.ir.program import ProgramModule
from tests import tiny
from tests.api.making import EVIT, images, same, unchanged, values, vit


def test_transform_shares_parameters_and_leaves_the_model_alone() -> None:
    model = vit()
    before, output = values(model), model(images()).detach()
    fast = prunec.transform(model, prunec.Policy.load("evit", **EVIT))
    assert isinstance(fast, ProgramModule)
    assert dict(fast.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert all(fast.get_parameter(name) is value for name, value in model.named_parameters())
    assert unchanged(model, before)
    assert torch.equal(model(images()), output)
    assert fast(images()).shape == (3, 7)
    assert not same(fast, model, images())
    assert "after attention of block 0: 26 -> 15 tokens" in repr(fast)


def test_transform_with_every_token_kept_is_the_model() -> None:
    model = vit()
    same_model = prunec.transform(model, prunec.Policy.load("norm", keep=1.0))
    torch.testing.assert_close(same_model(images()), model(images()))
    assert same_model.__dict__["program"].plan.sites == ()


def test_transform_reads_a_model_in_training_mode_and_leaves_it_in_it() -> None:
    model = vit().train()
    fast = prunec.transform(model, prunec.Policy.load("norm", **EVIT))
    assert all(part.training for part in model.modules())
    assert fast.get_parameter("head.weight") is model.head.weight


@pytest.mark.parametrize("form", ["name", "mapping", "file", "policy"])
def test_a_policy_may_come_in_any_form(tmp_path: Path, form: str) -> None:
    policy = tiny.policy(keep=0.4)
    path = tmp_path / "mine.yaml"
    path.write_text(policy.to_yaml(), encoding="utf-8")
    given: Any = {
        "name": "norm", "mapping": policy.model_dump(exclude_none=True), "file": path, "policy": policy,
    }[form]  # fmt: skip
    loaded = prunec.Policy.load(given)
    assert loaded == (prunec.Policy.load("norm") if form == "name" else policy)
    overridden = prunec.Policy.load(given, keep=0.25, blocks=(2,))
    assert (overridden.keep, overridden.sites.blocks) == (0.25, (2,))


def test_transform_says_what_an_unknown_model_needs() -> None:
    with pytest.raises(
        UsageError, match=r"no example input can be inferred for this[\s\S]*example=, a tensor"
    ):
        prunec.transform(tiny.ViT(), "norm")
    fast = prunec.transform(tiny.ViT(), tiny.policy(), example=tiny.pixels(1))
    assert fast(tiny.pixels(5)).shape == (5, 7)


def test_anatomy() -> None:
    found = prunec.anatomy(vit())
    assert found.summary() == "2/2 blocks, 25 patch tokens + 1 in front protected, head reads class token"
    assert prunec.anatomy(tiny.ViT(prefix=2), example=tiny.pixels()).prefix == 2


def test_diff() -> None:
    model = vit()
    said = prunec.diff(model, prunec.transform(model, prunec.Policy.load("evit", **EVIT)))
    assert "  block 0        attention + mlp                   26   26 -> 15\n" in said
    assert "    + select_0 = select(score_0, 13, 1, 0, True)\n" in said
    assert said.endswith("  11 inserted, 1 literals made symbolic, 0 tables followed\n")


def test_diff_with_an_example_and_with_a_lowered_module(saved: tuple[Path, Result]) -> None:
    assert "+ fuse_0 = fuse(" in prunec.diff(vit(), saved[1].module, example=images(2))


def test_diff_wants_a_module_of_prunec() -> None:
    with pytest.raises(UsageError) as caught:
        prunec.diff(vit(), vit())
    assert str(caught.value) == (
        "the second module was not made by prunec\n  to do: give what prunec.transform returned"
    )
