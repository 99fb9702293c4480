from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunec
import prunec.measure.image_sets
from prunec.api.verbs import Result
from prunec.data import shapes
from prunec.data.tiny_vit import TinyViT
from prunec.errors import PolicyError, SourceError, TargetError, UsageError
from prunec.frontend import sources
from prunec.ir.program import ProgramModule
from prunec.measure.image_sets import image_set_of
from tests import tiny

EVIT = {"keep": 0.5, "blocks": (0,)}
FACTORY = """\
from tests.api.test_verbs import vit


def make():
    return vit()
"""


class Odd(TinyViT):
    """Holds a parameter that its forward never reads, and two blocks that share one."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.mask_token = nn.Parameter(torch.zeros(3))
        self.blocks[1].attn.proj.weight = self.blocks[0].attn.proj.weight


def vit(kind: type[TinyViT] = TinyViT, **sizes: int) -> TinyViT:
    torch.manual_seed(0)
    chosen = {"image_size": 20, "patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "num_classes": 7, **sizes}
    model = kind(**chosen)
    nn.init.normal_(model.head.weight)
    return model.eval()


def images(count: int = 3, side: int = 20) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def optimize(
    source: Any,
    policy: str = "evit",
    *,
    keep: float | None = None,
    blocks: tuple[int, ...] | None = None,
    images: Path | None = None,
    example: Any = None,
    **measure: Any,
) -> Result:
    chosen = prunec.Policy.load(policy, keep=keep, blocks=blocks)
    how = prunec.Measure(target="eager", batch=2, rounds=5, **measure)
    return prunec.optimize(source, chosen, images=images, example=example, measure=how)


def same(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(one(x), other(x))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """An artefact of a module given in Python."""
    said: list[str] = []
    result = optimize(vit(), progress=said.append, **EVIT)
    assert said == [
        "capture, recognise", "rewrite, certify",
        "compile dense", "compile pruned", "compile ideal", "measure",
    ]  # fmt: skip
    return result.save(tmp_path_factory.mktemp("artefacts") / "given"), result


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "factory_of_a_vit.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield "factory_of_a_vit:make"
    sys.modules.pop("factory_of_a_vit", None)


# --- transform --------------------------------------------------------------------------------


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
    assert (overridden.selector.keep, overridden.sites.blocks) == (0.25, (2,))


def test_transform_says_what_an_unknown_model_needs() -> None:
    with pytest.raises(
        UsageError, match=r"no example input can be inferred for this[\s\S]*example=, a tensor"
    ):
        prunec.transform(tiny.ViT(), "norm")
    fast = prunec.transform(tiny.ViT(), tiny.policy(), example=tiny.pixels(1))
    assert fast(tiny.pixels(5)).shape == (5, 7)


# --- anatomy and diff -------------------------------------------------------------------------


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


# --- optimize ---------------------------------------------------------------------------------


def test_optimize_a_module(saved: tuple[Path, Result]) -> None:
    folder, result = saved
    report = result.report
    assert report.source.endswith("tiny_vit.TinyViT")
    assert (report.weights, report.target, report.policy["name"]) == ("given", "eager", "evit")
    assert [site.leaves for site in report.plan.sites] == [15]
    assert [stage.name for stage in report.stages][-1] == "certify"
    assert report.certificate.permutation <= report.certificate.tolerance
    assert report.flops["pruned"] < report.flops["dense"]
    assert report.latency is not None
    assert report.latency.timings.keys() == {"dense", "pruned", "ideal"}
    assert report.accuracy is None
    assert same(result.module, prunec.transform(vit(), prunec.Policy.load("evit", **EVIT)), images())
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.safetensors", "prunec.json", "report.html", "report.json",
    ]  # fmt: skip
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["artefact"] == str(folder)
    assert f"<td>{folder}</td>" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_manifest_is_all_that_is_needed(saved: tuple[Path, Result]) -> None:
    manifest = json.loads((saved[0] / "prunec.json").read_text(encoding="utf-8"))
    assert list(manifest) == [
        "format", "source", "weights", "target", "policy", "plan", "certificate", "arch", "example",
        "versions", "files",
    ]  # fmt: skip
    assert prunec.Policy.load(manifest["policy"]) == prunec.Policy.load("evit", **EVIT)
    assert manifest["plan"]["sites"][0]["leaves"] == 15
    assert manifest["versions"] == {"prunec": prunec.__version__, "torch": torch.__version__}
    weights = load_file(saved[0] / "model.safetensors")
    assert weights.keys() == vit().state_dict().keys()


def pictures(folder: Path, *classes: str) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for count in range(2):
            picture = Image.new("RGB", (24, 30), (60 * number, 90 * count, 40))
            picture.save(folder / name / f"{count}.png")
    return folder


@pytest.mark.parametrize(
    ("classes", "labelled"),
    [
        (("0", "6"), True),
        (("0", "7"), False),  # there is no class 7
        (tuple("abcdefg"), True),
        (("cat", "dog"), False),  # of the model's seven classes they could be any
        (("",), False),
    ],
)
def test_folders_give_labels_where_they_name_the_models_classes(
    tmp_path: Path, classes: tuple[str, ...], labelled: bool
) -> None:
    folder = pictures(tmp_path / "images", *classes)
    found = image_set_of(sources.from_module(vit()), folder)
    assert found is not None
    assert found.images.shape == (2 * len(classes), 3, 20, 20)
    assert found.name == f"images of {folder}"
    wanted = 7 if found.classes is None else found.classes
    fits = found.labels is not None and wanted == 7 and int(found.labels.max()) < 7
    assert fits is labelled


def test_what_is_doubtful_about_pictures_is_warned_of_and_noted(tmp_path: Path) -> None:
    folder, warned = pictures(tmp_path / "images", "cat", "dog"), []
    report = optimize(vit(), images=folder, warn=warned.append, **EVIT).report
    guess, labels = warned
    assert report.notes == (guess, labels)
    assert guess == (
        "pictures are normalised with mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5, which is a guess: no "
        "processor stands beside the model; give --mean, --std and --crop (in Python: preprocess=)"
    )
    assert "accuracy is not measured: 2 folders name classes (cat, dog), and the model has 7; " in labels
    assert report.accuracy is not None
    assert report.accuracy.dense.accuracy is None
    said = {"mean": (0.1, 0.2, 0.3), "std": 0.5}
    report = optimize(vit(), images=folder, warn=warned.append, preprocess=said, **EVIT).report
    assert report.notes == (labels,)
    assert report.preprocess is not None
    assert (report.preprocess.mean, report.preprocess.origin) == ((0.1, 0.2, 0.3), "the caller")


def test_pictures_of_a_processor_reach_the_model(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", "")
    said = transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], size={"height": 20, "width": 20})
    found = image_set_of(sources.from_module(vit(), preprocess=said), folder)
    assert found is not None
    expected = said([Image.open(folder / f"{n}.png") for n in range(2)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found.images, expected, rtol=0, atol=0.01)


def test_an_example_in_any_form_is_an_artefacts_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a Source has its example and preprocessing already"):
        optimize(sources.from_module(vit()), example="2x3x20x20")
    source = sources.load("timm:test_vit?dynamic_img_size=true", pretrained=False, image_size=(96, 96))
    folder = optimize(source, keep=0.5, blocks=(2,)).save(tmp_path / "out")
    assert json.loads((folder / "prunec.json").read_text(encoding="utf-8"))["example"] == "2x3x96x96"
    assert prunec.load(folder)(images(2, 96)).shape == (2, 1000)


def test_optimize_on_images(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", "2", "5")
    report = optimize(vit(), images=folder, preprocess={"mean": 0.5, "std": 0.5}, **EVIT).report
    assert report.accuracy is not None
    assert (report.accuracy.images, report.images) == (4, f"images of {folder}")
    assert report.accuracy.dense.accuracy is not None
    assert report.accuracy.random is not None


def test_optimize_reads_at_most_so_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prunec.measure.image_sets, "MOST", 3)
    found = image_set_of(sources.from_module(vit()), pictures(tmp_path / "images", "2", "5"))
    assert found is not None
    assert len(found.images) == 3


def test_optimize_asks_for_the_target_and_the_policy_before_the_model() -> None:
    with pytest.raises(TargetError, match="unknown target 'eagre'; nearest: eager"):
        prunec.optimize("no.such:model", "evit", measure=prunec.Measure(target="eagre"))
    with pytest.raises(PolicyError, match=r"there is no policy 'evti'; nearest: evit"):
        prunec.optimize("no.such:model", "evti", measure=prunec.Measure(target="eager"))


# --- load -------------------------------------------------------------------------------------


def test_load_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prunec.measure.image_sets, "MOST", 8)
    result = optimize("shapes", keep=0.5)
    folder = result.save(tmp_path / "out")
    pixels = shapes.normalize(shapes.images(shapes.CLASSIFICATION, 3, 0, 5)[0])
    loaded = prunec.load(folder)
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
    loaded = prunec.load(str(folder))
    assert asked == [False]
    assert same(loaded, result.module, images(3, 160))


def test_load_calls_the_users_function_again(tmp_path: Path, factory: str) -> None:
    result = optimize(factory, **EVIT)
    with torch.no_grad():
        result.module.get_parameter("head.bias").fill_(3.0)
    folder = result.save(tmp_path / "out")
    assert json.loads((folder / "prunec.json").read_text(encoding="utf-8"))["source"] == factory
    with pytest.raises(SourceError, match=f"names the source '{factory}', and reading that may run code"):
        prunec.load(folder)
    assert same(prunec.load(folder, trust_source=True), result.module, images())


def test_a_module_given_in_python_needs_the_model(saved: tuple[Path, Result]) -> None:
    folder, _ = saved
    with pytest.raises(UsageError) as caught:
        prunec.load(folder)
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
    with pytest.raises(SourceError, match=rf"^the weights of {folder} lack head\.bias\n  to do: give the"):
        prunec.load(folder, vit())


def test_a_result_may_be_saved_twice_and_moved(saved: tuple[Path, Result], tmp_path: Path) -> None:
    first = saved[1].save(tmp_path / "one")
    saved[1].save(first)
    moved = first.rename(tmp_path / "two")
    assert same(prunec.load(moved, vit()), saved[1].module, images())


def test_optimize_takes_an_example() -> None:
    model, x = tiny.ViT().eval(), tiny.pixels()
    policy = prunec.Policy.load("norm", keep=0.5, blocks=(1,))
    options = {"measure": prunec.Measure(target="eager", batch=2, rounds=1)}
    with pytest.raises(UsageError, match="no example input can be inferred"):
        prunec.optimize(model, policy, **options)
    result = prunec.optimize(model, policy, example=x, **options)
    expected = prunec.transform(model, policy, example=x)
    assert torch.equal(result.module(x), expected(x))
