"""The formulas of the certificate's reference, beside loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from prunec.errors import VerificationError
from prunec.policy.policy import Policy
from prunec.verify import fates
from prunec.verify.choices import Choice
from prunec.verify.fates import Epoch

TOKENS, WIDTH = 7, 3
INNER = (1, TOKENS)


def values(seed: int = 0) -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def choice(kept: list[int], place: int | None = None, **changes: Any) -> Choice:
    stays = torch.zeros(TOKENS, dtype=torch.bool).index_fill(0, torch.tensor(kept), True)
    rows = torch.tensor(kept if place is None else [*kept, place])
    made = Choice(
        torch.ones(TOKENS, dtype=torch.bool), stays, place, rows, torch.arange(TOKENS), torch.rand(TOKENS)
    )
    return dataclasses.replace(made, **changes)


def test_what_left_is_stale() -> None:
    held, x = values(), values(1)
    alive = torch.tensor([True, False, True, True, False, False, True])
    whole = Epoch(alive, held).whole(x)
    for token in range(TOKENS):
        assert torch.equal(whole[token], x[token] if alive[token] else held[token])


def test_or_is_a_copy_of_what_stands_for_it() -> None:
    x = values()
    group = torch.tensor([0, 2, 2, 3, 3, 2, 6])
    assert torch.equal(Epoch(torch.ones(TOKENS).bool(), values(1), group=group).whole(x), x[group])


def test_or_has_its_own_value_and_the_update_of_that() -> None:
    held, x, start = values(), values(1), values(2)
    group = torch.tensor([0, 2, 2, 3, 3, 2, 6])
    alive = torch.zeros(TOKENS).bool().index_fill(0, group.unique(), True)
    whole = Epoch(alive, held, group, start).whole(x)
    for token, other in enumerate(group.tolist()):
        torch.testing.assert_close(whole[token], held[token] + x[other] - start[other])


def test_what_stands_for_a_token_may_leave_as_well() -> None:
    first = choice([0, 1, 3, 5, 6], partner=torch.tensor([0, 1, 3, 3, 5, 5, 6]))
    group = fates.represented(first, None)
    assert group.tolist() == [0, 1, 3, 3, 5, 5, 6]
    again = choice([0, 1, 5, 6], partner=torch.tensor([0, 1, 0, 5, 0, 5, 6]))
    assert fates.represented(again, group).tolist() == [0, 1, 5, 5, 5, 5, 6]
    with pytest.raises(VerificationError, match="represented"):
        fates.represented(choice([0, 1]), None)


def test_fused_tokens_are_summed_by_their_scores() -> None:
    x, step = values(), Policy.load("evit")
    made = choice([0, 2, 3], place=5)
    found = fates.fused(x, made, step)
    torch.testing.assert_close(found[5], sum(made.score[token] * x[token] for token in (1, 4, 5, 6)))
    torch.testing.assert_close(fates.fused(x, made, Policy.load("pomt"))[5], x[[1, 4, 5, 6]].mean(dim=0))
    assert torch.equal(found[[0, 2, 3]], x[[0, 2, 3]])
    assert torch.equal(fates.fused(x, choice(list(range(TOKENS))), step), x)


def test_merged_tokens_are_means_by_size_twice() -> None:
    x, step = values(), Policy.load("tome")
    likeness = torch.rand(TOKENS)
    first = choice([0, 1, 3, 5, 6], partner=torch.tensor([0, 1, 3, 3, 5, 5, 6]), alike=likeness)
    made = fates.merged(x, first, step, None, (4, 2), INNER)
    torch.testing.assert_close(made.x[3], (x[2] + x[3]) / 2)
    assert made.size[[0, 1, 3, 5, 6]].tolist() == [1, 1, 2, 2, 1]
    alive = first.alive
    again = choice([0, 1, 5, 6], partner=torch.tensor([0, 1, 0, 5, 0, 5, 6]), alike=likeness, entering=alive)
    twice = fates.merged(made.x.masked_fill(~alive[:, None], fates.NAN), again, step, made, (3, 1), INNER)
    torch.testing.assert_close(twice.x[5], (x[2] + x[3] + x[4] + x[5]) / 4)
    assert twice.size[5] == 4


def test_some_are_forgotten_and_others_count_by_likeness() -> None:
    x, step = values(), Policy.load("diffrate")  # half of what leaves is forgotten, means are plain
    score = torch.tensor([0.0, 0.9, 0.1, 0.8, 0.5, 0.2, 0.7])
    made = choice(
        [0, 1, 3], score=score, partner=torch.tensor([0, 1, 1, 3, 3, 3, 1]), alike=torch.full((TOKENS,), 0.5)
    )
    found = fates.merged(x, made, step, None, (2, 4), INNER)  # 6 and 4 are remembered, 2 and 5 are not
    torch.testing.assert_close(found.x[1], (x[1] + x[6]) / 2)
    torch.testing.assert_close(found.x[3], (x[3] + x[4]) / 2)
    assert found.size[[0, 1, 3]].tolist() == [1, 1.5, 1.5]


def test_likeness_is_that_to_patches_that_stay() -> None:
    x = values().double()
    found = fates.likeness(x, choice([0, 2, 3]), INNER)
    unit = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found[0, [2, 3]], unit[[2, 3]] @ unit[1])
    assert found[:, [0, 1, 4, 5, 6]].isneginf().all()


def test_or_that_of_what_sets_them_apart() -> None:
    x = values().double() + 3
    found = fates.likeness(x, choice([0, 2, 3], metric=x), INNER)
    apart = x - x[1:].mean(dim=0)
    apart = apart / apart.norm(dim=1, keepdim=True) ** 0.5
    for other in (2, 3):
        expected = 1 - (apart[1] - apart[other]).square().sum() / 2
        torch.testing.assert_close(found[0, other], expected)
