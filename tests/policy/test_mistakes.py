"""Which mistakes of a policy are told, and how shortly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.errors import PolicyError
from prunec.policy.policy import Policy
from tests.policies import GONE, written


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load(written(selector__keep_per_site=2, fate="burn", version=GONE))
    assert [line.rpartition(" @ ")[2] for line in caught.value.what.splitlines()] == [
        "version",
        "selector.keep_per_site",
        "fate",
    ]


def test_a_name_that_is_near_to_nothing_gets_no_guess() -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load("zzzz")
    assert caught.value.what == "there is no policy 'zzzz'"


NAMES = [
    "kind",
    "where",
    "keep",
    "norm",
    "losses",
    "fate",
    "sites",
    "scorer",
    "selector",
    "options",
    "merge",
    "x",
]


def test_of_very_many_mistakes_the_first_few_are_reported() -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load(written() | {f"key{number}": 1 for number in range(300_000)})
    lines = caught.value.what.splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("unknown key 'key0', allowed: version, name, ")
    assert lines[-1] == "and 299992 more mistakes"


@pytest.mark.parametrize(
    "value",
    [
        10**5000,
        "a" * 10**6,
        [[1] * 10**4] * 100,
        {1: {2: 3}},
        b"\xff",
        float("nan"),
        {"\ud800\n": 1},
        {(1,): 2},
    ],
    ids=["digits", "text", "lists", "numbers as keys", "bytes", "nan", "surrogate", "tuple as key"],
)
@pytest.mark.parametrize(
    "place",
    [
        "version",
        "name",
        "sites",
        "sites__blocks",
        "scorer__kind",
        "scorer__options",
        "selector__keep_per_site",
        "x",
    ],
)
def test_whatever_the_value_is_the_message_is_short(place: str, value: Any) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load(written(**{place: value}))
    assert f"@ {place.replace('__', '.')}" in caught.value.what
    assert len(caught.value.what) < 3000
    caught.value.what.encode()


@given(
    st.sampled_from(
        ["version", "name", "fate", "sites", "scorer", "selector", "restore", "then", "training"]
    ),
    st.sampled_from(
        ["", "__blocks", "__between", "__kind", "__keep_per_site", "__options", "__stages", "__losses"]
    ),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.sampled_from(NAMES),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
        ),
    ),
)
def test_any_value_at_any_place_is_read_or_refused(section: str, key: str, value: Any) -> None:
    data = written()
    if key and isinstance(data.get(section, {}), dict):
        value = {**data.get(section, {}), key.removeprefix("__"): value}
    try:
        Policy.load({**data, section: value})
    except PolicyError as error:
        assert len(error.what) < 6000  # noqa: PT017


def test_a_mapping_inside_itself() -> None:
    inside: dict[str, Any] = {}
    inside["scorer"] = inside
    with pytest.raises(PolicyError, match="unknown key 'scorer'"):
        Policy.load(written(scorer=inside))
