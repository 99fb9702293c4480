from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import prunec
import prunec.measure.image_sets
from prunec.api.verbs import Result
from prunec.errors import PolicyError, TargetError, UsageError
from prunec.frontend import sources
from prunec.measure.image_sets import image_set_of
from tests import tiny
from tests.api.making import EVIT, images, optimize, pictures, same, vit


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
    assert report.accuracy is not None
    assert same(result.module, prunec.transform(vit(), prunec.Policy.load("evit", **EVIT)), images())
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "example.safetensors", "model.pt2", "model.safetensors", "prunec.json", "report.html",
        "report.json",
    ]  # fmt: skip
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["artefact"] is None
    assert str(folder) not in (folder / "report.html").read_text(encoding="utf-8")  # it may be moved


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
    folder = pictures(tmp_path / "images", "cat", "dog")
    with pytest.warns(UserWarning, match="guess|accuracy") as warned:
        report = optimize(vit(), images=folder, **EVIT).report
    guess, labels = (str(warning.message) for warning in warned)
    assert report.notes == (guess, labels)
    assert guess == (
        "pictures are normalised with mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5, which is a guess: no "
        "processor stands beside the model; give --mean, --std and --crop (in Python: preprocess=)"
    )
    assert "accuracy is not measured: 2 folders name classes (cat, dog), and the model has 7; " in labels
    assert report.accuracy is not None
    assert report.accuracy.dense.accuracy is None
    said = {"mean": (0.1, 0.2, 0.3), "std": 0.5}
    with pytest.warns(UserWarning, match="accuracy is not measured"):
        report = optimize(vit(), images=folder, preprocess=said, **EVIT).report
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


def test_optimize_takes_an_example() -> None:
    model, x = tiny.ViT().eval(), tiny.pixels()
    policy = prunec.Policy.load("norm", keep=0.5, blocks=(1,))
    options = {"measure": prunec.Measure(target="eager", batch=2, rounds=1)}
    with pytest.raises(UsageError, match="no example input can be inferred"):
        prunec.optimize(model, policy, **options)
    result = prunec.optimize(model, policy, example=x, **options)
    expected = prunec.transform(model, policy, example=x)
    assert torch.equal(result.module(x), expected(x))
