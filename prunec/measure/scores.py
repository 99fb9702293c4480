"""The figures of models beside the dense one, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunec.measure.fidelity import Output

Figures = dict[str, float]


@dataclass(frozen=True)
class Score:
    """One model beside the dense one, over the images. None: it does not apply."""

    similarity: float  # cosine of the outputs: 1 when they point the same way
    agreement: float | None = None  # share of the images, or pixels, whose best class is the dense model's
    divergence: float | None = None  # KL(dense || this) of the class probabilities, in nats
    accuracy: float | None = None  # share of the images whose best class is the label
    correlation: float | None = None  # of maps
    iou: float | None = None  # of boxes, matched
    relative_l2: float | None = None  # ||this - dense|| / ||dense||; an output of zeros has 1
    metric: float | None = None  # the user's own

    def as_dict(self) -> Figures:
        """The figures that apply, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in self.as_dict().items())


@dataclass(frozen=True)
class Compared:
    """One output of the models."""

    output: Output
    scores: Mapping[str, Score]  # of pruned, and where there are some of random, spread and resize

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        about = {name: getattr(self.output, name) for name in ("name", "kind", "why", "main")}
        return {**about, **{name: _plain(score) for name, score in self.scores.items()}}


@dataclass(frozen=True)
class Comparison:
    """Dense, pruned and their controls on the same images; the scores are those of the main output."""

    images: int
    seeds: int
    dense: Score
    pruned: Score
    random: Score | None = None  # the mean over the seeds
    spread: Score | None = None  # the standard deviation over the seeds
    resize: Score | None = None  # the dense model on a smaller picture
    outputs: tuple[Compared, ...] = ()  # all of them, the main one first
    metric: str = ""  # what the user's own is called
    resized: str = ""  # what the smaller picture is, or why there is none

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        scores = {name: getattr(self, name) for name in ("dense", "pruned", "random", "spread", "resize")}
        named = {name: _plain(score) for name, score in scores.items() if score is not None}
        said = {"metric": self.metric, "resized": self.resized}
        outputs = [compared.as_dict() for compared in self.outputs]
        return {
            "images": self.images,
            "seeds": self.seeds,
            **named,
            **{name: text for name, text in said.items() if text},
            **({"outputs": outputs} if outputs else {}),
        }


def _plain(score: Score) -> dict[str, float | None]:
    """For JSON, which has no nan and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in score.as_dict().items()}
