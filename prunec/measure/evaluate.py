"""What pruning costs: the pruned model and its random control beside the dense one, on the same images.

    images --+-- dense ----.
             +-- pruned ---+-- accuracy (where there are labels), agreement, divergence, similarity
             '-- random ---'   the mean over several seeds, and how far the seeds lie apart

A model is any callable on a batch of images: a module, or a flat program of `prunec.targets`. Its first
floating-point output counts, in whatever structure it comes.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunec import compat
from prunec.errors import UsageError

Model = Callable[..., Any]
Figures = dict[str, float]


@dataclass(frozen=True)
class Score:
    """One model beside the dense one, averaged over the images. None: it does not apply."""

    similarity: float  # cosine of the outputs: 1 when they point the same way
    agreement: float | None = None  # share of the images whose best class is the dense model's
    divergence: float | None = None  # KL(dense || this) of the class probabilities, in nats
    accuracy: float | None = None  # share of the images whose best class is the label

    def as_dict(self) -> Figures:
        """The figures that apply, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in self.as_dict().items())


@dataclass(frozen=True)
class Comparison:
    """Dense, pruned and random on the same images."""

    images: int
    seeds: int
    dense: Score
    pruned: Score
    random: Score | None = None  # the mean over the seeds
    spread: Score | None = None  # the standard deviation over the seeds

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        scores = {name: getattr(self, name) for name in ("dense", "pruned", "random", "spread")}
        named = {name: score.as_dict() for name, score in scores.items() if score is not None}
        return {"images": self.images, "seeds": self.seeds, **named}


def compare(
    models: Mapping[str, Model],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    batch: int | None = None,
    seeds: int = 5,
    device: torch.device | str | None = None,
) -> Comparison:
    """Run the models over the images.

    Args:
        models: `dense`, which the others are compared with; `pruned`, the same with fewer tokens; and perhaps
            `random`, the pruned model with random scores (`passes.controls.RandomScores`).
        images: [n, ...], normalised, in the precision that the models take.
        labels: [n], the class of each image.
        batch: images at a time, at most 32 when left out. Every batch is full, so that a model made for one
            batch runs too: the first images fill up the last batch, and are counted once.
        seeds: how many random controls.
        device: where the models are; where the images are when left out.

    Raises:
        UsageError: images, labels and outputs do not fit together.
    """
    _check(images, labels, batch, seeds)
    batch = batch or min(32, max(2, len(images)))
    dense, pruned = models["dense"], models["pruned"]
    chances = {f"random {seed}": models["random"] for seed in range(seeds)} if "random" in models else {}
    parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in ("dense", "pruned", *chances)}
    for start in range(0, len(images), batch):
        rows = torch.arange(start, start + batch) % len(images)
        count = min(batch, len(images) - start)
        x = images[rows].to(device)
        truth = labels[rows][:count].cpu() if labels is not None else None
        expected = output(dense, x, start)[:count]
        parts["dense"].append(measures(expected, expected, truth))
        parts["pruned"].append(measures(output(pruned, x, start)[:count], expected, truth))
        for seed, (name, model) in enumerate(chances.items()):
            found = output(model, x, start + seed * len(images))[:count]
            parts[name].append(measures(found, expected, truth))
    averages = {name: _average(values) for name, values in parts.items()}
    controls = [averages[name] for name in chances]
    return Comparison(
        images=len(images),
        seeds=len(chances),
        dense=Score(**averages["dense"]),
        pruned=Score(**averages["pruned"]),
        random=_over(controls, statistics.mean),
        spread=_over(controls, statistics.pstdev),
    )


def output(model: Model, x: Tensor, seed: int = 0) -> Tensor:
    """The first floating-point output on one batch, in single precision on the CPU.

    Random numbers depend on the seed alone, and the caller's random state stays as it is.
    """
    with seeded(seed, x.device), torch.no_grad():
        leaves, _ = compat.tree_flatten(model(x))
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.float().cpu()
    raise UsageError(
        "the model returned no floating-point tensor", remedy="give a model of class scores or features"
    )


def measures(found: Tensor, expected: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
    """What two outputs [B, ...] have in common, a number for each image [B].

    Outputs of two dimensions are class scores.
    """
    if found.shape != expected.shape:
        raise UsageError(
            f"the outputs have the shapes {list(expected.shape)} and {list(found.shape)}",
            remedy="compare models that return the same thing for every image",
        )
    values = {"similarity": F.cosine_similarity(found.flatten(1), expected.flatten(1))}
    if expected.dim() != 2:
        return values
    best, classes = found.argmax(1), expected.shape[1]
    values["agreement"] = (best == expected.argmax(1)).float()
    logs = F.kl_div(found.log_softmax(1), expected.log_softmax(1), reduction="none", log_target=True)
    values["divergence"] = logs.sum(1).clamp_min(0)  # it is never negative, but rounding is
    if labels is not None:
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high < classes:
            raise UsageError(
                f"the labels run from {low} to {high}, the model has {classes} classes",
                remedy="give labels that number this model's classes, or none",
            )
        values["accuracy"] = (best == labels).float()
    return values


def _average(parts: list[dict[str, Tensor]]) -> Figures:
    """The mean over the images of all batches."""
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}


def _over(runs: list[Figures], statistic: Callable[[Sequence[float]], float]) -> Score | None:
    """One score from several: their mean, or their spread."""
    return Score(**{name: statistic([run[name] for run in runs]) for name in runs[0]}) if runs else None


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from a seed; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _check(images: Tensor, labels: Tensor | None, batch: int | None, seeds: int) -> None:
    if len(images) == 0:
        raise UsageError("there are no images", where="evaluate", remedy="give one or more")
    if labels is not None and labels.shape != images.shape[:1]:
        raise UsageError(
            f"{len(images)} images have labels of the shape {list(labels.shape)}",
            where="evaluate",
            remedy="give one label for each image, or none",
        )
    if seeds < 1 or (batch is not None and batch < 1):
        raise UsageError(f"batch is {batch} and seeds is {seeds}", where="evaluate", remedy="use 1 or more")
