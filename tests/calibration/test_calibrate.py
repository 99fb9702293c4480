from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prunec
from prunec.calibration.calibrate import Calibration, calibrate, kept_on_example
from prunec.calibration.inputs import pixels_of
from prunec.compiler import plan
from prunec.data import shapes
from prunec.errors import CalibrationError, UsageError
from prunec.ir.program import Recognised
from prunec.passes import BACK, run_passes
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.scorers import fitting
from tests.calibrating import DYNAMIC, counts, dense_vit, images, pruned
from tests.tiny import Attention, Block, ViT, pixels, policy, run

pytestmark = pytest.mark.usefixtures("recognised_once")


@pytest.fixture(scope="module")
def dense() -> Recognised:
    return dense_vit()


def test_calibration_makes_new_sites_and_shares_what_is_of_the_model(dense: Recognised) -> None:
    program = pruned(dense)
    before = {name: tensor.clone() for name, tensor in program.module.state_dict().items()}
    fitted = calibrate(dense, program, images(), "images")
    own = {name for name in before if name.startswith("prunec.")}
    assert set(fitted.values) == own
    after, now = fitted.put_into(program).module.state_dict(), program.module.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(now[name], tensor), name  # the program that was given is as it was
        assert torch.equal(after[name], tensor) == (name not in own), name
        assert (after[name].data_ptr() == now[name].data_ptr()) == (name not in own), name
    assert all(parameter.grad is None for parameter in program.module.parameters())
    kinds = {name: (type(value), value.requires_grad) for name, value in program.module.named_parameters()}
    made = fitted.put_into(program).module.named_parameters()
    assert {name: (type(value), value.requires_grad) for name, value in made} == kinds


def test_calibration_is_deterministic_and_leaves_the_random_state_alone(dense: Recognised) -> None:
    outputs, x = [], images()
    for seed in (0, 1):
        program = pruned(dense)
        torch.manual_seed(seed)
        expected = torch.rand(3)
        torch.manual_seed(seed)
        program = calibrate(dense, program, x, "images").put_into(program)
        torch.testing.assert_close(torch.rand(3), expected)
        outputs.append(run(program, x)[0])
    torch.testing.assert_close(*outputs)


def test_a_policy_that_is_not_calibrated_is_refused_unless_asked_for() -> None:
    model = ViT(lambda: Block(Attention), depth=3).eval()
    chosen = policy(**DYNAMIC)
    with pytest.raises(CalibrationError, match="policy 'mine' has learned parts or thresholds") as caught:
        prunec.transform(model, chosen, example=pixels())
    assert "--no-calibrate" in str(caught.value.remedy)
    module = prunec.transform(model, chosen, example=pixels(), calibrate=False)
    assert "prunec.site_0.gate.up.weight" in module.state_dict()
    with pytest.warns(UserWarning, match="16 images only"):
        fitted = prunec.transform(model, chosen, example=pixels(), calibration=images())
    with torch.no_grad():
        assert fitted(images()).shape == (16, 7)
        assert float(fitted.state_dict()["prunec.site_1.threshold"]) != 0.0


@pytest.mark.parametrize("name", ["cover", "dynamic"])
def test_thresholds_of_novelty_that_are_not_calibrated_prune_the_example_as_planned(
    dense: Recognised, name: str
) -> None:
    program = run_passes(BACK, plan(dense, Policy.load(name, keep=0.5, blocks=[1, 2])))
    x = pixels_of(program)
    everything, some = counts(program, x), counts(kept_on_example(program), x)
    assert all(kept.tolist() == [25] * len(x) for kept in everything)
    for site, kept in zip(program.plan.sites, some, strict=True):
        assert float(kept.double().mean()) == pytest.approx(site.keep, abs=1)


def test_other_thresholds_that_are_not_calibrated_are_left_alone(dense: Recognised) -> None:
    program = pruned(dense, scorer="mlp", keep=0.4)
    assert kept_on_example(program) is program


def test_scorers_are_fitted_once_for_several_rates(dense: Recognised) -> None:
    x = images()
    first = calibrate(dense, pruned(dense, scorer="mlp", keep=0.7), x, "images")
    other = pruned(dense, scorer="mlp", keep=0.4)
    again, anew = calibrate(dense, other, x, "images", first.scorers), calibrate(dense, other, x, "images")
    assert again.calibration.fits == anew.calibration.fits
    assert again.values.keys() == anew.values.keys()
    assert all(torch.equal(again.values[name], anew.values[name]) for name in anew.values)


