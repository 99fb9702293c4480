from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import prunec
import prunec.measure.image_sets
from prunec.api.verbs import Result
from prunec.data import shapes
from prunec.errors import SourceError, TargetError, UsageError
from prunec.frontend import sources
from tests import tiny
from tests.api.making import EVIT, Odd, images, optimize, same, unchanged, values, vit
from tests.artefact.saving import rewritten


def test_load_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prunec.measure.image_sets, "MOST", 8)
    result = optimize("shapes", keep=0.5)
    folder = result.save(tmp_path / "out")
    pixels = shapes.normalize(shapes.images(shapes.CLASSIFICATION, 3, 0, 5)[0])
    loaded = prunec.load(folder, rebuild=True)
    assert same(loaded, result.module, pixels)
    assert loaded.__dict__["program"].plan == result.report.plan


def test_load_builds_a_timm_model_and_takes_the_saved_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources.load("timm:test_vit", pretrained=False)
    torch.manual_seed(7)  # not the random weights that a new model would get
    with torch.no_grad():
        source.module.get_parameter("head.weight").normal_()
    result = optimize(source, keep=0.5, blocks=(2,))
    folder = result.save(tmp_path / "out")
    asked: list[Any] = []
    create = timm.create_model

    def watched(*args: Any, **kwargs: Any) -> nn.Module:
        asked.append(kwargs["pretrained"])
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", watched)
    loaded = prunec.load(str(folder), rebuild=True)
    assert asked == [False]
    assert same(loaded, result.module, images(3, 160))


def test_load_calls_the_users_function_again(tmp_path: Path, factory: str) -> None:
    result = optimize(factory, **EVIT)
    with torch.no_grad():
        result.module.get_parameter("head.bias").fill_(3.0)
    folder = result.save(tmp_path / "out")
    assert json.loads((folder / "prunec.json").read_text(encoding="utf-8"))["source"] == factory
    with pytest.raises(SourceError, match=f"'{factory}'.* may run code"):
        prunec.load(folder, rebuild=True)
    assert same(prunec.load(folder), result.module, images())
    assert same(prunec.load(folder, trust_source=True), result.module, images())


def test_a_module_given_in_python_is_built_anew_from_the_model_only(saved: tuple[Path, Result]) -> None:
    folder, _ = saved
    with pytest.raises(UsageError) as caught:
        prunec.load(folder, rebuild=True)
    assert str(caught.value) == (
        f"{folder} was made from a module in Python, which no SOURCE names\n"
        "  to do: give that module: prunec.load(folder, model=...)"
    )


@pytest.mark.parametrize("training", [False, True])
def test_load_never_changes_the_given_model(saved: tuple[Path, Result], training: bool) -> None:
    model = vit().train(training)
    with torch.no_grad():
        model.head.bias.fill_(9.0)
    before = values(model)
    loaded = prunec.load(saved[0], model)
    assert unchanged(model, before)
    assert all(part.training is training for part in model.modules())
    assert same(loaded, saved[1].module, images())  # the artefact's weights, not the model's
    shared = {id(parameter) for parameter in model.parameters()}
    assert not any(id(parameter) in shared for parameter in loaded.parameters())


def test_load_takes_an_example(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny.ViT().eval()
    source = sources.from_module(model, tiny.pixels())
    result = optimize(source, "norm", keep=0.5, blocks=(1,))
    folder = result.save(tmp_path / "out")
    with pytest.raises(UsageError, match="no example input can be inferred"):
        prunec.load(folder, model)
    assert same(prunec.load(folder, model, example=tiny.pixels()), result.module, tiny.pixels(3))


def test_load_a_model_with_unread_and_tied_parameters(tmp_path: Path) -> None:
    result = optimize(vit(Odd), **EVIT)
    folder = result.save(tmp_path / "out")
    assert same(prunec.load(folder, model=vit(Odd)), result.module, images())


def test_load_on_another_target(saved: tuple[Path, Result]) -> None:
    with pytest.raises(TargetError, match=r"unknown target 'tpu'[\s\S]*targets: eager, inductor"):
        prunec.load(saved[0], vit(), target="tpu")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"dim": 32}, r"do not fit the model: [\s\S]*size mismatch for cls_token"),
        ({"num_classes": 9}, r"do not fit the model: [\s\S]*size mismatch for head\.weight"),
        ({"depth": 3}, r"lack blocks\.2\.attn\.proj\.bias and 11 more"),
        ({"depth": 1}, r"hold more than the model: blocks\.1\.attn\.proj\.bias and 11 more"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    saved: tuple[Path, Result], sizes: dict[str, int], said: str
) -> None:
    remedy = r"\n  to do: give the model that the artefact was made from$"
    with pytest.raises(SourceError, match=rf"^the weights of {saved[0]} {said}[\s\S]*{remedy}"):
        prunec.load(saved[0], model=vit(**sizes))


def test_a_weight_that_was_lost_is_named(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = saved[1].save(tmp_path / "out")
    weights = load_file(folder / "model.safetensors")
    del weights["head.bias"]
    save_file(weights, folder / "model.safetensors")
    rewritten(folder, "checksums")
    with pytest.raises(SourceError, match=rf"^the weights of {folder} lack head\.bias\n  to do: give the"):
        prunec.load(folder, vit())


def test_a_result_may_be_saved_twice_and_moved(saved: tuple[Path, Result], tmp_path: Path) -> None:
    first = saved[1].save(tmp_path / "one")
    saved[1].save(first)
    moved = first.rename(tmp_path / "two")
    assert same(prunec.load(moved, vit()), saved[1].module, images())
