from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunec import documents
from prunec.errors import PolicyError
from prunec.policy import policy
from prunec.policy.policy import Policy
from tests.policies import written


@pytest.mark.parametrize(
    ("name", "near"), [("evti", "evit"), ("EViT", "evit"), ("nrom", "norm"), ("rand", "random")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(PolicyError, match=f"there is no policy '{name}'; nearest: {near}") as caught:
        Policy.load(name)
    assert "choose one of algm, ats, bavit, cover, cropr, cropr-drop, diffrate, " in (
        caught.value.remedy or ""
    )


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

    monkeypatch.setattr(documents.importlib, "import_module", missing)
    (tmp_path / "mine.toml").write_text("version = 1")
    with pytest.raises(PolicyError, match="this Python cannot read TOML") as caught:
        Policy.load(tmp_path / "mine.toml")
    assert "tomli" in (caught.value.remedy or "")


def test_something_that_is_no_policy_at_all() -> None:
    with pytest.raises(PolicyError, match=r"mapping of keys to values, got 0\.5"):
        Policy.load(0.5)  # type: ignore[arg-type]


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
keep_per_site = 0.5
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


THEN_AND_TRAINING = """
version = 1
name = "mine"
summary = "Merge, then merge more, and train."
fate = "merge"
attention = "proportional"
sites = { where = "after_attention", blocks = [0] }
scorer = { kind = "similarity", pairs = "windows" }
selector = { kind = "threshold", at = 0.9 }
[[then]]
fate = "merge"
sites = { where = "after_attention", between = [0.25, 0.5] }
scorer = { kind = "cls_attention", values = true }
selector = { kind = "top_k", keep_per_site = [0.9, 0.8, 0.7] }
merge = { mean = "plain", forget = 0.5 }
[training]
epochs = 3
rate = 1e-4
[[training.losses]]
kind = "task"
[[training.losses]]
kind = "ratio"
weight = 2.0
over = "image"
"""


def test_further_steps_and_training_in_all_formats(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(THEN_AND_TRAINING)
    mine = Policy.load(tmp_path / "mine.toml")
    assert [step.scorer.kind for step in mine.steps] == ["similarity", "cls_attention"]
    assert mine.then[0].selector.keep_per_site == (0.9, 0.8, 0.7)
    assert mine.training is not None
    assert [(loss.kind, loss.over) for loss in mine.training.losses] == [("task", None), ("ratio", "image")]
    (tmp_path / "mine.yaml").write_text(mine.to_yaml())
    (tmp_path / "mine.json").write_text(mine.model_dump_json())
    assert Policy.load(tmp_path / "mine.yaml") == Policy.load(tmp_path / "mine.json") == mine
    assert "    - {kind: ratio, weight: 2.0, over: image}\n" in mine.to_yaml()


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.0e-5", "0.00001"])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, number: str) -> None:
    text = Policy.load(written()).to_yaml() + f"training: {{rate: {number}}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    training = Policy.load(tmp_path / "mine.yaml").training
    assert training is not None
    assert training.rate == 1e-5


def test_text_that_looks_like_a_number_stays_text() -> None:
    mine = Policy.load(written(summary="1e5"))
    assert Policy.load(documents.parse(mine.to_yaml().encode(), "yaml")) == mine  # type: ignore[arg-type]


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


# What each preset needs, and the tasks whose heads get what they read.
HEADS = ("classification", "detection", "segmentation")

TRAINED = {"calibration", "training for the paper's accuracy"}

PRESETS: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "algm": ({"a known grid"}, HEADS),
    "ats": ({"class token"}, HEADS),
    "bavit": (TRAINED, HEADS),
    "cover": ({"calibration"}, HEADS),
    "cropr": (TRAINED, HEADS),
    "cropr-drop": (TRAINED, HEADS),
    "diffrate": ({"class token"}, HEADS),
    "dtop": ({"class scores of tokens", *TRAINED}, ("segmentation",)),
    "dynamic": ({"calibration"}, HEADS),
    "dynamicvit": (TRAINED, HEADS),
    "evit": ({"class token"}, HEADS),
    "none": (set(), HEADS),
    "norm": (set(), HEADS),
    "pomt": ({"attention map"}, HEADS),
    "random": (set(), HEADS),
    "representation-shift": (set(), HEADS),
    "svit": (TRAINED, HEADS),
    "tome": (set(), HEADS),
}


def test_presets_are_in_name_order_and_named_like_their_files() -> None:
    presets = policy.presets()
    assert list(presets) == list(PRESETS)
    assert [preset.name for preset in presets.values()] == list(presets)
    assert all(Policy.load(name) == preset for name, preset in presets.items())


def test_what_each_preset_needs_and_fits() -> None:
    assert {name: (set(each.needs), each.fits) for name, each in policy.presets().items()} == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_two_lines_of_comment_and_canonical_text(name: str, tmp_path: Path) -> None:
    first, second, rest = (policy.PRESETS / f"{name}.yaml").read_text().split("\n", 2)
    assert first.startswith("# ")
    assert second.startswith("# ")
    preset = Policy.load(name)
    assert rest == preset.to_yaml()
    (tmp_path / "mine.yaml").write_text(preset.to_yaml())
    assert Policy.load(tmp_path / "mine.yaml") == preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_as_json(name: str, tmp_path: Path) -> None:
    preset = Policy.load(name)
    (tmp_path / "mine.json").write_text(preset.model_dump_json())
    assert Policy.load(tmp_path / "mine.json") == preset


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_keep_per_site_of_every_preset_can_be_overridden(name: str, keep: float) -> None:
    steps = Policy.load(name).override(keep_per_site=keep).steps
    assert {step.selector.keep_per_site for step in steps} == {keep}
    assert {step.selector.remove for step in steps} == {step.selector.at for step in steps} == {None}
    assert {step.selector.kind for step in steps} <= {"top_k", "threshold", "sampling"}


@pytest.mark.parametrize("name", PRESETS)
def test_the_places_of_every_preset_can_be_overridden(name: str) -> None:
    preset = Policy.load(name)
    assert preset.override(blocks=[7, 4]).site_blocks(12) == (4, 7)
    moved = preset.override(sites={"where": "before_block", "between": [0.5, 0.75]})
    assert {step.sites.where for step in moved.steps} == {"before_block"}
    assert moved.site_blocks(12) == (6, 7, 8)
    assert moved.model_dump(exclude={"sites", "then"}) == preset.model_dump(exclude={"sites", "then"})


def test_blocks_and_sites_are_not_overridden_at_once() -> None:
    sites = {"where": "before_block", "blocks": [1]}
    with pytest.raises(PolicyError, match="blocks and sites both say where") as caught:
        Policy.load("evit").override(blocks=[2], sites=sites)
    assert (caught.value.where, caught.value.remedy) == ("an override of policy evit", "give one of them")


def test_evit_is_evit() -> None:
    evit = Policy.load("evit")
    assert (evit.sites.where, evit.site_blocks(12)) == ("after_attention", (3, 6, 9))
    assert (evit.scorer.kind, evit.selector.keep_per_site, evit.fate) == ("cls_attention", 0.7, "fuse")
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
    assert (half.keep, half.selector.keep_per_site, evit.keep) == (0.5, 0.7, None)
    assert half.override(keep_per_site=0.7) == evit
    assert evit.override() == evit


def test_overridden_blocks_replace_the_depths() -> None:
    mine = Policy.load("evit").override(blocks=[7, 4])
    assert (mine.sites.blocks, mine.sites.depths) == ((7, 4), None)
    assert mine.site_blocks(12) == (4, 7)


def test_an_override_is_checked_too() -> None:
    with pytest.raises(PolicyError, match=r"keep must be in \(0, 1\], got 1.5 @ keep") as caught:
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
        written(sites=sites, selector__keep_per_site=keep, selector__multiple_of=multiple_of, summary=summary)
    )
    text = mine.to_yaml()
    assert Policy.load(yaml.safe_load(text)) == mine
    assert Policy.load(documents.parse(text.encode(), "yaml")).to_yaml() == text  # type: ignore[arg-type]


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
    with pytest.raises(PolicyError, match=r"block 8 .* 0 to 7") as caught:
        Policy.load("evit").override(blocks=[0, 8]).site_blocks(8)
    assert caught.value.where == "policy evit"
    assert "depths" in (caught.value.remedy or "")


@pytest.mark.parametrize("mine", [Policy.load("evit"), Policy.load("evit").override(blocks=[0])])
def test_a_model_without_blocks_is_refused(mine: Policy) -> None:
    with pytest.raises(PolicyError, match="the model has no blocks"):
        mine.site_blocks(0)
