"""Modes as values: each has its own options and no other, a name means the mode without any."""

from __future__ import annotations

from typing import Any

import pytest

import prunec
from prunec.errors import UsageError
from prunec.policy.modes import NAMES, Masked, Mode, Packed, Padded, Static, as_mode, name_of, with_options

VALUES: dict[str, Mode] = {"static": Static(), "padded": Padded(), "packed": Packed(), "masked": Masked()}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_the_mode(name: str) -> None:
    assert as_mode(name) == as_mode(VALUES[name]) == as_mode(type(VALUES[name])) == VALUES[name]  # type: ignore[arg-type]
    assert name_of(VALUES[name]) == name
    assert type(VALUES[name]).__name__ in prunec.__all__


@pytest.mark.parametrize("given", ["paded", None, 3, ("padded",)])
def test_what_is_no_mode(given: Any) -> None:
    with pytest.raises(UsageError) as caught:
        as_mode(given)
    assert caught.value.what.startswith("unknown mode ")
    assert caught.value.remedy == "modes: static, padded, packed, masked"


def test_buckets_are_sorted() -> None:
    assert Padded(buckets=(64, 32)) == Padded((32, 64))
    assert Padded([64]).buckets == (64,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "value"), [(Padded, (0,)), (Padded, (64, 1.5)), (Packed, 0), (Packed, -1), (Packed, True)]
)
def test_options_are_numbers_of_tokens(kind: Any, value: Any) -> None:
    with pytest.raises(UsageError, match="1 or more, got") as caught:
        kind(value)
    assert caught.value.where == f"mode {name_of(kind())}"
    assert f"{kind.__name__}(" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        (None, {}, None),
        ("packed", {}, "packed"),
        ("padded", {"buckets": [64]}, Padded((64,))),
        (None, {"buckets": [64]}, Padded((64,))),
        ("packed", {"max_tokens": 9}, Packed(9)),
        (None, {"max_tokens": 9}, Packed(9)),
    ],
)
def test_options_beside_a_name(mode: Any, options: dict[str, Any], expected: Any) -> None:
    assert with_options(mode, **options) == expected


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("packed", {"buckets": (8,)}),
        ("static", {"buckets": (8,)}),
        ("padded", {"max_tokens": 8}),
        ("masked", {"max_tokens": 8}),
        (Padded((8,)), {"buckets": (8,)}),
        (None, {"buckets": (8,), "max_tokens": 8}),
        ("padded", {"buckets": (8,), "max_tokens": 8}),
    ],
)
def test_options_of_another_mode(mode: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"(buckets|max_tokens) is an option of mode (padded|packed), got"):
        with_options(mode, **options)
