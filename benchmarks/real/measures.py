"""How near tokens are to the dense model's, and what a classifier fitted to the dense model makes of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MEASURES = ("l2", "cosine", "class", "heatmap", "accuracy", "auc", "agreement")
DECAY = 1e-2  # of the probe's weights

Figures = dict[str, float]


@dataclass(frozen=True)
class Spread:
    """One figure over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float:
        """The standard deviation over the seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "mean": round(self.mean, 5),
            "spread": round(self.deviation, 5),
            "seeds": [round(value, 5) for value in self.values],
        }


def of_tokens(found: Tensor, expected: Tensor, heat: Tensor, expected_heat: Tensor) -> Figures:
    """Means over the pictures; tokens [B, N, C], the class token first; heatmaps [B, H, W]."""
    apart = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return {
        "l2": float(apart.mean()),
        "cosine": float(F.cosine_similarity(found, expected, dim=2).mean()),
        "class": float(F.cosine_similarity(found[:, 0], expected[:, 0], dim=1).mean()),
        "heatmap": float(correlation(heat.flatten(1), expected_heat.flatten(1)).mean()),
    }


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, of each row: [B, n] -> [B]."""
    return F.cosine_similarity(one - one.mean(dim=1, keepdim=True), other - other.mean(dim=1, keepdim=True))


def features(tokens: Tensor) -> Tensor:
    """The class token beside the mean patch token: [B, N, C] -> [B, 2 C]."""
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


@dataclass(frozen=True)
class Probe:
    """A logistic classifier of features."""

    mean: Tensor
    scale: Tensor
    weight: Tensor  # [C + 1], the last for the constant

    @classmethod
    def fitted(cls, x: Tensor, labels: Tensor) -> Probe:
        """The one with the least loss on these features [n, C]."""
        mean, scale = x.mean(dim=0), x.std(dim=0) + 1e-6
        weight = torch.zeros(x.shape[1] + 1, requires_grad=True)
        probe = cls(mean, scale, weight)
        optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            wrong = F.binary_cross_entropy_with_logits(probe.scores(x), labels.float())
            total = wrong + DECAY * weight.square().sum()
            total.backward()
            return total

        optimizer.step(loss)
        return cls(mean, scale, weight.detach())

    def scores(self, x: Tensor) -> Tensor:
        """Above 0 for yes: [n, C] -> [n]."""
        return ((x - self.mean) / self.scale) @ self.weight[:-1] + self.weight[-1]


def of_scores(found: Tensor, expected: Tensor, labels: Tensor) -> Figures:
    """Scores of a probe, beside those that it gives the dense model's features."""
    said = found > 0
    return {
        "accuracy": float((said == labels).float().mean()),
        "auc": area_under_curve(found, labels),
        "agreement": float((said == (expected > 0)).float().mean()),
    }


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """How often one that is positive scores higher than one that is not; a tie counts half."""
    above = scores[labels][:, None] - scores[~labels][None, :]
    return float((above > 0).float().mean() + (above == 0).float().mean() / 2)


def over_seeds(runs: Sequence[Figures]) -> dict[str, Spread]:
    """The figures of the seeds, one beside the other."""
    return {name: Spread(tuple(run[name] for run in runs)) for name in runs[0]}


def wins(one: Spread, other: Spread, name: str) -> int:
    """In how many seeds the first is better; both saw the same pictures. Less is better of l2 alone."""
    sign = -1 if name == "l2" else 1
    return sum(sign * mine > sign * theirs for mine, theirs in zip(one.values, other.values, strict=True))
