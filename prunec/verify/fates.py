"""The fates once more, independent of prunec/ops: one image, in plain PyTorch, tokens by their number.

alive     has a row of its own in the stream
left out  has the value it had when it left (stale), its representative's (copy), or its own and the update
          of its representative since then (share)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunec.errors import REPORT, VerificationError
from prunec.policy.rules import Step
from prunec.verify.choices import Choice

NAN = float("nan")


@dataclass(frozen=True)
class Epoch:
    """The state of all tokens between one site and the next."""

    alive: Tensor  # [T] bool
    held: Tensor  # [T, C]: what all tokens were at the site, those that had left restored
    group: Tensor | None = None  # [T]: the token that stands for each, where tokens are represented
    start: Tensor | None = None  # [T, C]: the stream right behind the site, where updates are shared

    def whole(self, x: Tensor) -> Tensor:
        """A state [T, C] with its dead rows restored."""
        if self.group is None:
            return torch.where(self.alive[:, None], x, self.held)
        if self.start is None:
            return x[self.group]
        return self.held + (x - self.start)[self.group]


def represented(choice: Choice, before: Tensor | None) -> Tensor:
    """The token that stands for each, through all sites before: [T]."""
    if choice.partner is None:
        raise VerificationError("tokens are to be represented, and the graph says by none", remedy=REPORT)
    numbers = torch.arange(len(choice.kept), device=choice.kept.device)
    into = torch.where(choice.alive, numbers, choice.partner)
    return into if before is None else into[before]


def fused(x: Tensor, choice: Choice, step: Step) -> Tensor:
    """The tokens that go on, one of them the sum (or mean) of those that leave."""
    if choice.place is None:
        return x
    leaving = choice.leaving.nonzero()[:, 0]
    if step.weights == "uniform":
        extra = x[leaving].mean(dim=0)
    else:
        extra = (choice.score[leaving][:, None].to(x.dtype) * x[leaving]).sum(dim=0)
    x = x.clone()
    x[choice.place] = extra
    return x


@dataclass(frozen=True)
class Merged:
    """A merged stream: values, and how many tokens each stands for."""

    x: Tensor
    size: Tensor


def merged(
    x: Tensor,
    choice: Choice,
    step: Step,
    before: Merged | None,
    planned: tuple[int, int],
    inner: tuple[int, int],
) -> Merged:
    """Tokens that leave merge into their partners; `planned`: how many patches stay, and how many leave."""
    if choice.partner is None or choice.alike is None:
        raise VerificationError("tokens are to be merged, and the graph says with none", remedy=REPORT)
    rule, leaving, entering = step.merging, choice.leaving, choice.entering
    numbers = torch.arange(len(leaving), device=x.device)
    into = torch.where(leaving, choice.partner, numbers)
    stands = before.size if before is not None else torch.ones_like(choice.score)
    weight = torch.ones_like(stands)
    if rule.forget:
        weight = _remembered(choice, planned[0] + round(planned[1] * (1 - rule.forget)), inner).to(weight)
    by_size = rule.mean == "by_size" and before is not None
    share = (into == numbers[:, None]) & entering  # [T, T]: the tokens of each group
    mean = share * (weight * stands if by_size else weight).to(x.dtype)
    mean = mean / mean.sum(dim=1, keepdim=True).clamp_min(1e-12)
    counted = stands * weight
    if rule.sizes == "by_similarity":
        counted = torch.where(leaving, counted * choice.alike.clamp_min(0).to(counted), counted)
    size = torch.where(choice.kept, (share * counted).sum(dim=1), stands)
    value = torch.where(choice.kept[:, None], mean @ x.masked_fill(~entering[:, None], 0), x)
    return Merged(value, size)


def likeness(x: Tensor, choice: Choice, inner: tuple[int, int]) -> Tensor:
    """How like each token that leaves is to each patch that stays: [n, T]; -inf for all other tokens.

    That is 1 less half their squared distance: between unit vectors, or, where the choice says so, between
    what sets them off from the mean patch, of the square root of its length.
    """
    there, patches = choice.alive.clone(), choice.entering.clone()
    for mask in (there, patches):
        mask[: inner[0]] = mask[inner[1] :] = False
    x = x.masked_fill(~choice.entering[:, None], 0).double()
    if choice.metric is not None:
        x = x - x[patches].mean(dim=0)
        x = x * x.norm(dim=1, keepdim=True).clamp_min(1e-6) ** -0.5
    else:
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    found = 1 - torch.cdist(x[choice.leaving], x).square() / 2
    return found.masked_fill(~there, float("-inf"))


def _remembered(choice: Choice, count: int, inner: tuple[int, int]) -> Tensor:
    """The mask of tokens that stay or are among the `count` best patches."""
    score = choice.score.masked_fill(~choice.entering, float("-inf"))
    best = score[slice(*inner)].sort(descending=True, stable=True).indices[:count] + inner[0]
    return choice.kept.index_fill(0, best, True)
