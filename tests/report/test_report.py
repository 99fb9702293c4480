from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from prunec.calibration.calibrate import Calibration
from prunec.data.preprocess import Preprocess
from prunec.ir.program import Stage
from prunec.measure.cost import Timing
from prunec.measure.fidelity import outputs_of
from prunec.measure.figures import Latency
from prunec.measure.scores import Compared, Comparison, Score
from prunec.policy.policy import Policy
from prunec.policy.site_plan import Plan, Site
from prunec.report.report import Report
from prunec.structure import Anatomy, NoMatch
from prunec.verify.certificate import Certificate

ANATOMY = Anatomy(
    blocks=(), tokens=26, prefix=1, suffix=0, token_dim=1, class_token=0, head=("class token",), taps=(),
    states=("s0",), pixels="x",
)  # fmt: skip
SITES = (Site(1, "after_attention", 26, 13, 15), Site(2, "after_attention", 15, 7, 9))
RULES = Policy.load("evit").override(keep_per_site=0.5)
POLICY = RULES.model_dump(mode="json")
SCORE = Score(similarity=0.9, agreement=0.8, divergence=0.1, accuracy=0.75)
BARE = Report(
    source="shapes",
    weights="shipped",
    target="eager",
    policy=POLICY,
    anatomy=ANATOMY,
    plan=Plan(RULES, SITES),
    stages=(Stage("plan", 0.1, {"sites": 2}), Stage("repair tokens", 0.2, {"literals": 4, "region_ends": 0})),
    certificate=Certificate(0.0, 2.5e-7, 1e-5, 0.1, 2, own_counts=1.2e-7),
)
LATENCY = Latency(
    {
        "dense": Timing("dense", (0.02, 0.02, 0.02)),
        "pruned": Timing("pruned", (0.01, 0.01, 0.01)),
        "ideal": Timing("ideal", (0.008, 0.008, 0.008)),
    },
    batch=8,
    facts={"device": "a CPU", "torch": "2.99", "threads": 1},
)
FULL = dataclasses.replace(
    BARE,
    flops={"dense": 4_000_000_000, "pruned": 2_000_000_000},
    images="held-out images",
    accuracy=Comparison(
        100, 5, dataclasses.replace(SCORE, accuracy=0.99), SCORE, SCORE, Score(0, 0, 0, 0.02)
    ),
    latency=LATENCY,
    notes=("the weights are random",),
    artefact="out",
)


def lines(report: Report) -> list[str]:
    return report.text().splitlines()


def test_text_of_everything() -> None:
    assert FULL.text() == (
        "model        shapes (shipped weights)\n"
        "recognised   0/0 blocks, 25 patch tokens + 1 in front protected, head reads class token\n"
        "policy       evit, keep 0.5 per site, target eager\n"
        "mode         static\n"
        "sites        after attention of block 1: 26 -> 15 tokens\n"
        "             after attention of block 2: 15 -> 9 tokens\n"
        "repairs      literals 4, region ends 0\n"
        "certificate  identity at keep=1.0: 0.0e+00\n"
        "             permutation of all tokens: 2.5e-07\n"
        "             own counts: 1.2e-07\n"
        "             (largest relative difference from the original, allowed 1e-05)\n"
        "FLOPs        4.00 G -> 2.00 G an image (50%)\n"
        "accuracy     on 100 held-out images\n"
        "             dense     99.00%\n"
        "             pruned    75.00%\n"
        "             random    75.00% ± 2.00 (the same counts, 5 seeds)\n"
        "latency      batch 8, a CPU, torch 2.99, threads 1\n"
        "             dense       20.00 ms ±0%\n"
        "             pruned      10.00 ms ±0%  x2.00\n"
        "             ideal        8.00 ms ±0%  x2.50\n"
        "             pruned reaches 80% of the ideal (plain slices, no scoring)\n"
        "verdict      2.00 times as fast as the dense model\n"
        "note         the weights are random\n"
        "artefact     out\n"
    )


def test_text_says_what_was_not_measured() -> None:
    assert lines(BARE)[-2:] == [
        "fidelity     not measured",
        "latency      not measured",
    ]
    assert not any(line.startswith(("FLOPs", "artefact", "note")) for line in lines(BARE))


def test_text_names_what_was_not_recognised_and_what_the_plan_left_out() -> None:
    miss = NoMatch("no attention between two adds", "add_9", "blocks.9")
    plan = dataclasses.replace(BARE.plan, notes=("no site at block 3: as many would leave",))
    said = lines(
        dataclasses.replace(BARE, anatomy=dataclasses.replace(ANATOMY, unmatched=(miss,)), plan=plan)
    )
    assert "             not recognised: no attention between two adds (blocks.9)" in said
    assert said[said.index("sites        after attention of block 1: 26 -> 15 tokens") + 2] == (
        "             no site at block 3: as many would leave"
    )


def test_text_of_a_model_without_repairs_or_sites() -> None:
    report = dataclasses.replace(BARE, stages=(), plan=Plan(RULES, ()))
    assert "repairs" in lines(report)
    assert not any(line.startswith("sites") for line in lines(report))


def faithful(**scores: Score) -> Report:
    (output,) = outputs_of([("logits", (7,))])
    compared = Comparison(32, 5, SCORE, SCORE, outputs=(Compared(output, scores),))
    return dataclasses.replace(FULL, accuracy=compared)


