from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.errors import PolicyError
from prunec.policy.policy import Policy
from prunec.policy.site_plan import Site, make_plan
from prunec.structure import Anatomy, Block, Branch, Core
from tests.tiny import policy

CORE = Core("fused", "sdpa", "q", "k", "v")


def block(index: int, parallel: bool = False) -> Block:
    attention = Branch("attention", f"s{2 * index}", f"s{2 * index + 1}", "pre", False, (CORE,))
    state = attention.state if parallel else attention.add
    return Block(
        index, f"blocks.{index}", (attention, Branch("mlp", state, f"s{2 * index + 2}", "pre", False))
    )


def anatomy(patches: int = 25, *, prefix: int = 1, suffix: int = 0, **changes: object) -> Anatomy:
    whole = Anatomy(
        blocks=tuple(map(block, range(12))), tokens=prefix + patches + suffix, prefix=prefix, suffix=suffix,
        token_dim=1, class_token=0, head=("class token",), taps=(), states=(), pixels="x",
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def sites(anatomy: Anatomy, **choices: object) -> list[tuple[int, int, int, int]]:
    plan = make_plan(policy(**choices), anatomy)  # type: ignore[arg-type]
    return [(site.block, site.tokens, site.keep, site.leaves) for site in plan.sites]


def test_the_plan_carries_the_policy() -> None:
    plan = make_plan(policy(fate="fuse", where="after_attention", blocks=[3, 6]), anatomy())
    assert (plan.policy, plan.rules.scorer.kind, plan.fate, plan.notes) == (
        "mine",
        "cls_attention",
        "fuse",
        (),
    )
    assert plan.sites == (Site(3, "after_attention", 26, 13, 15), Site(6, "after_attention", 15, 7, 9))


@pytest.mark.parametrize(
    ("patches", "keep", "kept"),
    [
        (25, 0.5, 13),
        (196, 0.7, 138),
        (10, 0.7, 7),
        (100, 0.29, 29),
        (100, 0.07, 7),
        (100, 0.55, 55),
        (3, 0.01, 1),
        (7, 0.999, 7),
    ],
)
def test_the_share_is_rounded_up_but_not_by_floating_point(patches: int, keep: float, kept: int) -> None:
    found = sites(anatomy(patches), keep=keep)
    assert [site[2] for site in found] == ([kept] if kept < patches else [])


def test_each_site_takes_its_share_of_what_enters() -> None:
    assert sites(anatomy(64), blocks=[2, 5, 8]) == [(2, 65, 32, 33), (5, 33, 16, 17), (8, 17, 8, 9)]


def test_a_fused_token_is_counted_and_counts_as_a_patch_at_the_next_site() -> None:
    assert sites(anatomy(64), fate="fuse", blocks=[2, 5]) == [(2, 65, 32, 34), (5, 34, 17, 19)]


def test_protected_tokens_are_counted_into_the_multiple() -> None:
    assert sites(anatomy(64), multiple_of=8) == [(1, 65, 39, 40)]
    assert sites(anatomy(64, prefix=3, suffix=2), multiple_of=8) == [(1, 69, 35, 40)]
    assert sites(anatomy(64), multiple_of=8, fate="fuse") == [(1, 65, 38, 40)]


@given(
    st.integers(1, 200),
    st.integers(0, 5),
    st.integers(0, 5),
    st.floats(0.01, 1),
    st.integers(1, 20),
    st.booleans(),
)
def test_counts_always_add_up(
    patches: int, prefix: int, suffix: int, keep: float, multiple_of: int, fused: bool
) -> None:
    model = anatomy(patches, prefix=prefix, suffix=suffix)
    fate = "fuse" if fused else "drop"
    plan = make_plan(policy(keep=keep, multiple_of=multiple_of, fate=fate, blocks=[2, 5, 8]), model)
    entering = model.tokens
    for site in plan.sites:
        assert site.tokens == entering
        assert site.leaves == prefix + suffix + site.keep + fused < entering
        assert (
            site.keep >= min(keep * (entering - prefix - suffix), entering - prefix - suffix - fused) - 1e-6
        )
        assert site.leaves % multiple_of == 0
        entering = site.leaves
    assert len(plan.sites) + len(plan.notes) == 3


def test_a_site_that_would_not_shorten_the_stream_is_left_out_with_a_note() -> None:
    plan = make_plan(policy(keep=1.0, blocks=[2, 5]), anatomy())
    assert plan.sites == ()
    assert plan.notes == (
        "no site at block 2: 26 tokens enter and as many would leave",
        "no site at block 5: 26 tokens enter and as many would leave",
    )
    rounded = make_plan(policy(keep=0.9, multiple_of=16, blocks=[2, 5]), anatomy(31))
    assert rounded.sites == ()
    assert len(rounded.notes) == 2


def test_a_policy_that_needs_a_class_token_names_the_presets_that_do_not() -> None:
    mean = anatomy(class_token=None, head=("mean", "tokens"))
    with pytest.raises(
        PolicyError, match="this model's head reads none \\(it reads mean and tokens\\)"
    ) as caught:
        make_plan(policy(scorer="cls_attention"), mean)
    assert caught.value.where == "scorer.kind"
    assert caught.value.remedy == (
        "presets that fit this model: algm, bavit, cover, cropr, cropr-drop, dynamic, dynamicvit, none, "
        "norm, pomt, random, representation-shift, svit, tome"
    )
    with pytest.raises(PolicyError, match="it reads nothing"):
        make_plan(policy(scorer="cls_attention"), anatomy(class_token=None, head=()))
    assert sites(mean) == [(1, 26, 13, 14)]


def test_a_learned_row_scores_where_a_dense_head_does_not_read_it() -> None:
    dense = anatomy(class_token=None, head=("tokens",), learned=1)
    made = make_plan(policy(scorer="cls_attention"), dense)
    assert made.notes[0] == (
        "tokens are scored by the attention of token 0, the first learned one in front of the patches, which "
        "the head does not read"
    )
    for other in (dataclasses.replace(dense, learned=0), dataclasses.replace(dense, head=("mean",))):
        with pytest.raises(PolicyError, match="this model's head reads none"):
            make_plan(policy(scorer="cls_attention"), other)


def test_a_block_whose_parts_stand_side_by_side_has_no_place_between_them() -> None:
    beside = anatomy(blocks=(block(0), block(1, parallel=True), block(2)))
    with pytest.raises(PolicyError, match="block 1 computes both from the same state") as caught:
        make_plan(policy(where="after_attention"), beside)
    assert caught.value.where == "sites.where, blocks.1"
    assert caught.value.remedy == "use `where: before_block`"
    assert sites(beside) == [(1, 26, 13, 14)]
    beside = dataclasses.replace(beside, head=("mean",))
    assert sites(beside, where="after_attention", blocks=[2]) == [(2, 26, 13, 14)]


def test_behind_the_last_attention_nothing_is_pruned_that_nobody_reads() -> None:
    late = {"where": "after_attention", "blocks": [10, 11]}
    plan = make_plan(policy(**late), anatomy())
    assert [site.block for site in plan.sites] == [10]
    assert plan.notes == ("no site at block 11: no output depends on patches behind its attention",)
    for head in (("mean",), ("class token", "tokens"), ("grid",), ()):
        assert len(sites(anatomy(head=head), **late)) == 2  # type: ignore[arg-type]
    assert len(sites(anatomy(head=("class token", "token 1", "tokens 1..4")), **late)) == 1  # type: ignore[arg-type]


def test_what_lengths_are_rounded_up_by_is_taken_away_by_the_next_site() -> None:
    removing = {"version": 1, "name": "mine", "summary": "For a test.", "fate": "drop", "restore": "stale"}
    removing |= {"sites": {"where": "before_block", "between": [0.1, 1.0]}, "scorer": {"kind": "norm"}}
    removing["selector"] = {"kind": "top_k", "remove": 0.04, "multiple_of": 8}
    plan = make_plan(Policy.load(removing), anatomy(196))  # 8 patches a site, the first one a little less
    assert [site.leaves for site in plan.sites] == [192, 184, 176, 168, 160, 152, 144, 136, 128, 120]
    plan = make_plan(Policy.load(removing).override(blocks=range(1, 6)), anatomy(98))  # 4 a site
    assert [(site.block, site.leaves) for site in plan.sites] == [(1, 96), (3, 88), (5, 80)]


def test_two_steps_may_not_meet_in_one_place() -> None:
    step = {"sites": {"where": "before_block", "blocks": [2]}, "scorer": {"kind": "norm"}}
    step |= {"selector": {"kind": "top_k", "keep_per_site": 0.5}, "fate": "drop"}
    twice = {
        "version": 1,
        "name": "mine",
        "summary": "For a test.",
        "restore": "stale",
        **step,
        "then": [step],
    }
    with pytest.raises(PolicyError, match=r"two sites .* block 2"):
        make_plan(Policy.load(twice), anatomy())
    attending = {**step, "scorer": {"kind": "cls_attention"}}
    late = {**step, "sites": {"where": "after_attention", "blocks": [1]}}
    with pytest.raises(PolicyError, match="what the second one scores by has more tokens"):
        make_plan(Policy.load({**twice, **late, "then": [attending]}), anatomy())
    assert len(make_plan(Policy.load({**twice, **late}), anatomy()).sites) == 2


def test_pairs_leave_at_most_half() -> None:
    plan = make_plan(Policy.load("tome").override(keep_per_site=0.25, blocks=[1, 2]), anatomy(25))
    assert [(site.keep, site.leaves) for site in plan.sites] == [(13, 14), (7, 8)]
    assert plan.notes == (
        "block 1: 12 of 25 patches can be merged at a time",
        "block 2: 6 of 13 patches can be merged at a time",
    )


def test_a_rate_for_each_site() -> None:
    data = policy(blocks=[1, 2, 3]).model_dump()
    data["selector"]["keep_per_site"] = [0.8, 1.0, 0.5]
    plan = make_plan(Policy.load(data), anatomy(25))
    assert [(site.block, site.keep) for site in plan.sites] == [(1, 20), (3, 10)]
    data["selector"]["keep_per_site"] = [0.8, 0.5]
    with pytest.raises(PolicyError, match=r"2 shares.* 3 sites"):
        make_plan(Policy.load(data), anatomy(25))


def test_a_block_that_does_not_exist_is_named() -> None:
    with pytest.raises(PolicyError, match=r"block 12 .* 0 to 11"):
        make_plan(policy(blocks=[12]), anatomy())


def test_a_site_that_chooses_among_all_again_has_the_share_of_its_stage() -> None:
    found = sites(anatomy(100), keep=0.5, fate="preserve", reactivate=True, stages=2, blocks=[2, 4, 6, 8])
    assert found == [(2, 101, 50, 51), (4, 101, 50, 51), (6, 101, 25, 26), (8, 101, 25, 26)]


def test_what_is_preserved_without_coming_back_shrinks_on() -> None:
    found = sites(anatomy(100), keep=0.5, fate="preserve", blocks=[2, 4])
    assert found == [(2, 101, 50, 51), (4, 51, 25, 26)]


def test_no_site_keeps_fewer_patches_than_the_least() -> None:
    assert sites(anatomy(100), keep=0.01, least=8, blocks=[2]) == [(2, 101, 8, 9)]
    assert sites(anatomy(4), keep=0.01, least=8, blocks=[2]) == []


def test_counts_of_a_ragged_site_are_the_mean() -> None:
    plan = make_plan(policy(selector="threshold", fate="preserve", reactivate=True, blocks=[3]), anatomy())
    assert [str(site) for site in plan.sites] == ["before block 3: 26 -> 14 tokens on average"]


def test_counts_that_differ_are_not_followed_by_one_that_does_not() -> None:
    def merging(block: int, kind: str) -> dict[str, Any]:
        choose = {"threshold": {"at": 0.9}, "top_k": {"remove": 0.1}}[kind]
        return {
            "sites": {"where": "after_attention", "blocks": [block]},
            "scorer": {"kind": "similarity"}, "selector": {"kind": kind, **choose}, "fate": "merge",
        }  # fmt: skip

    title = {"version": 1, "name": "mine", "summary": "Merge, and merge again."}

    def mine(first: dict[str, Any], second: dict[str, Any]) -> Policy:
        return Policy.load({**title, **first, "then": [second]})

    with pytest.raises(PolicyError, match="at block 4") as caught:
        make_plan(mine(merging(1, "threshold"), merging(4, "top_k")), anatomy())
    assert caught.value.where == "then[0].selector.kind"
    with pytest.raises(PolicyError, match="at block 4, where images have different numbers") as caught:
        make_plan(mine(merging(4, "top_k"), merging(1, "threshold")), anatomy())
    assert caught.value.where == "selector.kind"
    plan = make_plan(mine(merging(1, "top_k"), merging(4, "threshold")), anatomy())
    assert [(site.block, site.ragged) for site in plan.sites] == [(1, False), (4, True)]
