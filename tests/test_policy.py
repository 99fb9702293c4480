from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunec import policy
from prunec.errors import PolicyError
from prunec.policy import Policy

GONE = object()


def written(**changes: Any) -> dict[str, Any]:
    """A valid policy as a mapping, changed at `a__b=value` (that is, a.b); GONE removes the key."""
    data: dict[str, Any] = {
        "version": 1,
        "name": "mine",
        "summary": "What it does.",
        "sites": {"where": "before_block", "depths": [0.25, 0.5]},
        "scorer": {"kind": "norm"},
        "selector": {"kind": "top_k", "keep": 0.5},
        "fate": "drop",
    }
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[key] = value
        if value is GONE:
            del place[key]
    return data


# Each row: the changes to a valid policy, and what the message must say, all of it.
MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({"selector__keep": 1.5}, ["keep must be in (0, 1], got 1.5 @ selector.keep"]),
    ({"selector__keep": 0}, ["keep must be in (0, 1], got 0 @ selector.keep"]),
    ({"selector__keep": -0.1}, ["got -0.1 @ selector.keep"]),
    ({"selector__keep": math.nan}, ["keep must be in (0, 1], got nan @ selector.keep"]),
    ({"selector__keep": "0.5"}, ["keep must be in (0, 1], got '0.5' @ selector.keep"]),
    ({"selector__keep": True}, ["keep must be in (0, 1], got True @ selector.keep"]),
    ({"selector__keep": GONE}, ["keep is missing, it must be in (0, 1] @ selector.keep"]),
    (
        {"selector__kept": 0.5},
        ["unknown key 'kept', allowed: kind, keep, multiple_of, least, stages; nearest: keep @ selector"],
    ),
    (
        {"selector__kind": "topk"},
        ["kind must be top_k or threshold, got 'topk'; nearest: top_k @ selector.kind"],
    ),
    (
        {"selector__multiple_of": 0},
        ["multiple_of must be a whole number, 1 or more, got 0 @ selector.multiple_of"],
    ),
    ({"selector__multiple_of": 8.0}, ["a whole number, 1 or more, got 8.0 @ selector.multiple_of"]),
    (
        {"selector": 0.5},
        ["selector must be a mapping with the keys kind, keep, multiple_of, least, stages, got 0.5 @"],
    ),
    (
        {"scorer__kind": "cls_atention"},
        ["cls_attention, norm, random or mlp", "nearest: cls_attention @ scorer.kind"],
    ),
    (
        {"scorer__kind": ["norm"]},
        ["kind must be cls_attention, norm, random or mlp, got ['norm'] @ scorer.kind"],
    ),
    ({"scorer": GONE}, ["scorer is missing, it must be a mapping with the keys kind, hidden @ scorer"]),
    ({"fate": "fues"}, ["fate must be drop, fuse or preserve, got 'fues'; nearest: fuse @ fate"]),
    ({"fate": "fuse"}, ["fuse needs scorer.kind cls_attention", "norm scores are not @ fate"]),
    ({"fate": "fuse", "scorer__kind": "random"}, ["random scores are not @ fate"]),
    ({"sites__where": "after_mlp"}, ["where must be before_block or after_attention, got 'after_mlp'"]),
    ({"sites__blocks": [3]}, ["give one of blocks, depths and between, got blocks and depths @ sites"]),
    ({"sites__depths": GONE}, ["give one of blocks, depths and between, got none @ sites"]),
    ({"sites__depths": []}, ["depths must be a list of fractions of the depth, each in [0, 1), got [] @"]),
    ({"sites__depths": [0.5, 1.0]}, ["each in [0, 1), got 1.0 @ sites.depths[1]"]),
    ({"sites__depths": 0.5}, ["depths must be a list of fractions", "got 0.5 @ sites.depths"]),
    (
        {"sites__depths": GONE, "sites__blocks": [3, -1]},
        ["blocks must be a list of block numbers, counted from 0, got -1 @ sites.blocks[1]"],
    ),
    ({"sites__depths": GONE, "sites__blocks": [2.5]}, ["got 2.5 @ sites.blocks[0]"]),
    ({"sites": {1: 2, "where": "before_block", "depths": [0.5]}}, ["unknown key '1'", "@ sites.1"]),
    (
        {"sites__depths": GONE, "sites__between": [0.5, 0.25]},
        ["must rise", "got [0.5, 0.25] @ sites.between"],
    ),
    ({"sites__depths": GONE, "sites__between": [0.5]}, ["two fractions of the depth", "@ sites.between"]),
    ({"sites__depths": GONE, "sites__between": [0.5, 1.5]}, ["got 1.5 @ sites.between[1]"]),
    ({"sites__between": [0.5, 1.0]}, ["got depths and between @ sites"]),
    ({"scorer__hidden": 0.5}, ["hidden belongs to the scorer mlp, norm has no", "@ scorer.hidden"]),
    ({"scorer": {"kind": "mlp", "hidden": 0}}, ["hidden must be in (0, 4], got 0 @ scorer.hidden"]),
    ({"selector__least": 0}, ["least must be a whole number, 1 or more, got 0 @ selector.least"]),
    ({"selector__stages": 3}, ["selector.stages needs reactivate"]),
    ({"selector__kind": "threshold"}, ["fate drop needs selector.kind top_k", "@ fate"]),
    (
        {"selector__kind": "threshold", "fate": "fuse", "scorer__kind": "cls_attention"},
        ["fate fuse needs selector.kind top_k", "@ fate"],
    ),
    ({"reactivate": True}, ["reactivate needs fate preserve: what drop takes away", "@ reactivate"]),
    (
        {"reactivate": True, "fate": "preserve", "scorer__kind": "cls_attention"},
        ["reactivate needs a scorer of all tokens (norm, random, mlp)", "@ reactivate"],
    ),
    ({"reactivate": "yes"}, ["reactivate must be true or false, got 'yes' @ reactivate"]),
    ({"version": 2}, ["version must be 1, got 2 @ version"]),
    ({"version": GONE}, ["version is missing, it must be 1 @ version"]),
    ({"name": "My Policy"}, ["name must be lower-case letters", "got 'My Policy' @ name"]),
    ({"summary": "two\nlines"}, ["summary must be one line of text, got 'two\\nlines' @ summary"]),
    ({"summary": ""}, ["summary must be one line of text, got '' @ summary"]),
    ({"paper": 2202.07800}, ["paper must be text that names the paper, got 2202.078 @ paper"]),
    ({"protect": "cls"}, ["unknown key 'protect', allowed: version, name,", "@ protect"]),
    ({"scorers": {}}, ["unknown key 'scorers'", "nearest: scorer"]),
]


