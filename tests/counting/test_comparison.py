"""Which numbers are others at another token count, and in which form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import prunec
from tests.counting.models import (
    TOKENS,
    Counting,
    Read,
    check,
    early,
    pruned,
    ready,
)


class Weighed(nn.Module):
    """A learned weight for each token."""

    def __init__(self, parted: bool) -> None:
        super().__init__()
        self.weight, self.parted = nn.Parameter(torch.ones(TOKENS)), parted

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / x.shape[1] if self.parted else self.weight
        return (x * weight[:, None]).sum(1) / (1 if self.parted else x.shape[1])


UNKNOWN: dict[str, tuple[Read, str]] = {
    "x.topk(n // 2)": (lambda x: x.topk(x.shape[1] // 2, dim=1).values.sum(1), "number 13 follows"),
    "sum / (n % 7)": (lambda x: x.sum(1) / (x.shape[1] % 7 + 3), "number 8 follows"),
    "two numbers of one tensor": (lambda x: x.sum(1) / torch.tensor([1.0, x.shape[1]] * 8), "follows"),
    "a weight for each token / n": (Weighed(parted=True), "whether that is a position or a count"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_number_that_follows_in_no_known_form_is_refused_with_its_line(name: str) -> None:
    read, what = UNKNOWN[name]
    with pytest.raises(prunec.RecognitionError, match=what) as refused:
        pruned(ready(Counting([read])))
    assert "tests/counting/" in str(refused.value.where)
    assert refused.value.remedy


def test_a_learned_weight_for_each_token_moves_with_it_and_its_sum_is_divided_by_their_number() -> None:
    class Kept(Counting):
        def by_hand(self, image: Tensor, kept: Tensor) -> Tensor:
            rows = kept.nonzero()[:, 0]
            x = self.norm(self.blocks[1](self.blocks[0](self.embed(image[None]))[:, rows]))
            weight = self.reads[0].weight[rows]
            return self.head((x * weight[:, None]).sum(1) / len(rows))[:, None]

    check(lambda: ready(Kept([Weighed(parted=False)])), 0)


NEAR_MISSES: dict[str, Read] = {
    "26": lambda x: x.sum(1) / 26,
    "1 / 26": lambda x: x.sum(1) * (1 / 26),
    "log(26)": lambda x: x.sum(1) / math.log(26),
    "torch.tensor(26)": lambda x: x.sum(1) / torch.tensor(26.0),
    "ones(26) / 26, no token's": lambda x: x.sum(1) / (torch.ones(26) / 26).sum() / 26,
    "26 beside the count": lambda x: x.sum(1) / 26 + x.sum(1) / x.shape[1],
    "the patches of the image at 4 pixels each way": lambda x: x.sum(1) / 25,
}


def near_misses() -> Counting:
    return ready(Counting(list(NEAR_MISSES.values())))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_number_that_only_equals_the_count_stays(name: str) -> None:
    check(near_misses, list(NEAR_MISSES).index(name))


@pytest.mark.parametrize("place", range(3), ids=["image", "grid", "tokens"])
def test_a_count_that_is_read_before_the_blocks_follows_too(place: int) -> None:
    check(early, place)
