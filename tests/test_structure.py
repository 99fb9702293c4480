from __future__ import annotations

import dataclasses

import pytest

from prunec.structure import Anatomy, Block, Branch, Core, NoMatch

CORE = Core("fused", "sdpa", "q", "k", "v")


def branch(kind: str, state: str, add: str, *cores: Core) -> Branch:
    return Branch(kind, state, add, "pre", False, cores, None)  # type: ignore[arg-type]


def anatomy(**changes: object) -> Anatomy:
    block = Block(0, "blocks.0", (branch("attention", "s0", "s1", CORE), branch("mlp", "s1", "s2")))
    whole = Anatomy(
        blocks=(block, block), tokens=26, prefix=1, suffix=0, token_dim=1, class_token=0,
        head=("class token",), taps=(), states=("s0", "s1", "s2"), pixels="x",
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def test_no_match_is_falsy_and_reads_well() -> None:
    miss = NoMatch(
        "the softmax runs over channels", "softmax", "node softmax in blocks.0, model.py:3  x.softmax(1)"
    )
    assert not miss
    assert (miss or "reason") == "reason"
    assert (None or miss) is miss
    assert str(miss) == "the softmax runs over channels (node softmax in blocks.0, model.py:3  x.softmax(1))"


def test_a_block_knows_its_attention_and_its_mlp() -> None:
    block = anatomy().blocks[0]
    assert block.attention is block.branches[0]
    assert block.mlp is block.branches[1]
    assert block.sequential


@pytest.mark.parametrize(
    "branches",
    [
        (branch("attention", "s0", "s1", CORE), branch("mlp", "s0", "s2")),
        (branch("parallel", "s0", "s1", CORE),),
        (branch("attention", "s0", "s1", CORE),),
        (branch("mlp", "s0", "s1"),),
    ],
)
def test_a_block_whose_parts_read_one_state_is_not_sequential(branches: tuple[Branch, ...]) -> None:
    assert not Block(0, "", branches).sequential


def test_the_grid_is_what_is_not_protected() -> None:
    assert anatomy().grid == 25
    assert anatomy(prefix=5, suffix=4).grid == 17
    assert anatomy().depth == 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "2/2 blocks, 25 patch tokens + 1 in front protected, head reads class token"),
        ({"prefix": 0, "head": ()}, "2/2 blocks, 26 patch tokens + no protected, head reads nothing"),
        (
            {"prefix": 2, "suffix": 4, "head": ("class token", "mean")},
            "2/2 blocks, 20 patch tokens + 2 in front and 4 at the end protected, "
            "head reads class token and mean",
        ),
        (
            {"unmatched": (NoMatch("why", "n", "node n"),)},
            "2/3 blocks, 25 patch tokens + 1 in front protected, head reads class token",
        ),
    ],
)
def test_the_summary_is_one_line(changes: dict[str, object], text: str) -> None:
    assert anatomy(**changes).summary() == text


def test_it_is_data() -> None:
    assert anatomy() == anatomy()
    assert hash(anatomy()) == hash(anatomy())
    with pytest.raises(AttributeError):
        anatomy().tokens = 3  # type: ignore[misc]
