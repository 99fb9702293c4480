"""Every mistake in a part of a policy: its message names the place, the value, and what is allowed."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from prunec.policy import language
from tests.policies import GONE
from tests.policy.mistaken import (
    BLOCKS,
    COUNT,
    KINDS,
    NO_KEEP,
    SCORER,
    SELECTOR,
    TRAINING,
    check,
    choosing,
    losing,
    scoring,
    trained,
)

SITES = [
    ({"sites": [3]}, "sites must be a mapping with the keys where, blocks, depths, between, got [3] @ sites"),
    (
        {"sites": {1: 2, "where": "before_block", "depths": [0.5]}},
        "unknown key '1', allowed: where, blocks, depths, between @ sites.1",
    ),
    (
        {"sites__where": "after_mlp"},
        "or after_attention, got 'after_mlp'; nearest: after_attention @ sites.where",
    ),
    ({"sites__where": GONE}, "where is missing, it must be before_block or after_attention @ sites.where"),
    ({"sites__blocks": [3]}, "give one of blocks, depths and between, got blocks and depths @ sites"),
    ({"sites__depths": GONE}, "give one of blocks, depths and between, got none @ sites"),
    ({"sites__between": [0.5, 1.0]}, "got depths and between @ sites"),
    (
        {"sites__depths": []},
        "depths must be a list of fractions of the depth, each in [0, 1), got [] @ sites.depths",
    ),
    ({"sites__depths": [0.5, 1.0]}, "each in [0, 1), got 1.0 @ sites.depths[1]"),
    ({"sites__depths": ["0.5"]}, "each in [0, 1), got '0.5' @ sites.depths[0]"),
    ({"sites__depths": 0.5}, "each in [0, 1), got 0.5 @ sites.depths"),
    (
        {**BLOCKS, "sites__blocks": [3, -1]},
        "blocks must be a list of block numbers, counted from 0, got -1 @ sites.blocks[1]",
    ),
    ({**BLOCKS, "sites__blocks": [2.5]}, "got 2.5 @ sites.blocks[0]"),
    ({**BLOCKS, "sites__blocks": [True]}, "got True @ sites.blocks[0]"),
    ({**BLOCKS, "sites__blocks": 3}, "got 3 @ sites.blocks"),
    (
        {**BLOCKS, "sites__between": [0.5, 0.25]},
        "between must rise from the first fraction to the second, got [0.5, 0.25] @ sites.between",
    ),
    (
        {**BLOCKS, "sites__between": [0.5]},
        "between must be two fractions of the depth, such as [0.25, 1.0], got [0.5] @ sites.between",
    ),
    ({**BLOCKS, "sites__between": [0.5, 1.5]}, "got 1.5 @ sites.between[1]"),
]

SCORERS = [
    ({"scorer": GONE}, f"scorer is missing, it must be {SCORER} @ scorer"),
    ({"scorer": "norm"}, f"scorer must be {SCORER}, got 'norm' @ scorer"),
    ({"scorer__kind": GONE}, "predictor, query, pre_net or grader @ scorer.kind"),
    ({"scorer__kind": ["norm"]}, f"{KINDS}, got ['norm'] @ scorer.kind"),
    (
        scoring("cls_atention"),
        f"{KINDS}, got 'cls_atention'; nearest: cls_attention, received_attention @ scorer.kind",
    ),
    ({"scorer__widht": 3}, "depth, embedding, of, pairs, options @ scorer.widht"),
    (
        scoring("norm", hidden=0.5),
        "hidden belongs to the scorer mlp or novelty, norm has no such option; got 0.5 @ scorer.hidden",
    ),
    (
        scoring("norm", values=True),
        "values belongs to the scorer cls_attention, norm has no such option; got True @ scorer.values",
    ),
    (
        scoring("mlp", queries=2),
        "queries belongs to the scorer query, mlp has no such option; got 2 @ scorer.queries",
    ),
    (
        scoring("query", depth=2),
        "depth belongs to the scorer pre_net, query has no such option; got 2 @ scorer.depth",
    ),
    (
        scoring("mlp", embedding="own"),
        "embedding belongs to the scorer pre_net, mlp has no such option; got 'own' @ scorer.embedding",
    ),
    (
        scoring("norm", of="keys"),
        "of belongs to the scorer similarity or novelty, norm has no such option; got 'keys' @ scorer.of",
    ),
    (
        scoring("grader", pairs="windows"),
        "pairs belongs to the scorer similarity, grader has no such option; got 'windows' @ scorer.pairs",
    ),
    (
        scoring("norm", options={"a": 1}),
        "options belong to scorers of other packages, norm is one of prunec's; got {'a': 1} @ scorer.options",
    ),
    (scoring("norm", options={}), "norm is one of prunec's; got {} @ scorer.options"),
    (
        scoring("norm", options=3),
        "options must be a mapping of options to their values, got 3 @ scorer.options",
    ),
    (
        scoring("novelty", hidden=0.5),
        "hidden is the width of what importance is taken by, and there is none; got 0.5 @ scorer",
    ),
    (scoring("novelty", importance=5), "importance must be in (0, 4], got 5 @ scorer.importance"),
    (
        scoring("norm", importance=0.5),
        "importance belongs to the scorer novelty, norm has no such option; got 0.5 @ scorer.importance",
    ),
    (scoring("mlp", hidden=0), "hidden must be in (0, 4], got 0 @ scorer.hidden"),
    (scoring("cls_attention", values=1), "values must be true or false, got 1 @ scorer.values"),
    (scoring("query", queries=0), "queries must be a whole number from 1 to 4096, got 0 @ scorer.queries"),
    (scoring("pre_net", depth=1.5), "depth must be a whole number from 1 to 64, got 1.5 @ scorer.depth"),
    (
        scoring("pre_net", embedding="owm"),
        "embedding must be shared or own, got 'owm'; nearest: own @ scorer.embedding",
    ),
    (scoring("similarity", of="key"), "of must be keys or tokens, got 'key'; nearest: keys @ scorer.of"),
    (scoring("similarity", pairs="window"), "got 'window'; nearest: windows @ scorer.pairs"),
]

SELECTORS = [
    ({"selector": 0.5}, f"selector must be a mapping with the {SELECTOR}, got 0.5 @ selector"),
    (
        {"selector__keep_per_sit": 0.5},
        "nearest: keep_per_site @ selector.keep_per_sit",
    ),
    (
        choosing("topk", keep_per_site=0.5),
        "kind must be top_k, threshold, adaptive or sampling, got 'topk'; nearest: top_k @ selector.kind",
    ),
    ({"selector__keep_per_site": 1.5}, "keep_per_site must be in (0, 1], got 1.5 @ selector.keep_per_site"),
    ({"selector__keep_per_site": 0}, "keep_per_site must be in (0, 1], got 0 @ selector.keep_per_site"),
    (
        {"selector__keep_per_site": math.nan},
        "keep_per_site must be in (0, 1], got nan @ selector.keep_per_site",
    ),
    (
        {"selector__keep_per_site": "0.5"},
        "keep_per_site must be in (0, 1], got '0.5' @ selector.keep_per_site",
    ),
    ({"selector__keep_per_site": True}, "keep_per_site must be in (0, 1], got True @ selector.keep_per_site"),
    (
        {"selector__keep_per_site": []},
        "keep_per_site must be in (0, 1] or a list of such rates, got [] @ selector.keep_per_site",
    ),
    (
        {"selector__keep_per_site": [0.5, 1.5]},
        "or a list of such rates, got [0.5, 1.5] @ selector.keep_per_site",
    ),
    (
        {"selector__keep_per_site": [0.5, "x"]},
        "or a list of such rates, got [0.5, 'x'] @ selector.keep_per_site",
    ),
    ({**NO_KEEP, "selector__remove": 1}, "remove must be in [0, 1), got 1 @ selector.remove"),
    ({**NO_KEEP, "selector__remove": "0.1"}, "remove must be in [0, 1), got '0.1' @ selector.remove"),
    (choosing("threshold", at=0), "at must be in (0, 1], got 0 @ selector.at"),
    (NO_KEEP, "top_k needs keep_per_site or remove, got none @ selector"),
    (
        {"selector__remove": 0.1},
        "top_k needs keep_per_site or remove, got keep_per_site and remove @ selector",
    ),
    ({**NO_KEEP, "selector__at": 0.5}, "top_k needs keep_per_site or remove, got at @ selector"),
    (choosing("threshold"), "threshold needs keep_per_site or at, got none @ selector"),
    (
        choosing("threshold", keep_per_site=0.5, at=0.5),
        "threshold needs keep_per_site or at, got keep_per_site and at @ selector",
    ),
    (choosing("adaptive", keep_per_site=0.5), "adaptive needs no rate, got keep_per_site @ selector"),
    (choosing("sampling", remove=0.5), "sampling needs keep_per_site, got remove @ selector"),
    ({"selector__multiple_of": 0}, f"multiple_of {COUNT}, got 0 @ selector.multiple_of"),
    ({"selector__multiple_of": 8.0}, f"multiple_of {COUNT}, got 8.0 @ selector.multiple_of"),
    ({"selector__least": 0}, f"least {COUNT}, got 0 @ selector.least"),
    ({"selector__spare": -1}, "spare must be a whole number from 0 to 65536, got -1 @ selector.spare"),
    ({"selector__stages": 0}, f"stages {COUNT}, got 0 @ selector.stages"),
    (
        choosing("top_k", keep_per_site=[0.5, 0.4], stages=2),
        "stages needs one keep_per_site for all sites, to take powers of; got stages 2 @ selector",
    ),
    (choosing("top_k", remove=0.1, stages=2), "to take powers of; got stages 2 @ selector"),
    (
        choosing("threshold", keep_per_site=0.5, budget="batch"),
        "budget batch needs kind top_k, threshold spends no budget @ selector",
    ),
    (
        choosing("top_k", keep_per_site=0.5, budget="images"),
        "budget must be image or batch, got 'images'; nearest: image @ selector.budget",
    ),
]

TRAININGS = [
    ({"training": 3}, f"training must be a mapping with the keys {TRAINING}, got 3 @ training"),
    (trained(epoch=3), f"unknown key 'epoch', allowed: {TRAINING}; nearest: epochs @ training.epoch"),
    (
        trained(relaxation="gumble"),
        "relaxation must be none, gumbel, sigmoid or counts, got 'gumble'; nearest: gumbel @ "
        "training.relaxation",
    ),
    (trained(temperature=0), "temperature must be a number above 0, got 0 @ training.temperature"),
    (trained(detached=1), "detached must be true or false, got 1 @ training.detached"),
    (trained(epochs=0), "epochs must be a whole number, 1 or more, got 0 @ training.epochs"),
    (trained(rate="fast"), "rate must be a number above 0, got 'fast' @ training.rate"),
    (trained(gate_rate=-1), "gate_rate must be a number above 0, got -1 @ training.gate_rate"),
    (trained(warm_up=2), "warm_up must be in [0, 1], got 2 @ training.warm_up"),
    (trained(freeze="all"), "freeze must be nothing, model or gates, got 'all' @ training.freeze"),
    (trained(required="no"), "required must be true or false, got 'no' @ training.required"),
    (trained(losses="task"), "losses must be a list of losses, got 'task' @ training.losses"),
    (
        trained(losses=["task"]),
        "losses[0] must be a mapping with the keys kind, weight, over, got 'task' @ training.losses[0]",
    ),
    (
        losing(weight=1),
        "kind is missing, it must be task, ratio, flops, heads, logits or tokens @ training.losses[1].kind",
    ),
    (losing(kind="token"), "logits or tokens, got 'token'; nearest: tokens @ training.losses[1].kind"),
    (
        losing(kind="flops", wieght=1),
        "unknown key 'wieght', allowed: kind, weight, over; nearest: weight @ training.losses[1].wieght",
    ),
    (losing(kind="flops", weight=0), "weight must be a number above 0, got 0 @ training.losses[1].weight"),
    (
        losing(kind="ratio", over="images"),
        "over must be batch or image, got 'images'; nearest: image @ training.losses[1].over",
    ),
    (
        losing(kind="flops", over="image"),
        "over belongs to the loss ratio, flops has no such option; got 'image' @ training.losses[1].over",
    ),
]

MISTAKES: list[tuple[dict[str, Any], str]]

MISTAKES = [*SITES, *SCORERS, *SELECTORS, *TRAININGS]


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=lambda part: None)
def test_a_mistake_names_its_place_the_value_and_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    check(changes, said)


def test_every_field_of_the_language_has_its_mistake() -> None:
    models = (language.Sites, language.Scorer, language.Selector)
    models += (language.Training, language.Loss)
    places = {re.sub(r"\[\d+\]$", "", said.rpartition(" @ ")[2]).rpartition(".")[2] for _, said in MISTAKES}
    assert {name for model in models for name in model.model_fields} - places == set()
