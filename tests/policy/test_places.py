"""What `keep` leaves behind the last site: the same share of all patches, whatever the policy."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from prunec.errors import PolicyError
from prunec.policy.policy import Policy, presets
from prunec.policy.site_plan import Plan, make_plan
from tests.planner.anatomies import anatomy
from tests.policies import step, written
from tests.policy import vit_s

PATCHES = 400
#: Where the stream's length goes by eights, or tokens that exit leave some for context: at most so many more.
ROUNDED = {"cropr": 7, "cropr-drop": 7}
#: Presets without a site, which have nothing to keep a share of.
SITELESS = {"none"}


def plan_of(policy: Policy, **model: Any) -> Plan:
    read = "patches" if policy.restored == "canvas" else "class token"
    return make_plan(policy, anatomy(depth=12, grid=PATCHES, head=read, **model))


@pytest.mark.parametrize("name", sorted(set(presets()) - SITELESS))
@pytest.mark.parametrize("keep", [0.7, 0.5])
def test_keep_is_what_the_last_site_leaves(name: str, keep: float) -> None:
    """Of every image, or on average; sampling hits a token more than once, and so keeps at most as many."""
    plan = plan_of(Policy.load(name, keep=keep))
    left, wanted = plan.sites[-1].keep, round(keep * PATCHES)
    assert wanted <= left <= wanted + ROUNDED.get(name, 0)
    shares = [site.keep for site in plan.sites]
    assert shares == sorted(shares, reverse=True)
    assert all(site.known for site in plan.sites) == (name != "ats")


@pytest.mark.parametrize("name", sorted(presets()))
def test_all_of_them_is_no_site_at_all(name: str) -> None:
    assert plan_of(Policy.load(name, keep=1.0)).sites == ()


def test_without_a_site_keep_has_no_effect() -> None:
    with pytest.raises(PolicyError, match="keep has no effect: the policy has no sites") as caught:
        Policy.load("none", keep=0.5)
    assert caught.value.remedy == "leave keep out"
    assert plan_of(Policy.load("none", keep=0.5, blocks=(3,))).sites[0].keep == PATCHES // 2


@pytest.mark.parametrize(
    ("selector", "kept"),
    [
        ({"keep_per_site": 0.9}, [318, 252, 200]),  # each the same share of what enters
        ({"keep_per_site": [0.5, 1.0, 0.5]}, [283, 200]),  # the second takes none away
        ({"remove": 0.1}, [334, 267, 200]),  # each as many
        ({"remove": 0.0}, [334, 267, 200]),
    ],
)
def test_the_rates_say_how_much_each_site_takes(selector: dict[str, Any], kept: list[int]) -> None:
    policy = written(sites__depths=[0.25, 0.5, 0.75], selector={"kind": "top_k", **selector}, keep=0.5)
    assert [site.keep for site in plan_of(Policy.load(policy)).sites] == kept


def test_all_steps_share_what_is_taken() -> None:
    policy = written(then=[step(selector={"kind": "top_k", "remove": 0.2})], keep=0.5)
    kept = [site.keep for site in plan_of(Policy.load(policy)).sites]
    assert kept[-1] == PATCHES // 2
    assert len(kept) == 3


def test_a_policy_that_reactivates_keeps_that_share_at_the_end() -> None:
    kept = [site.keep for site in plan_of(Policy.load("svit", keep=0.512)).sites]
    assert [count for count, _ in itertools.groupby(kept)] == [320, 256, 205]


def test_sites_that_the_model_has_no_use_for_do_not_count() -> None:
    """The last block's patches are read by nobody, so that a site behind its attention falls away."""
    plan = plan_of(Policy.load("tome", keep=0.5))
    assert [site.block for site in plan.sites] == list(range(11))
    assert plan.sites[-1].keep == PATCHES // 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keep": 0}, r"keep must be in \(0, 1\], got 0 @ keep"),
        ({"keep": "0.5"}, r"keep must be in \(0, 1\], got '0.5' @ keep"),
        (
            {"keep": 0.5, "selector": {"kind": "threshold", "at": 0.5}, "scorer": {"kind": "mlp"}},
            "keep needs keep_per_site or remove at every step, .* got at @ selector",
        ),
    ],
)
def test_a_keep_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        Policy.load(written(**changes))


def test_keep_and_keep_per_site_exclude_each_other() -> None:
    with pytest.raises(PolicyError, match="keep and keep_per_site both say how many stay") as caught:
        Policy.load("evit", keep=0.5, keep_per_site=0.7)
    assert (caught.value.where, caught.value.remedy) == ("an override of policy evit", "give one of them")


def test_keep_goes_through_yaml() -> None:
    policy = Policy.load("evit", keep=0.5)
    assert "keep: 0.5" in policy.to_yaml().splitlines()
    assert plan_of(policy).sites[-1].keep == PATCHES // 2


def test_the_old_name_of_keep_per_site_works_with_a_warning() -> None:
    old = written(
        selector={"kind": "top_k", "keep": 0.25}, then=[step(selector={"kind": "top_k", "keep": 0.5})]
    )
    with pytest.warns(DeprecationWarning, match=r"selector.keep is now selector.keep_per_site") as caught:
        policy = Policy.load(old, where="mine.yaml")
    assert [str(warning.message).split(":")[0] for warning in caught] == ["mine.yaml"]
    assert [one.selector.keep_per_site for one in policy.steps] == [0.25, 0.5]


@pytest.mark.parametrize(("old", "fate"), [("nearest", "drop"), ("unmerge", "merge")])
def test_the_old_names_of_copy_work_with_a_warning(old: str, fate: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"mine.yaml: restore {old} is now copy"):
        policy = Policy.load(written(fate=fate, restore=old), where="mine.yaml")
    assert policy.restored == "copy"
    assert policy == Policy.load(written(fate=fate, restore="copy"))
    assert "restore: copy" in policy.to_yaml().splitlines()


def test_the_table_of_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs/guide/policies.md").read_text(encoding="utf-8")
    assert "\n".join(vit_s.table(keep=0.7)) in guide
