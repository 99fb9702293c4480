"""The compiler as a whole: which stages a model goes through, and what each of them hands on."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from prunec.compiler import Compiled, compile_recognised, compile_source, fit, lower, plan, recognise
from prunec.errors import CalibrationError
from prunec.frontend import sources
from prunec.frontend.sources import ImageSet, Source
from prunec.ir.program import Planned, Recognised
from prunec.passes import BACK, run_passes
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from tests.tiny import ViT, pixels, policy

FRONT = ["capture", "normalise", "flatten grid", "recognise"]
REWRITES = ["plan", "insert sites", "repair tokens", "liveness", "fold_key_value"]
LEARNED: dict[str, Any] = {"selector": "threshold", "fate": "preserve", "scorer": "mlp", "blocks": [1]}


@cache
def source() -> Source:
    torch.manual_seed(0)
    return sources.from_module(ViT().eval(), pixels())


@cache
def dense() -> Recognised:
    return recognise(source())


def stages(compiled: Compiled) -> list[str]:
    return [stage.name for stage in compiled.pruned.stages]


def test_every_stage_is_recorded_in_order() -> None:
    compiled = compile_source(source(), policy(keep=0.5))
    assert stages(compiled) == [*FRONT, *REWRITES, "certify"]
    assert [stage.name for stage in compiled.dense.stages] == FRONT
    assert not isinstance(compiled.dense, Planned)
    assert compiled.calibration is None
    assert compiled.certificate.permutation < 1e-5


def test_a_mode_is_the_last_stage_and_is_compared_with_what_it_was_made_from() -> None:
    chosen = policy(selector="threshold", fate="preserve", keep=0.5)
    compiled = compile_recognised(
        source().module, dense(), chosen, calibrate=False, lowering=choose(chosen, "masked")
    )
    assert stages(compiled)[-3:] == ["certify", "mask", "agree"]
    assert compiled.plain.stages == compiled.pruned.stages[:-2]


def test_packed_rows_choose_their_attention_once() -> None:
    chosen = policy(selector="threshold", fate="preserve", keep=0.5)
    planned = run_passes(BACK, plan(dense(), chosen, choose(chosen, "packed")))
    assert planned.plan.lowering.attention is None
    made = lower(planned)
    assert made.plan.lowering.attention in ("rows", "padded")
    names = [stage.name for stage in made.stages]
    assert names[names.index("attention") :] == ["attention", "pack rows", "agree"]


def test_what_is_fitted_stands_in_the_program_and_in_its_plan() -> None:
    torch.manual_seed(1)
    images = ImageSet(pixels(16) * torch.linspace(0.3, 2, 16).view(-1, 1, 1, 1), None, "images")
    compiled = compile_recognised(source().module, dense(), policy(**LEARNED), images)
    assert "calibrate" in stages(compiled)
    assert compiled.calibration is not None
    assert compiled.plain.plan.sites[0].keep == pytest.approx(compiled.calibration.counts[0], abs=1)
    threshold = compiled.pruned.module.get_buffer("prunec.site_0.threshold")
    assert float(threshold) != 0.0


def test_learned_parts_want_images_unless_they_are_to_stay_as_they_are() -> None:
    chosen = policy(**LEARNED)
    with pytest.raises(
        CalibrationError, match="'mine' has learned parts or thresholds, and there are no images"
    ):
        compile_recognised(source().module, dense(), chosen)
    compiled = compile_recognised(source().module, dense(), chosen, calibrate=False)
    assert "calibrate" not in stages(compiled)
    assert float(compiled.pruned.module.get_buffer("prunec.site_0.threshold")) == 0.0


def test_a_policy_that_learns_nothing_is_not_fitted() -> None:
    program = run_passes(BACK, plan(dense(), Policy.load("norm")))
    assert fit(dense(), program, Policy.load("norm"), ImageSet(pixels(16), None, "images")) is None