def test_what_outputs_are_worth_is_in_the_verdict_and_at_the_top() -> None:
    far = dataclasses.replace(SCORE, relative_l2=1.5)
    near, spread = dataclasses.replace(SCORE, relative_l2=0.1), Score(0, 0.01, 0.01)
    poor = faithful(pruned=far, random=far, spread=spread)
    zeros, chance = poor.warnings
    assert "relative L2 1.50" in zeros
    assert chance.startswith("no better than random tokens")
    assert lines(poor)[:2] == [f"WARNING      {zeros}", f"WARNING      {chance}"]
    assert poor.verdict.startswith("2.00 times as fast as the dense model; same best class")
    assert poor.verdict.endswith("outputs are worse than zeros; no better than random tokens")
    assert poor.useless
    assert poor.as_dict()["warnings"] == [zeros, chance]
    assert poor.as_dict()["useless"] == poor.useless
    good = faithful(pruned=near, random=dataclasses.replace(near, agreement=0.5), spread=spread)
    assert (good.warnings, good.useless) == ((), "")
    assert not lines(good)[0].startswith("WARNING")


@pytest.mark.parametrize("change", [{"weights": "random"}, {"untrained": True}])
def test_weights_that_mean_nothing_are_not_judged(change: dict[str, Any]) -> None:
    far = dataclasses.replace(SCORE, relative_l2=1.5)
    poor = dataclasses.replace(faithful(pruned=far), **change)
    assert (poor.warnings, poor.useless) == ((), "")
    assert "same best class" in poor.verdict


def test_a_calibration_that_predicts_little_is_told_at_the_top() -> None:
    weak = Calibration(63, "images", fits=(0.29,), shares=(), counts=(), seconds=1.0)
    few, little = dataclasses.replace(FULL, calibration=weak).warnings
    assert "63 images only" in few
    assert "0.29" in little
    enough = dataclasses.replace(weak, images=64, fits=(0.3,))
    assert dataclasses.replace(FULL, calibration=enough).warnings == ()


def test_dict_is_plain_data() -> None:
    data = json.loads(json.dumps(FULL.as_dict()))
    assert list(data) == [
        "source", "submodule", "arch", "example", "weights", "target", "precision", "written",
        "policy", "anatomy", "plan", "stages",
        "certificate", "calibration", "flops", "images", "preprocess", "accuracy", "latency", "parity",
        "targets", "verdict",
        "warnings", "useless", "planner", "notes", "artefact",
    ]  # fmt: skip
    assert data["anatomy"]["summary"] == ANATOMY.summary()
    assert data["plan"]["sites"][1] == {
        "block": 2, "where": "after_attention", "tokens": 15, "keep": 7, "leaves": 9, "ragged": False,
        "step": 0, "known": True,
    }  # fmt: skip
    assert data["latency"]["rows"]["pruned"] == {"median_ms": 10.0, "spread": 0.0, "speedup": 2.0}
    assert data["latency"]["ideal_over_pruned"] == 0.8
    assert (data["latency"]["batch"], data["latency"]["device"]) == (8, "a CPU")
    assert data["accuracy"]["random"]["accuracy"] == 0.75
    assert data["certificate"]["permutation"] == 2.5e-7


def timed(pruned: float) -> Report:
    timings = {**LATENCY.timings, "pruned": Timing("pruned", (pruned,) * 3)}
    return dataclasses.replace(FULL, latency=dataclasses.replace(LATENCY, timings=timings))


def test_the_verdict_is_given_always() -> None:
    slower = (
        "slower than the dense model (x0.80): use the model as it is, or try another batch, policy or target"
    )
    assert f"verdict      {slower}" in lines(timed(0.025))
    assert lines(timed(0.025))[0] == f"WARNING      {slower}"
    assert timed(0.025).as_dict()["verdict"] == slower
    assert timed(0.025).as_dict()["warnings"] == [slower]
    assert timed(0.01).warnings == ()
    assert timed(0.0198).verdict == (
        "the pruned model is 1.01 times as fast as the dense one, which is no gain"
    )
    assert timed(0.01).verdict == "2.00 times as fast as the dense model"
    assert BARE.verdict == ""


def test_text_says_what_became_of_pictures() -> None:
    how = Preprocess(32, (0.4, 0.5, 0.6), 0.25, (37, 37), origin="the model's processor")
    said = "scaled (bicubic) to cover 37 x 37, cropped to 32 x 32, mean 0.4, 0.5, 0.6, std 0.25, 0.25, 0.25"
    report = dataclasses.replace(FULL, preprocess=how)
    assert f"pictures     {said} (the model's processor)" in lines(report)
    assert json.loads(json.dumps(report.as_dict()))["preprocess"]["scaled"] == [37, 37]
    guess = dataclasses.replace(FULL, preprocess=Preprocess(32, fit="stretch"))
    assert "pictures     bicubic to 32 x 32, mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5 (a guess)" in lines(guess)


def test_dict_of_a_bare_report() -> None:
    data = BARE.as_dict()
    assert (data["accuracy"], data["latency"], data["artefact"], data["flops"]) == (None, None, None, {})


def test_at_returns_another_report() -> None:
    assert lines(BARE.at("there"))[-1] == "artefact     there"
    assert BARE.artefact is None


def test_html_stands_by_itself_and_says_what_the_text_says() -> None:
    page = FULL.html()
    assert page.startswith("<!doctype html>\n")
    assert "<title>prunec: shapes, evit</title>" in page
    assert page.count("<tr>") == len(lines(FULL))
    assert "<tr><th>policy</th><td>evit, keep 0.5 per site, target eager</td></tr>" in page
    assert "{" not in page.partition("</style>")[2]
    assert "http" not in page
    assert "src=" not in page


def test_html_escapes() -> None:
    hostile: dict[str, Any] = {"source": "<script>a&b</script>", "notes": ("<img>",)}
    page = dataclasses.replace(FULL, **hostile).html()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;a&amp;b&lt;/script&gt; (shipped weights)" in page
