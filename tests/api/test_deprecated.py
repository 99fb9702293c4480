"""Old spellings work for one release, do what they did, and say what to write instead."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest

import prunec
from prunec.api.deprecated import SPELLINGS, old_spellings
from prunec.measure.measure import Measure
from prunec.policy.modes import Packed, Padded
from prunec.policy.policy import Policy
from tests.tiny import ViT, pixels


@old_spellings
def given(
    model: str, policy: Any, *, submodule: Any = None, mode: Any = None, calibrate: bool = True
) -> dict[str, Any]:
    return {"policy": policy, "submodule": submodule, "mode": mode, "calibrate": calibrate}


OLD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"keep": 0.25}, {"policy": Policy.load("evit", keep_per_site=0.25)}),
    ({"blocks": (1, 2)}, {"policy": Policy.load("evit", blocks=(1, 2))}),
    ({"restore": "stale"}, {"policy": Policy.load("evit", restore="stale")}),
    ({"keep": 0.25, "blocks": (1,)}, {"policy": Policy.load("evit", keep_per_site=0.25, blocks=(1,))}),
    ({"within": "backbone"}, {"submodule": "backbone"}),
    ({"untrained": True}, {"calibrate": False}),
    ({"untrained": False}, {"calibrate": True}),
    ({"mode": "padded", "buckets": (64, 32)}, {"mode": Padded((32, 64))}),
    ({"buckets": (64,)}, {"mode": Padded((64,))}),
    ({"mode": "packed", "bound": 99}, {"mode": Packed(99)}),
    ({"keep": None, "buckets": (), "bound": None}, {}),  # what they were when left out
]


@pytest.mark.parametrize(("old", "new"), OLD, ids=[" ".join(old) for old, _ in OLD])
def test_an_old_spelling_does_what_it_did(old: dict[str, Any], new: dict[str, Any]) -> None:
    with pytest.warns(DeprecationWarning, match="is now") as caught:
        found = given("model", "evit", **old)
    assert found == {"policy": "evit", "submodule": None, "mode": None, "calibrate": True, **new}
    said = [str(warning.message) for warning in caught]
    spelled = {name: text for name, parameter, text in SPELLINGS if parameter != "measure"}
    assert said == [f"given({name}=...) is now {text}" for name, text in spelled.items() if name in old]
    assert {warning.filename for warning in caught} == {__file__}


@old_spellings
def measured(model: str, policy: Any, *, mode: Any = None, measure: Measure | None = None) -> Any:
    return policy, mode, measure


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"target": "eager"}, Measure(target="eager")),
        ({"batch": 2, "rounds": 5}, Measure(batch=2, rounds=5)),
        ({"preprocess": {"crop": 0.9}}, Measure(preprocess={"crop": 0.9})),
        ({"untrained": True}, Measure(calibrate=False)),
        ({"batch": 2, "measure": Measure(target="eager")}, Measure(target="eager", batch=2)),
    ],
)
def test_what_is_measured_has_one_value(old: dict[str, Any], new: Measure) -> None:
    with pytest.warns(DeprecationWarning, match=r"is now measure=Measure\("):
        assert measured("model", "evit", **old) == ("evit", None, new)


def test_a_function_takes_only_the_old_keywords_that_it_had() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'target'"):
        given("model", "evit", target="eager")
    with pytest.raises(TypeError, match="unexpected keyword argument 'within'"):
        measured("model", "evit", within="part")


def test_the_new_spellings_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = given("model", policy="evit", submodule="a", mode="padded", calibrate=False)
    assert found == {"policy": "evit", "submodule": "a", "mode": "padded", "calibrate": False}


def test_an_unknown_keyword_is_unknown() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'kep'"):
        given("model", "evit", kep=0.5)


def test_a_real_one() -> None:
    model = ViT(depth=2).eval()
    with pytest.warns(DeprecationWarning, match="is now"):
        before = prunec.transform(model, policy="norm", keep=0.5, blocks=(1,), example=pixels())  # type: ignore[call-arg]
    new = prunec.transform(model, Policy.load("norm", keep_per_site=0.5, blocks=(1,)), example=pixels())
    assert before.__dict__["program"].plan == new.__dict__["program"].plan
    old = {name for name, *_ in SPELLINGS}
    assert not old & set(inspect.signature(prunec.transform).parameters)
