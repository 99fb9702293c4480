"""A valid policy as a mapping, and how to change it."""

from __future__ import annotations

from typing import Any

GONE = object()


def written(**changes: Any) -> dict[str, Any]:
    """A valid policy, changed at `a__b=value` (that is, a.b); GONE removes the key."""
    data: dict[str, Any] = {"version": 1, "name": "mine", "summary": "What it does.", **_step([0.25, 0.5])}
    return _changed(data, changes)


def step(**changes: Any) -> dict[str, Any]:
    """A valid further step, for `then`, changed in the same way."""
    return _changed(_step([0.75]), changes)


def _step(depths: list[float]) -> dict[str, Any]:
    return {
        "sites": {"where": "before_block", "depths": depths},
        "scorer": {"kind": "norm"},
        "selector": {"kind": "top_k", "keep_per_site": 0.5},
        "fate": "drop",
    }


def _changed(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[key] = value
        if value is GONE:
            del place[key]
    return data
