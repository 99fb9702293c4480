"""A plan as a file, of the tiny model."""

from __future__ import annotations

from typing import Any

from prunec.planner.planfile import PlanFile
from prunec.policy.policy import Policy


def plan_file(**changes: Any) -> PlanFile:
    given: dict[str, Any] = {
        "source": "mine", "policy": Policy.load("norm").model_dump(mode="json"), "target": "eager",
        "mode": "padded", "batch": 2, "schedule": {1: 20, 2: 12},
    }  # fmt: skip
    return PlanFile(**{**given, **changes})
