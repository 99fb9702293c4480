"""Changes of a valid policy, and the message that they get."""

from __future__ import annotations

from typing import Any

import pytest

from prunec.errors import PolicyError
from prunec.policy.policy import Policy
from tests.policies import GONE, step, written

KINDS = (
    "kind must be cls_attention, received_attention, norm, random, change, similarity, novelty, mlp, "
    "predictor, query, pre_net or grader"
)

SCORER = (
    "a mapping with the keys kind, hidden, importance, values, queries, depth, embedding, of, pairs, options"
)

SELECTOR = "keys kind, keep_per_site, remove, at, multiple_of, least, spare, stages, budget"

STEP = "sites, scorer, selector, fate, reactivate, weights, merge"

TRAINING = "relaxation, temperature, detached, losses, epochs, rate, gate_rate, warm_up, freeze, required"

COUNT = "must be a whole number from 1 to 65536"


def scoring(kind: str, **options: Any) -> dict[str, Any]:
    return {"scorer": {"kind": kind, **options}}


def choosing(kind: str, **options: Any) -> dict[str, Any]:
    return {"selector": {"kind": kind, **options}}


def merging(**options: Any) -> dict[str, Any]:
    return {"fate": "merge", "merge": options}


def trained(**options: Any) -> dict[str, Any]:
    return {"training": options}


def losing(**options: Any) -> dict[str, Any]:
    return trained(losses=[{"kind": "task"}, options])


def then(**changes: Any) -> dict[str, Any]:
    return {"then": [step(**changes)]}


BLOCKS: dict[str, Any] = {"sites__depths": GONE}

NO_KEEP: dict[str, Any] = {"selector__keep_per_site": GONE}

EXITING = {"fate": "exit", **scoring("grader"), **choosing("threshold", at=0.9)}


def mistake(changes: dict[str, Any]) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        Policy.load(written(**changes))
    return caught.value


def check(changes: dict[str, Any], said: str) -> None:
    """A mistake is one line, which names its place, the value and what is allowed."""
    error = mistake(changes)
    assert error.what.endswith(said)
    assert error.what.count("\n") == 0
    assert error.where == "the value given as policy"
    assert error.remedy == "correct the place named after the @"
