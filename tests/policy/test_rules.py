"""Every mistake in what a policy says together: its place, the value, and what is allowed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from prunec.policy import language, rules
from tests.policies import GONE, step
from tests.policy.mistaken import (
    EXITING,
    KINDS,
    SCORER,
    STEP,
    check,
    choosing,
    merging,
    scoring,
    then,
)

# Each row: the changes to a valid policy, and what the message must end in.
TITLE = [
    ({"version": 2}, "version must be 1, got 2 @ version"),
    ({"version": True}, "version must be the number 1, got True @ version"),
    ({"version": "1"}, "version must be the number 1, got '1' @ version"),
    ({"version": GONE}, "version is missing, it must be 1 @ version"),
    ({"name": "My Policy"}, "starting with a letter, got 'My Policy' @ name"),
    (
        {"name": 3},
        "name must be at most 64 lower-case letters, digits, - and _, starting with a letter, got 3 @ name",
    ),
    ({"summary": "two\nlines"}, "summary must be one line of text, got 'two\\nlines' @ summary"),
    ({"summary": ""}, "summary must be one line of text, got '' @ summary"),
    ({"paper": 2202.07800}, "paper must be one line that names the paper, got 2202.078 @ paper"),
    ({"paper": " "}, "paper must be one line that names the paper, got ' ' @ paper"),
    ({"protect": "cls"}, "restore, then, keep, training @ protect"),
    ({"scorers": {}}, "then, keep, training; nearest: scorer, restore, selector @ scorers"),
]

TOGETHER = [
    ({"fate": "fues"}, "fate must be drop, fuse, merge, preserve or exit, got 'fues'; nearest: fuse @ fate"),
    ({"fate": GONE}, "fate is missing, it must be drop, fuse, merge, preserve or exit @ fate"),
    ({"fate": "fuse"}, "which must be shares of attention; norm scores are not @ fate"),
    ({"fate": "fuse", "weights": "score"}, "shares of attention; norm scores are not @ fate"),
    (
        {"fate": "fuse", "weights": "unifrm"},
        "weights must be score or uniform, got 'unifrm'; nearest: uniform @ weights",
    ),
    ({"weights": "uniform"}, "weights belong to fate fuse, drop sums nothing up; got 'uniform' @ weights"),
    (
        scoring("similarity"),
        "scorer similarity needs fate merge, got drop: it finds pairs, which nothing else merges @ fate",
    ),
    (
        scoring("grader"),
        "scorer grader needs fate exit, got drop: it says what tokens are, which is lost @ fate",
    ),
    (
        {"fate": "exit"},
        "fate exit needs scorer.kind grader, got norm: it gives no class scores @ scorer.kind",
    ),
    (
        {**EXITING, **choosing("top_k", keep_per_site=0.5)},
        "fate exit needs selector.kind threshold, got top_k: it knows no confidence @ selector.kind",
    ),
    (
        {"fate": "merge", **choosing("threshold", keep_per_site=0.5)},
        "fate merge needs selector.kind top_k, or scorer similarity or novelty, which say how similar tokens "
        "are; got threshold of norm @ selector.kind",
    ),
    (
        {"fate": "merge", **scoring("similarity", pairs="windows")},
        "pairs windows needs selector.kind threshold, got top_k: a window is merged whole @ selector.kind",
    ),
    (
        choosing("adaptive"),
        "selector.kind adaptive needs scorer similarity, norm scores have no such spread @ selector.kind",
    ),
    (
        choosing("sampling", keep_per_site=0.5),
        "selector.kind sampling needs scorer cls_attention or received_attention, whose shares add "
        "up; norm scores do not @ selector.kind",
    ),
    (
        choosing("threshold", at=0.5),
        "at needs a scorer with a scale from 0 to 1 (similarity, or learned), norm has none; got "
        "0.5 @ selector.at",
    ),
    (
        {**choosing("threshold", at=0.5), **scoring("novelty")},
        "at needs a scorer with a scale from 0 to 1 (similarity, or learned), novelty has none; got "
        "0.5 @ selector.at",
    ),
    (
        {**choosing("threshold", at=0.5), **scoring("novelty", importance=0.25)},
        "at needs a scorer with a scale from 0 to 1 (similarity, or learned), novelty has none; got "
        "0.5 @ selector.at",
    ),
    ({"selector__spare": 2}, "spare needs scorer grader, norm knows no classes; got 2 @ selector.spare"),
    (
        {"selector__stages": 3},
        "stages needs reactivate: without it every site prunes what is left; got stages 3 @ selector.stages",
    ),
    ({"reactivate": "yes"}, "reactivate must be true or false, got 'yes' @ reactivate"),
    (
        {"reactivate": True},
        "reactivate needs fate preserve: what drop takes away cannot come back @ reactivate",
    ),
    (
        {"reactivate": True, "fate": "preserve", **scoring("change")},
        "reactivate needs a scorer of all tokens: change scores only those that went through the "
        "block before @ reactivate",
    ),
    ({"merge": {}}, "merge belongs to fate merge, not to drop @ merge"),
    (
        {"fate": "merge", "merge": "plain"},
        "merge must be a mapping with the keys mean, sizes, forget, got 'plain' @ merge",
    ),
    (
        merging(means="plain"),
        "unknown key 'means', allowed: mean, sizes, forget; nearest: mean @ merge.means",
    ),
    (merging(mean="bysize"), "mean must be by_size or plain, got 'bysize'; nearest: by_size @ merge.mean"),
    (
        merging(sizes="count"),
        "sizes must be counted or by_similarity, got 'count'; nearest: counted @ merge.sizes",
    ),
    (merging(forget=1), "forget must be in [0, 1), got 1 @ merge.forget"),
    (
        {**merging(forget=0.5), **scoring("similarity")},
        "forget needs scores that rank all tokens, similarity ranks pairs; got 0.5 @ merge.forget",
    ),
    (
        {**merging(forget=0.5), **scoring("novelty"), **choosing("threshold", keep_per_site=0.5)},
        "forget needs selector.kind top_k, which knows how many leave; got 0.5 @ merge.forget",
    ),
    (
        {"attention": "proportionl"},
        "attention must be plain or proportional, got 'proportionl'; nearest: proportional @ attention",
    ),
    (
        {"attention": "proportional"},
        "attention proportional needs fate merge: drop leaves each token for itself @ attention",
    ),
    ({"restore": "stail"}, "rejoin or canvas, got 'stail'; nearest: stale @ restore"),
    (
        {"restore": "canvas"},
        "restore of fate drop must be none, stale, copy, share or rejoin, got 'canvas' @ restore",
    ),
    (
        {"restore": "stale", "fate": "merge"},
        "restore of fate merge must be copy or share, got 'stale' @ restore",
    ),
    ({"restore": "none", "fate": "preserve"}, "must be stale, copy, share or rejoin, got 'none' @ restore"),
    ({"restore": "stale", **EXITING}, "restore of fate exit must be canvas, got 'stale' @ restore"),
    (
        {"restore": "rejoin", "fate": "preserve", "reactivate": True},
        "restore rejoin is for tokens that are gone for good; with reactivate none is @ restore",
    ),
]

THEN = [
    ({"then": 3}, "then must be a list of further steps, each a mapping, got 3 @ then"),
    ({"then": [3]}, f"then[0] must be a mapping with the keys {STEP}, got 3 @ then[0]"),
    (then(restore="stale"), "reactivate, weights, merge; nearest: scorer, selector, merge @ then[0].restore"),
    (then(name="x"), f"unknown key 'name', allowed: {STEP}; nearest: fate @ then[0].name"),
    (then(scorer=GONE), f"scorer is missing, it must be {SCORER} @ then[0].scorer"),
    (then(scorer__kind="nrom"), f"{KINDS}, got 'nrom'; nearest: norm, random @ then[0].scorer.kind"),
    (
        then(selector__keep_per_site=2),
        "keep_per_site must be in (0, 1], got 2 @ then[0].selector.keep_per_site",
    ),
    ({"keep": 1.5}, "keep must be in (0, 1], got 1.5 @ keep"),
    (then(selector__keep_per_site=GONE), "top_k needs keep_per_site or remove, got none @ then[0].selector"),
    (then(selector__stages=2), "what is left; got stages 2 @ then[0].selector.stages"),
    (then(sites__depths=[2]), "each in [0, 1), got 2 @ then[0].sites.depths[0]"),
    (then(sites__depths=GONE), "give one of blocks, depths and between, got none @ then[0].sites"),
    (then(fate="merge", merge={"forgt": 0.5}), "sizes, forget; nearest: forget @ then[0].merge.forgt"),
    (
        {"then": [step(), step(fate="preserve")]},
        "fate must be drop in all steps, as in the first; got preserve @ then[1].fate",
    ),
    (
        {"fate": "preserve", "reactivate": True, **then(fate="preserve")},
        "reactivate must be true in all steps, as in the first; got false @ then[0].reactivate",
    ),
]

MISTAKES: list[tuple[dict[str, Any], str]] = [*TITLE, *TOGETHER, *THEN]


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=lambda part: None)
def test_a_mistake_names_its_place_the_value_and_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    check(changes, said)


def test_every_field_of_a_policy_has_its_mistake() -> None:
    models = (rules.Rules, language.Merge)
    places = {re.sub(r"\[\d+\]$", "", said.rpartition(" @ ")[2]).rpartition(".")[2] for _, said in MISTAKES}
    assert {name for model in models for name in model.model_fields} - places == {"training"}
