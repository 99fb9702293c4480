"""Tokens that are left out are represented: who stands for each, and what they get of what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.model import Parts, attention, ranked, take_apart

Sites = Mapping[int, Callable[["Tokens"], "Chosen"]]  # by block: what goes on, and who stands for whom


@dataclass(frozen=True)
class Tokens:
    """The tokens of one image at a site."""

    x: Tensor  # [n, C]
    keys: Tensor | None  # [n, d], the mean over heads; none in front of a block
    size: Tensor  # [n]
    patches: list[int]  # where the tokens stand that may leave


@dataclass(frozen=True)
class Chosen:
    """What a site makes of them: n tokens become m."""

    places: list[int]  # where those stood that go on, ascending
    stands: list[int]  # for each of the n: the place among the m of what stands for it
    x: Tensor  # [m, C]
    size: Tensor  # [m]


# --- sites ----------------------------------------------------------------------------------


def drop(tokens: Tokens, places: Sequence[int]) -> Chosen:
    """Tokens go on as they are; the likest patch that goes on stands for each of the others."""
    stands = likest(tokens, places, alike(tokens.x))
    return Chosen(list(places), stands, tokens.x[list(places)], tokens.size[list(places)])


def fuse(tokens: Tokens, places: Sequence[int], at: int, weights: Tensor | None) -> Chosen:
    """In the place of the token `at` stands the sum of all that leave, of that one too; or their mean."""
    chosen = drop(tokens, places)
    leaving = [row for row in range(len(tokens.x)) if row == at or row not in places]
    weight = tokens.x.new_ones(len(tokens.x)) / len(leaving) if weights is None else weights
    x = chosen.x.clone()
    x[list(places).index(at)] = sum(weight[row] * tokens.x[row] for row in leaving)
    return Chosen(chosen.places, chosen.stands, x, chosen.size)


def merge(tokens: Tokens, places: Sequence[int], stands: list[int]) -> Chosen:
    """Each that leaves goes into what stands for it, by a mean that counts tokens by their size."""
    x, sizes = [], []
    for place in range(len(places)):
        group = [row for row, stands_for in enumerate(stands) if stands_for == place]
        size = tokens.size[group]
        x.append((size[:, None] * tokens.x[group]).sum(dim=0) / size.sum())
        sizes.append(size.sum())
    return Chosen(list(places), stands, torch.stack(x), torch.stack(sizes))


def likest(tokens: Tokens, places: Sequence[int], similar: Tensor) -> list[int]:
    """For each token the place, among those that go on, of what stands for it: itself or the likest."""
    patches = [row for row in places if row in tokens.patches]
    found = []
    for row in range(len(tokens.x)):
        chosen = row if row in places else max(patches, key=lambda other: float(similar[row, other]))
        found.append(list(places).index(chosen))
    return found


# --- scores ---------------------------------------------------------------------------------


def alike(x: Tensor, centred_on: Sequence[int] = ()) -> Tensor:
    """How alike each is to each: the cosine, which is 1 less half the squared distance of unit vectors.

    `centred_on`: of what sets tokens off from the mean of these, with the square roots of their lengths.
    """
    if not centred_on:
        unit = F.normalize(x, dim=-1)
        return unit @ unit.T
    x = x - sum(x[row] for row in centred_on) / len(centred_on)
    x = x / x.norm(dim=-1, keepdim=True) ** 0.5
    distance = torch.stack([(x - row).square().sum(dim=-1) for row in x])
    return 1 - distance / 2


def novelty(similar: Tensor, patches: Sequence[int], order: Callable[[int], float]) -> Tensor:
    """1 less the largest similarity with a patch that comes before it in an order; the first always stays."""
    found = torch.full((len(similar),), float("inf"))
    for row in patches:
        before = [float(similar[row, other]) for other in patches if order(other) < order(row)]
        found[row] = 1 - max(before) if before else float("inf")
    return found


def golden(row: int) -> float:
    """A fixed order that jumps about the image: multiples of the golden ratio, their fractions."""
    return row * 2654435769 % 2**32


def best(tokens: Tokens, score: Tensor, count: int) -> list[int]:
    """The protected tokens, and the patches of the highest scores."""
    stay = ranked(score, tokens.patches)[:count]
    return [row for row in range(len(tokens.x)) if row in stay or row not in tokens.patches]


# --- the model ------------------------------------------------------------------------------


def represented(
    model: nn.Module,
    image: Tensor,
    sites: Sites,
    *,
    share: bool,
    late: bool = False,
    proportional: bool = False,
    anew: bool = False,
) -> Tensor:
    """What the model returns; to a dense head tokens come back by means of those that stand for them.

    `share`: each is what it was, and the change since then of what stands for it; otherwise a copy of that.
    `late`: sites lie behind the attention of their block; `anew`: each chooses among all tokens.
    """
    parts = take_apart(model, image)
    x, size = parts.tokens, parts.tokens.new_ones(len(parts.tokens))
    left: list[tuple[Tensor, Chosen]] = []

    def select(number: int, keys: Tensor | None) -> None:
        nonlocal x, size, left
        if number in sites:
            if anew:
                x, left = whole(x, left, share=share), []
                size = x.new_ones(len(x))
            patches = list(range(parts.prefix, len(x) - parts.suffix))
            chosen = sites[number](Tokens(x, keys, size, patches))
            left = [*left, (x, chosen)]
            x, size = chosen.x, chosen.size

    for number, layer in enumerate(parts.layers):
        if not late:
            select(number, None)
        attended = attention(layer, x, size.log() if proportional else 0.0)
        x = x + attended.branch
        if late:
            select(number, attended.k.mean(dim=0))
        x = x + layer.mlp(x)
    return _finish(parts, whole(x, left, share=share) if parts.dense else x)


def whole(x: Tensor, left: Sequence[tuple[Tensor, Chosen]], *, share: bool) -> Tensor:
    """All tokens again, from one site to the one before it."""
    for before, chosen in reversed(left):
        rows = [
            before[row] + x[place] - chosen.x[place] if share else x[place]
            for row, place in enumerate(chosen.stands)
        ]
        x = torch.stack(rows)
    return x


def _finish(parts: Parts, x: Tensor) -> Tensor:
    return parts.head(x, x.new_ones(len(x)))
