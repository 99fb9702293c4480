"""Options that exclude each other, or that have no effect, are errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prunec
from prunec.errors import UsageError
from tests.planner.plans import plan_file
from tests.tiny import ViT, pixels

HOW = prunec.Measure(target="eager", batch=2, rounds=5)


def vit() -> ViT:
    return ViT(depth=4).eval()


GOAL = prunec.Goal(latency=0.6)
KEPT = prunec.Policy.load("evit", keep=0.5)
PLACED = prunec.Policy.load("evit", blocks=(1,))
LEARNED = prunec.Policy.load("svit")
EXCLUSIVE: list[tuple[str, Callable[..., Any], dict[str, Any], str]] = [
    ("goal and keep", prunec.optimize, {"policy": KEPT, "goal": GOAL}, "keep were given too"),
    ("goal and blocks", prunec.optimize, {"policy": PLACED, "goal": GOAL}, "blocks were given too"),
    ("goal and plan", prunec.optimize, {"policy": plan_file(), "goal": GOAL}, "a plan has its schedule"),
    (
        "goal and buckets", prunec.optimize, {"goal": GOAL, "mode": prunec.Padded((8,))},
        "a mode without options, got Padded",
    ),
    (
        "goal and max_tokens", prunec.optimize, {"goal": GOAL, "mode": prunec.Packed(9)},
        "a mode without options, got Packed",
    ),
    ("plan and keep", prunec.plan, {"policy": KEPT, "goal": GOAL}, "keep were given too"),
    ("plan and blocks", prunec.plan, {"policy": PLACED, "goal": GOAL}, "blocks were given too"),
    ("plan of a plan", prunec.plan, {"policy": plan_file(), "goal": GOAL}, "a plan has its schedule"),
    ("plan and points", prunec.plan, {"goal": GOAL, "search": prunec.Search(points=3)}, "points are of a"),
    ("sweep and keep", prunec.sweep, {"policy": KEPT}, "keep were given too"),
    ("sweep and blocks", prunec.sweep, {"policy": PLACED}, "blocks were given too"),
    ("sweep and predict", prunec.sweep, {"search": prunec.Search(build=False)}, "always built"),
    ("table and keep", prunec.latency_table, {"policy": KEPT}, "keep were given too"),
    ("table and rounds", prunec.latency_table, {"measure": HOW}, "rounds has no effect here"),
    (
        "table and calibrate", prunec.latency_table, {"measure": prunec.Measure(calibrate=False)},
        "calibrate has no effect here",
    ),
    ("plan and mode", prunec.transform, {"policy": plan_file(), "mode": "packed"}, "made for mode padded"),
    (
        "calibration and none", prunec.transform,
        {"policy": LEARNED, "calibration": pixels(4), "calibrate": False}, "calibrate=False",
    ),
    (
        "calibration of a part", prunec.transform,
        {"policy": LEARNED, "calibration": pixels(4), "submodule": "blocks"}, "cannot be calibrated",
    ),
    (
        "calibration of nothing", prunec.transform, {"calibration": pixels(4), "example": pixels()},
        "nothing to calibrate",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [pytest.param(*rest, id=name) for name, *rest in EXCLUSIVE],
)
def test_what_excludes_each_other(function: Callable[..., Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        function(vit(), **{"policy": "evit", **options})
    assert caught.value.where
    assert caught.value.remedy


@pytest.mark.parametrize("options", [{"trust_source": True}, {"allow_pickle": True}])
def test_a_model_that_is_given_needs_no_trust(options: dict[str, bool], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no effect") as caught:
        prunec.load(tmp_path, vit(), **options)  # type: ignore[arg-type]
    assert caught.value.where == "load"