@pytest.mark.parametrize(("changes", "parts"), MISTAKES)
def test_a_mistake_names_its_place_the_value_and_what_is_allowed(
    changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load(written(**changes))
    assert [part for part in parts if part not in caught.value.what] == []
    assert caught.value.where
    assert caught.value.remedy


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load(written(selector__keep=2, fate="burn", version=GONE))
    assert [line.rpartition(" @ ")[2] for line in caught.value.what.splitlines()] == [
        "version",
        "selector.keep",
        "fate",
    ]


@pytest.mark.parametrize(
    ("name", "near"), [("evti", "evit"), ("EViT", "evit"), ("nrom", "norm"), ("rand", "random")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(PolicyError, match=f"there is no policy '{name}'; nearest: {near}") as caught:
        Policy.load(name)
    assert "choose one of dynamic, evit, none, norm, random" in (caught.value.remedy or "")


def test_a_name_that_is_near_to_nothing_gets_no_guess() -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load("zzzz")
    assert caught.value.what == "there is no policy 'zzzz'"


FILES: list[tuple[str, str, str]] = [
    ("mine.yaml", "a: [1", "is not valid YAML: while parsing"),
    ("mine.yaml", "", "a policy is a mapping of keys to values, got None"),
    ("mine.yml", "- 1\n", "a policy is a mapping of keys to values, got [1]"),
    ("mine.yaml", "name: a\nname: b\n", "the key 'name' is given twice"),
    ("mine.yaml", "scorer:\n  kind: norm\n  kind: random\n", "the key 'kind' is given twice"),
    ("mine.yaml", "name: !!python/object/apply:os.getcwd []\n", "is not valid YAML: could not determine"),
    ("mine.json", "{", "is not valid JSON: Expecting property name"),
    ("mine.json", '{"name": 1, "name": 2}', "the key 'name' is given twice"),
    ("mine.toml", "name = ", "is not valid TOML: "),
    ("mine.txt", "name: a", "a policy file ends in .yaml, .yml, .json, .toml, got 'mine.txt'"),
    ("mine", "name: a", "a policy file ends in .yaml, .yml, .json, .toml, got 'mine'"),
]


@pytest.mark.parametrize(("name", "text", "message"), FILES)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        Policy.load(str(path))
    assert message in caught.value.what
    assert caught.value.where == str(path)
    assert caught.value.remedy


def test_a_file_that_does_not_exist_says_so() -> None:
    with pytest.raises(PolicyError, match="cannot be read: No such file") as caught:
        Policy.load("nowhere.yaml")
    assert caught.value.where == "nowhere.yaml"
    assert "evit" in (caught.value.remedy or "")


def test_a_file_that_is_not_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(PolicyError, match="is not valid YAML: 'utf-8' codec"):
        Policy.load(tmp_path / "mine.yaml")


def test_toml_without_a_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(policy.importlib, "import_module", missing)
    (tmp_path / "mine.toml").write_text("version = 1")
    with pytest.raises(PolicyError, match="this Python cannot read TOML") as caught:
        Policy.load(tmp_path / "mine.toml")
    assert "tomli" in (caught.value.remedy or "")


def test_something_that_is_no_policy_at_all() -> None:
    with pytest.raises(PolicyError, match=r"a policy is a mapping of keys to values, got 0\.5"):
        Policy.load(0.5)  # type: ignore[arg-type]


# What is right ----------------------------------------------------------------------------------------------

TOML = """
version = 1
name = "mine"
summary = "What it does."
fate = "drop"
[sites]
where = "before_block"
depths = [0.25, 0.5]
[scorer]
kind = "norm"
[selector]
kind = "top_k"
keep = 0.5
"""


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    expected = Policy.load(written())
    for name, text in {
        "a.yaml": yaml.safe_dump(written()),
        "b.yml": yaml.safe_dump(written(), default_flow_style=True),
        "c.json": json.dumps(written()),
    }.items():
        (tmp_path / name).write_text(text)
        assert Policy.load(tmp_path / name) == expected
        assert Policy.load(str(tmp_path / name)) == expected


def test_toml_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    assert Policy.load(tmp_path / "mine.toml") == Policy.load(written())


def test_a_policy_loads_as_itself() -> None:
    mine = Policy.load(written())
    assert Policy.load(mine) is mine


def test_a_policy_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Policy.load("evit").fate = "drop"  # type: ignore[misc]


def test_the_mapping_given_is_not_changed() -> None:
    data = written()
    Policy.load(data).override(keep=0.9, blocks=[1])
    assert data == written()


def test_presets_are_in_name_order_and_named_like_their_files() -> None:
    presets = policy.presets()
    assert list(presets) == ["dynamic", "evit", "none", "norm", "random"]
    assert [preset.name for preset in presets.values()] == list(presets)
    assert all(Policy.load(name) == preset for name, preset in presets.items())


@pytest.mark.parametrize("name", ["dynamic", "evit", "none", "norm", "random"])
def test_a_preset_is_two_lines_of_comment_and_canonical_text(name: str) -> None:
    first, second, rest = (policy.PRESETS / f"{name}.yaml").read_text().split("\n", 2)
    assert first.startswith("# ")
    assert second.startswith("# ")
    assert rest == Policy.load(name).to_yaml()


def test_evit_is_evit() -> None:
    evit = Policy.load("evit")
    assert (evit.sites.where, evit.site_blocks(12)) == ("after_attention", (3, 6, 9))
    assert (evit.scorer.kind, evit.selector.keep, evit.fate) == ("cls_attention", 0.7, "fuse")
    assert evit.needs == {"class token"}


@pytest.mark.parametrize("name", ["norm", "random"])
def test_the_baselines_need_nothing(name: str) -> None:
    baseline = Policy.load(name)
    assert baseline.needs == frozenset()
    assert (baseline.sites.where, baseline.fate) == ("before_block", "drop")
    assert baseline.sites.depths == Policy.load("evit").sites.depths


def test_override_returns_a_new_policy() -> None:
    evit = Policy.load("evit")
    half = evit.override(keep=0.5)
    assert (half.selector.keep, evit.selector.keep) == (0.5, 0.7)
    assert half.override(keep=0.7) == evit
    assert evit.override() == evit


def test_overridden_blocks_replace_the_depths() -> None:
    mine = Policy.load("evit").override(blocks=[7, 4])
    assert (mine.sites.blocks, mine.sites.depths) == ((7, 4), None)
    assert mine.site_blocks(12) == (4, 7)


def test_an_override_is_checked_too() -> None:
    with pytest.raises(PolicyError, match=r"keep must be in \(0, 1\], got 1.5 @ selector.keep") as caught:
        Policy.load("evit").override(keep=1.5)
    assert caught.value.where == "an override of policy evit"
    with pytest.raises(PolicyError, match=r"depths must be .* got \[\] @ sites.depths"):
        Policy.load({**Policy.load("evit").model_dump(), "sites": {"where": "before_block", "depths": []}})


def test_no_block_is_a_policy_without_sites() -> None:
    assert Policy.load("none").site_blocks(12) == ()
    assert Policy.load("evit").override(blocks=[]).site_blocks(12) == ()


@given(
    keep=st.floats(0, 1, exclude_min=True),
    multiple_of=st.integers(1, 64),
    blocks=st.none() | st.lists(st.integers(0, 40), min_size=1),
    depths=st.lists(st.floats(0, 1, exclude_max=True), min_size=1),
    summary=st.text("abc: #'\"-[]{}é", min_size=1).filter(str.strip),
)
def test_yaml_round_trip(
    keep: float, multiple_of: int, blocks: list[int] | None, depths: list[float], summary: str
) -> None:
    sites: dict[str, Any] = {"where": "after_attention"}
    sites.update({"blocks": blocks} if blocks else {"depths": depths})
    mine = Policy.load(
        written(sites=sites, selector__keep=keep, selector__multiple_of=multiple_of, summary=summary)
    )
    text = mine.to_yaml()
    assert Policy.load(yaml.safe_load(text)) == mine
    assert Policy.load(policy._parse_yaml(text)).to_yaml() == text  # type: ignore[arg-type]


@given(depths=st.lists(st.floats(0, 1, exclude_max=True), min_size=1), layers=st.integers(1, 64))
def test_site_blocks_lie_in_the_model_sorted_and_once(depths: list[float], layers: int) -> None:
    blocks = Policy.load(written(sites__depths=depths)).site_blocks(layers)
    assert list(blocks) == sorted(set(blocks))
    assert set(blocks) <= set(range(layers))
    assert len(blocks) >= 1


@given(st.integers(1, 100).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(0, layers - 1))))
def test_a_fraction_of_the_depth_is_exactly_its_block(case: tuple[int, int]) -> None:
    layers, block = case
    assert Policy.load(written(sites__depths=[block / layers])).site_blocks(layers) == (block,)


def test_a_decimal_fraction_is_not_rounded_down_a_block() -> None:
    assert Policy.load(written(sites__depths=[0.29])).site_blocks(100) == (29,)


@pytest.mark.parametrize(("layers", "blocks"), [(12, (3, 6, 9)), (24, (6, 12, 18)), (2, (0, 1)), (1, (0,))])
def test_site_blocks_follow_the_depth(layers: int, blocks: tuple[int, ...]) -> None:
    assert Policy.load("evit").site_blocks(layers) == blocks


def test_a_block_outside_the_model_is_refused() -> None:
    with pytest.raises(PolicyError, match="block 8 does not exist, the model has blocks 0 to 7") as caught:
        Policy.load("evit").override(blocks=[0, 8]).site_blocks(8)
    assert caught.value.where == "policy evit"
    assert "depths" in (caught.value.remedy or "")


@pytest.mark.parametrize("mine", [Policy.load("evit"), Policy.load("evit").override(blocks=[0])])
def test_a_model_without_blocks_is_refused(mine: Policy) -> None:
    with pytest.raises(PolicyError, match="the model has no blocks"):
        mine.site_blocks(0)


def test_nearest_puts_the_best_first() -> None:
    names = ["cls_attention", "norm", "random"]
    assert policy.nearest("cls_attn", names)[0] == "cls_attention"
    assert policy.nearest("xyz", names) == ()
