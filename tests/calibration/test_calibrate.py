from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunec
from prunec import ops
from prunec.calibration import calibrate
from prunec.data import shapes
from prunec.errors import CalibrationError, UsageError
from prunec.ir.program import Planned, Program, Recognised
from prunec.passes import BACK, run_passes
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.scorers import fitting
from tests.tiny import Attention, Block, ViT, pixels, planned, policy, recognised, run

DYNAMIC = {
    "selector": "threshold", "fate": "preserve", "reactivate": True, "scorer": "mlp", "blocks": [1, 2],
}  # fmt: skip


@pytest.fixture(scope="module")
def dense() -> Recognised:
    torch.manual_seed(0)
    return recognised(ViT(depth=3))


def images(count: int = 16) -> Tensor:
    """Images that differ in how much there is to see."""
    torch.manual_seed(1)
    return pixels(count) * torch.linspace(0.3, 2, count).view(-1, 1, 1, 1)


def pruned(dense: Recognised, **choices: object) -> Planned:
    return run_passes(BACK, planned(dense, **{**DYNAMIC, **choices}))  # type: ignore[arg-type]


def counts(program: Program, x: Tensor) -> list[Tensor]:
    """How many patches each image keeps at each site."""
    found: list[Tensor] = []

    class Watching(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):  # type: ignore[no-untyped-def]
            result = super().call_function(target, args, kwargs)
            if target is ops.threshold_mask:
                found.append(result[:, 1:].sum(dim=1))
            return result

    with torch.no_grad():
        Watching(program.module).run(x)
    return found


@pytest.mark.parametrize("scorer", ["mlp", "norm"])
@pytest.mark.parametrize("reactivate", [True, False])
def test_the_mean_over_the_images_is_what_was_asked_for_and_images_differ(
    dense: Recognised, scorer: str, reactivate: bool
) -> None:
    program = pruned(dense, scorer=scorer, reactivate=reactivate, keep=0.4)
    x = images()
    result = calibrate.calibrate(dense, program, x, "images")
    asked = [site.keep for site in program.plan.sites]
    found = counts(program, x)
    assert [float(kept.double().mean()) for kept in found] == pytest.approx(asked, abs=1 / len(x))
    assert all(len(set(kept.tolist())) > 1 for kept in found)
    assert [share for share, _ in result.shares] == [keep / 25 for keep in asked]
    assert all(met == pytest.approx(share, abs=0.01) for share, met in result.shares)
    assert len(result.fits) == (2 if scorer == "mlp" else 0)


def test_scorers_predict_tokens_that_they_have_not_seen(dense: Recognised) -> None:
    result = calibrate.calibrate(dense, pruned(dense), images(32), "images")
    assert min(result.fits) > 0.3
    assert "on 32 images, scorers rank held-out tokens at" in str(result)


def test_the_importance_is_the_gradient_through_the_block(dense: Recognised) -> None:
    # by hand, for one site and one projection
    torch.manual_seed(0)
    model = ViT(depth=3).eval()
    dense, x = recognised(model), images(2)
    branches = dense.anatomy.blocks[1].branches
    spans = [(branches[0].state, branches[-1].add)]
    ((states, found),) = calibrate.Importance(dense, spans, dense.anatomy).run(x)
    start = model.blocks[0](model.embed(x)).detach().requires_grad_()
    end = model.blocks[1](start)
    output = model.head(model.norm(model.blocks[2](end))[:, 0])
    expected = 0.0
    for seed in range(calibrate.PROJECTIONS):
        torch.manual_seed(seed)
        signs = torch.randint(0, 2, output.shape) * 2.0 - 1
        total = (output * signs).sum() / output.detach().std()
        at_start, at_end = torch.autograd.grad(total, [start, end], retain_graph=True)
        rows = start.detach()[:, 1:]
        effect = (at_start - at_end)[:, 1:] * (rows - rows.mean(dim=1, keepdim=True))
        expected = expected + effect.sum(dim=-1) ** 2
    torch.testing.assert_close(states, start.detach()[:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(found, (expected / calibrate.PROJECTIONS) ** 0.5, rtol=1e-3, atol=1e-5)


def test_calibration_changes_the_sites_and_nothing_of_the_model(dense: Recognised) -> None:
    program = pruned(dense)
    before = {name: tensor.clone() for name, tensor in program.module.state_dict().items()}
    calibrate.calibrate(dense, program, images(), "images")
    after = program.module.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name for name in after if name.startswith("prunec.")} == changed
    assert all(parameter.grad is None for parameter in program.module.parameters())


def test_calibration_is_deterministic_and_leaves_the_random_state_alone(dense: Recognised) -> None:
    outputs, x = [], images()
    for seed in (0, 1):
        program = pruned(dense)
        torch.manual_seed(seed)
        expected = torch.rand(3)
        torch.manual_seed(seed)
        calibrate.calibrate(dense, program, x, "images")
        torch.testing.assert_close(torch.rand(3), expected)
        outputs.append(run(program, x)[0])
    torch.testing.assert_close(*outputs)


def test_images_of_another_kind_are_refused_with_the_kind_that_is_wanted(dense: Recognised) -> None:
    for wrong in (images().double(), images()[..., :16]):
        with pytest.raises(CalibrationError, match=r"the model takes torch.float32\['n', 3, 20, 20\]"):
            calibrate.calibrate(dense, pruned(dense), wrong, "images")


def test_a_model_that_fixes_its_batch_is_calibrated_at_that_batch() -> None:
    class Fixed(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels.reshape(2, 3, 20, 20))

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="the batch is fixed at 2"):
        dense = recognised(Fixed(depth=3))
    result = calibrate.calibrate(dense, pruned(dense), images(17), "images")
    assert result.images == 16