@pytest.mark.parametrize(
    ("found", "doubts"),
    [
        ({"images": 64, "fits": (0.3, 0.9)}, []),
        ({"images": 63, "fits": ()}, ["calibrated on 63 images only"]),
        ({"images": 64, "fits": (0.29, 0.9)}, ["the scorers of 1 of 2 sites predict next to nothing"]),
        ({"images": 64, "fits": (float("nan"),)}, ["the scorers of 1 of 1 sites predict next to nothing"]),
        ({"images": 64, "fits": (0.1,), "graded": True}, []),  # a share of classes, no correlation
        ({"images": 9, "fits": (0.1,)}, ["calibrated on 9 images only", "the scorers of 1 of 1"]),
    ],
)
def test_a_calibration_that_may_not_hold_says_so(found: dict[str, Any], doubts: list[str]) -> None:
    told = Calibration(name="images", shares=(), counts=(), seconds=0.0, **found).doubts
    assert len(told) == len(doubts)
    assert all(said.startswith(start) for said, start in zip(told, doubts, strict=True))


def test_a_part_cannot_be_calibrated_on_images() -> None:
    with pytest.raises(UsageError, match="a part of a model cannot be calibrated"):
        prunec.transform(ViT(), policy(**DYNAMIC), example=pixels(), submodule="blocks", calibration=images())


def test_nothing_to_prune_needs_no_calibration() -> None:
    module = prunec.transform(ViT(depth=3).eval(), policy(**DYNAMIC, keep=1.0), example=pixels())
    assert not any(name.startswith("prunec.") for name in module.state_dict())


def test_busy_scenes_keep_more_tokens_than_empty_ones_at_hardly_any_cost() -> None:
    """On the shipped classifier; of scenes with one object each the textures decide how many are kept."""
    source = prunec.frontend.sources.load("shapes")
    dense = prunec.compiler.recognise(source)
    chosen = Policy.load("dynamic").override(keep_per_site=0.5)
    program = run_passes(BACK, prunec.compiler.plan(dense, chosen, choose(chosen)))
    fitted_on = source.calibration_images(64)
    assert fitted_on is not None
    program = calibrate(dense, program, fitted_on.images, fitted_on.name).put_into(program)
    scenes = shapes.scenes(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[0], 512, 384)
    batches = shapes.normalize(scenes.image).split(64)
    right = torch.cat([run(program, batch)[0].argmax(dim=1) for batch in batches]) == scenes.label
    assert float(right.double().mean()) > 0.97

    scenes = shapes.scenes(shapes.DETECTION, shapes.HELD_OUT_SEEDS[0], 0, 512)  # one to four objects
    batches = shapes.normalize(scenes.image).split(64)
    kept = torch.cat([torch.stack(counts(program, batch)) for batch in batches], dim=1).double()
    assert fitting.rank_correlation(kept.mean(dim=0), scenes.area.sum(dim=1).double()) > 0.5


def test_optimize_calibrates_reports_and_saves_what_it_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunec.measure.image_sets.MOST", 96)  # images to measure on; six models see each
    result = prunec.optimize(
        "shapes",
        prunec.Policy.load("dynamic", keep_per_site=0.5),
        measure=prunec.Measure(target="eager", batch=4, rounds=5),
    )
    report = result.report.text()
    assert "calibrated   on 64 other held-out Shapes images, scorers rank held-out tokens at" in report
    assert "each image by itself and in a batch:" in report
    assert "before block 3: 82 -> 42 tokens on average" in report
    accuracy = result.report.accuracy
    assert accuracy is not None
    assert accuracy.random is not None
    assert (accuracy.pruned.accuracy or 0) > 0.9 > 1.5 * (accuracy.random.accuracy or 1)
    flops = result.report.flops
    assert 0.4 < flops["pruned"] / flops["dense"] < 0.65
    loaded = prunec.load(result.save(tmp_path / "out"), target="eager")
    x = shapes.normalize(shapes.images(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[0], 0, 4)[0])
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), result.module(x))


def test_optimize_says_what_it_was_calibrated_on_and_when_it_was_not() -> None:
    model = ViT(depth=3).eval()
    source = prunec.frontend.sources.from_module(model, pixels(side=5))
    chosen = policy(**DYNAMIC)
    scenes = prunec.optimize(source, chosen, measure=prunec.Measure(target="eager", batch=2, rounds=5))
    assert "calibrated on synthetic scenes" in " ".join(scenes.report.notes)
    bare = prunec.optimize(
        source, chosen, measure=prunec.Measure(target="eager", batch=2, rounds=5, calibrate=False)
    )
    assert "learned parts are untrained" in " ".join(bare.report.notes)
    assert bare.report.calibration is None
