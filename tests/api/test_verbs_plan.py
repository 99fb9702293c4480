"""A plan is found for one goal, and is taken in the place of a policy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prunec
from prunec.errors import PolicyError, UsageError
from prunec.latency.roofline import Ceilings
from prunec.planner.result import PlanResult
from tests.planner.plans import plan_file
from tests.tiny import ViT, pixels

pytestmark = pytest.mark.usefixtures("recognised_once")

HOW = prunec.Measure(target="eager", batch=2, rounds=5)


def vit() -> ViT:
    return ViT(depth=4).eval()


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> PlanResult:
    """For a device of which shorter streams are faster whatever runs beside the test."""
    how = prunec.Measure(target="eager", batch=2)
    table = prunec.latency_table(
        vit(), "evit", example=pixels(), mode="static", device=Ceilings(1e9, 1e9, launch=0.0), measure=how
    )
    file = tmp_path_factory.mktemp("tables") / "table.json"
    table.write(file)
    search = prunec.Search(first=1, build=False, mode="static", table=file)
    return prunec.plan(vit(), "evit", prunec.Goal(max_drop=1e3), example=pixels(), search=search, measure=how)


def test_a_plan_is_what_transform_takes(planned: PlanResult) -> None:
    fast = prunec.transform(vit(), planned, example=pixels())
    sites = fast.__dict__["program"].plan.sites
    assert {site.block: site.leaves for site in sites} == planned.decision.chosen.schedule
    assert sites
    assert str(fast.__dict__["program"].plan.lowering) == "static"


def test_a_plan_is_what_optimize_takes(planned: PlanResult, tmp_path: Path) -> None:
    model = vit()
    result = prunec.optimize(model, planned, example=pixels(), measure=HOW)
    assert result.report.planned is planned
    assert result.report.as_dict()["planner"]["goal"] == {"share": None, "loss": 1e3}
    loaded = prunec.load(prunec.save(result, tmp_path / "out"), model, example=pixels())
    assert loaded.__dict__["program"].plan.sites == result.module.__dict__["program"].plan.sites


def test_a_plan_file_is_what_transform_takes() -> None:
    plan = prunec.transform(vit(), plan_file(), example=pixels()).__dict__["program"].plan
    assert {site.block: site.leaves for site in plan.sites} == {1: 20, 2: 12}
    assert plan.lowering.mode == "padded"
    mode = prunec.Padded(buckets=(16, 24))
    plan = prunec.transform(vit(), plan_file(), example=pixels(), mode=mode).__dict__["program"].plan
    assert plan.lowering.buckets == (16, 24)
    with pytest.raises(PolicyError, match=r"block 9.* 0 to 3"):
        prunec.transform(vit(), plan_file(schedule={9: 12}), example=pixels())


PUBLIC = [getattr(prunec, name) for name in prunec.__all__]
FUNCTIONS: list[Callable[..., Any]] = [value for value in PUBLIC if inspect.isfunction(inspect.unwrap(value))]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_no_function_has_more_than_seven_parameters(function: Callable[..., Any]) -> None:
    assert len(inspect.signature(function).parameters) <= 7
    assert inspect.getdoc(function)


@pytest.mark.parametrize(
    ("field", "value"), [("batch", 0), ("batch", 1.5), ("rounds", 0), ("threads", -1), ("threads", "2")]
)
def test_what_cannot_be_measured(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{field} must be a whole number of at least 1"):
        prunec.Measure(**{field: value})