def test_too_few_images(dense: Recognised) -> None:
    with pytest.raises(CalibrationError, match="7 images are too few") as caught:
        calibrate.calibrate(dense, pruned(dense), images(7), "images")
    assert "8 or more" in str(caught.value.remedy)


def test_a_policy_that_is_not_calibrated_is_refused_unless_asked_for() -> None:
    model = ViT(lambda: Block(Attention), depth=3).eval()
    chosen = policy(**DYNAMIC)
    with pytest.raises(CalibrationError, match="policy 'mine' has learned parts or thresholds") as caught:
        prunec.transform(model, chosen, example=pixels())
    assert "--untrained" in str(caught.value.remedy)
    module = prunec.transform(model, chosen, example=pixels(), calibrate=False)
    assert "prunec.site_0.gate.up.weight" in module.state_dict()
    with pytest.warns(UserWarning, match="calibrated on 16 images only, which may not hold for others"):
        fitted = prunec.transform(model, chosen, example=pixels(), calibration=images())
    with torch.no_grad():
        assert fitted(images()).shape == (16, 7)
        assert float(fitted.state_dict()["prunec.site_1.threshold"]) != 0.0


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
    told = calibrate.Calibration(name="images", shares=(), counts=(), seconds=0.0, **found).doubts
    assert len(told) == len(doubts)
    assert all(said.startswith(start) for said, start in zip(told, doubts, strict=True))


def test_a_part_cannot_be_calibrated_on_images() -> None:
    with pytest.raises(UsageError, match="a part of a model cannot be calibrated"):
        prunec.transform(ViT(), policy(**DYNAMIC), example=pixels(), submodule="blocks", calibration=images())


def test_nothing_to_prune_needs_no_calibration() -> None:
    module = prunec.transform(ViT(depth=3).eval(), policy(**DYNAMIC, keep=1.0), example=pixels())
    assert not any(name.startswith("prunec.") for name in module.state_dict())


def test_rank_correlation() -> None:
    x = torch.tensor([3.0, 1.0, 2.0, 9.0])
    assert fitting.rank_correlation(x, x.exp()) == pytest.approx(1.0)
    assert fitting.rank_correlation(x, -x) == pytest.approx(-1.0)


def test_importance_counts_by_its_place_between_the_median_and_the_most_of_its_image() -> None:
    image = torch.tensor([1.0, 2.0, 4.0, 8.0, 64.0])
    found = fitting.on_one_scale(torch.stack([image, 100 * image, image**3, torch.ones(5)]))
    expected = torch.tensor([-0.5, -0.25, 0.0, 0.25, 1.0])
    torch.testing.assert_close(found, torch.stack([expected, expected, expected, torch.zeros(5)]))


def test_busy_scenes_keep_more_tokens_than_empty_ones_at_hardly_any_cost() -> None:
    """On the shipped classifier; of scenes with one object each, over all sites the counts hardly tell."""
    source = prunec.frontend.sources.load("shapes")
    dense = prunec.compiler.recognise(source)
    chosen = Policy.load("dynamic").override(keep=0.5)
    program = run_passes(BACK, prunec.compiler.plan(dense, chosen, choose(chosen)))
    fitted_on = source.calibration_images(64)
    assert fitted_on is not None
    calibrate.calibrate(dense, program, fitted_on.images, fitted_on.name)
    scenes = shapes.scenes(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[0], 512, 384)
    images, area = shapes.normalize(scenes.image), scenes.area.sum(dim=1).double()
    batches = images.split(64)
    kept = torch.cat([torch.stack(counts(program, batch)) for batch in batches], dim=1).double()
    assert fitting.rank_correlation(kept.mean(dim=0), area) > 0.2
    assert fitting.rank_correlation(kept[-3:].mean(dim=0), area) > 0.6
    right = torch.cat([run(program, batch)[0].argmax(dim=1) for batch in batches]) == scenes.label
    assert float(right.double().mean()) > 0.97

    scenes = shapes.scenes(shapes.DETECTION, shapes.HELD_OUT_SEEDS[0], 0, 512)  # one to four objects
    batches = shapes.normalize(scenes.image).split(64)
    kept = torch.cat([torch.stack(counts(program, batch)) for batch in batches], dim=1).double()
    assert fitting.rank_correlation(kept.mean(dim=0), scenes.area.sum(dim=1).double()) > 0.6


def test_optimize_calibrates_reports_and_saves_what_it_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunec.measure.image_sets.MOST", 96)  # images to measure on; six models see each
    result = prunec.optimize(
        "shapes",
        prunec.Policy.load("dynamic", keep=0.5),
        measure=prunec.Measure(target="eager", batch=4, rounds=5),
    )
    report = result.report.text()
    assert "calibrated   on 64 other held-out Shapes images, scorers rank held-out tokens at" in report
    assert "each image by itself and in a batch:" in report
    assert "before block 3: 82 -> 42 tokens on average" in report
    accuracy = result.report.accuracy
    assert accuracy is not None
    assert accuracy.random is not None
    assert (accuracy.pruned.accuracy or 0) > 0.9 > 2 * (accuracy.random.accuracy or 1)
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
