"""What kind of output a model gives, and how much of it another model keeps.

    kind          shape                    figures, the main one first
    class scores  [B, K]                   same best class, KL divergence
    class map     [B, K, H, W]             pixels of the same class
    map           [B, H, W], [B, 1, H, W]  correlation
    boxes         [B, Q, 4] beside scores  matched IoU
    features      [B, T, C], [B, C], ...   cosine
    numbers       [B], [B, 1]              none
    all of them                            relative L2: ||found - expected|| / ||expected||; zeros have 1

A shape alone does not tell scores from an embedding, nor maps from features: `Known` holds what the model
says of itself, and every output says why it was taken for what it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prunec.measure.boxes import matched

Kind = Literal["class scores", "class map", "map", "boxes", "features", "numbers"]
PerImage = dict[str, Tensor]

#: The figures of each kind, the main one first.
FIGURES: Mapping[Kind, tuple[str, ...]] = {
    "class scores": ("agreement", "divergence", "relative_l2"),
    "class map": ("agreement", "relative_l2"),
    "map": ("correlation", "relative_l2"),
    "boxes": ("iou", "relative_l2"),
    "features": ("similarity", "relative_l2"),
    "numbers": ("relative_l2",),
}
#: Those of which less is better.
LOSSES = ("divergence", "relative_l2")

_OF_PIXELS = re.compile(r"depth|mask|heat|flow|alpha|saliency")
_OF_FEATURES = re.compile(r"pool|embed|feature|hidden")


@dataclass(frozen=True)
class Known:
    """What is known of a model's outputs besides their shapes."""

    classes: Mapping[int, str] = field(default_factory=dict)  # how many there are, and who says so
    width: int = 0  # of its tokens
    tokens: tuple[int, ...] = ()  # how many it has: all of them, and the patches
    picture: tuple[int, int] = (0, 0)  # height and width of its input
    labelled: int = 0  # how many classes the images' labels number, where they are numbers of the model's


@dataclass(frozen=True)
class Output:
    """One floating-point output of a model."""

    place: int  # among the floating-point outputs
    name: str  # where it is in what the model returns; empty where it is all of it
    sizes: tuple[int, ...]  # of one image
    kind: Kind
    why: str  # it was taken for that
    scores: int | None = None  # the place of the class scores beside boxes

    @property
    def main(self) -> str:
        """The figure of its kind."""
        return FIGURES[self.kind][0]

    def __str__(self) -> str:
        sizes = ", ".join(["B", *map(str, self.sizes)])
        return f"{self.kind} {self.name + ' ' if self.name else ''}[{sizes}]"


def outputs_of(leaves: Sequence[tuple[str, Sequence[int]]], known: Known | None = None) -> tuple[Output, ...]:
    """The kind of each output, from its name and the sizes of one image; the main output first."""
    known = known or Known()
    found = [
        Output(place, name, tuple(sizes), *_kind(name.rpartition(".")[2], tuple(sizes), known))
        for place, (name, sizes) in enumerate(leaves)
    ]
    found = [_boxes(output, found, known) or output for output in found]
    return tuple(sorted(found, key=lambda output: output.kind != "boxes"))


def kept(output: Output, found: Sequence[Tensor], expected: Sequence[Tensor]) -> PerImage:
    """The figures of one output, a number for each image [B]; of the relative L2 its two squares."""
    one, other = found[output.place], expected[output.place]
    values = {**figures(output.kind, one, other), **_squares(one, other)}
    if output.kind == "boxes" and output.scores is not None:
        values["iou"] = matched((one, found[output.scores]), (other, expected[output.scores]))
    return values


def figures(kind: Kind, found: Tensor, expected: Tensor) -> PerImage:
    """What two outputs of a kind [B, ...] have in common, a number for each image [B]."""
    special = _OF_KIND[kind](found, expected) if kind in _OF_KIND else {}
    return {"similarity": _cosine(found.flatten(1), expected.flatten(1)), **special}


def _squares(found: Tensor, expected: Tensor) -> PerImage:
    """The squared length of the difference and of what is expected; equal infinities do not differ."""
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    difference = torch.where(found == expected, 0, found - expected)
    finite = torch.where(expected.isfinite(), expected, 0)
    return {"squared_error": difference.square().sum(1), "squared_norm": finite.square().sum(1)}


def averaged(parts: Sequence[PerImage]) -> dict[str, float]:
    """The figures over the images of all batches."""
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    error, norm = (float(whole.pop(name).sum()) for name in ("squared_error", "squared_norm"))
    if norm > 0:
        share = math.sqrt(error / norm) if error >= 0 else math.nan  # nan is not
    else:
        share = 0.0 if error == 0 else math.inf
    return {**{name: float(values.mean()) for name, values in whole.items()}, "relative_l2": share}


# Which kind -------------------------------------------------------------------------------------------------


def _kind(name: str, sizes: tuple[int, ...], known: Known) -> tuple[Kind, str]:
    if math.prod(sizes) == 1:
        return "numbers", "one number for each image"
    if len(sizes) == 1:
        return _of_vector(name, sizes[0], known)
    if len(sizes) == 2:
        return _of_rows(name, sizes, known)
    return _of_planes(name, sizes, known) if len(sizes) == 3 else ("features", "it has many dimensions")


def _of_vector(name: str, count: int, known: Known) -> tuple[Kind, str]:
    if count in known.classes:
        return "class scores", known.classes[count]
    if name == "logits":
        return "class scores", "it is called logits"
    if _OF_FEATURES.search(name):
        return "features", f"it is called {name}"
    if 0 in known.classes:
        return "features", known.classes[0]
    if count == known.width:
        return "features", "a guess: it is as wide as the model's tokens"
    if 0 < known.labelled <= count:
        return "class scores", "the labels of the images are numbers of its classes"
    return "class scores", "a guess: it is not as wide as the model's tokens"


def _of_rows(name: str, sizes: tuple[int, ...], known: Known) -> tuple[Kind, str]:
    rows, width = sizes
    if _OF_PIXELS.search(name):
        return "map", f"it is called {name}"
    if rows in known.tokens:
        return "features", "a row for each token"
    if width == known.width:
        return "features", "rows as wide as the model's tokens"
    high, wide = known.picture
    if high and rows * wide == width * high:
        return "map", "a guess: it has the shape of the picture"
    return "features", "a guess: rows of numbers"


def _of_planes(name: str, sizes: tuple[int, ...], known: Known) -> tuple[Kind, str]:
    count = sizes[0]
    if count == 1:
        return "map", "one plane"
    if sizes[2] == known.width and sizes[0] * sizes[1] in known.tokens:
        return "features", "a row for each token"
    if count in known.classes:
        return "class map", known.classes[count]
    if name == "logits":
        return "class map", "it is called logits"
    if _OF_PIXELS.search(name):
        return "map", f"it is called {name}"
    if _OF_FEATURES.search(name) or count == known.width:
        return "features", "planes of features"
    if re.search("[a-z]", name):
        return "map", f"a guess: it is called {name}, which says nothing of classes"
    return "class map", "a guess: planes, not as many as the tokens are wide"


def _boxes(output: Output, others: Sequence[Output], known: Known) -> Output | None:
    """The output as boxes, where it has four numbers for each of many rows with class scores beside them."""
    if len(output.sizes) != 2 or output.sizes[1] != 4:
        return None
    beside = [
        other
        for other in others
        if other is not output and len(other.sizes) == 2 and other.sizes[0] == output.sizes[0]
    ]
    if not beside:
        return None
    if "box" in output.name:
        why = f"it is called {output.name}"
    elif output.sizes[0] not in known.tokens and known.width != 4 and len(beside) == 1:
        why = "a guess: four numbers for each row, with scores beside them"
    else:
        return None
    scores = next((other for other in beside if other.name.endswith("logits")), beside[0])
    return Output(output.place, output.name, output.sizes, "boxes", why, scores.place)


# Figures of each kind ---------------------------------------------------------------------------------------


def _same_class(found: Tensor, expected: Tensor) -> PerImage:
    same = (found.argmax(1) == expected.argmax(1)).float()
    return {"agreement": same.flatten(1).mean(1) if same.dim() > 1 else same}


def _of_scores(found: Tensor, expected: Tensor) -> PerImage:
    logs = F.kl_div(found.log_softmax(1), expected.log_softmax(1), reduction="none", log_target=True)
    divergence = logs.sum(1).clamp_min(0)  # it is never negative, but rounding is
    return {**_same_class(found, expected), "divergence": divergence}


def _correlation(found: Tensor, expected: Tensor) -> PerImage:
    centred = [each.flatten(1) - each.flatten(1).mean(1, keepdim=True) for each in (found, expected)]
    return {"correlation": _cosine(*centred)}


def _cosine(found: Tensor, expected: Tensor) -> Tensor:
    """1 too where both are all zeros."""
    return torch.where((found == expected).all(1), 1.0, F.cosine_similarity(found, expected))


_OF_KIND: Mapping[Kind, Callable[[Tensor, Tensor], PerImage]] = {
    "class scores": _of_scores,
    "class map": _same_class,
    "map": _correlation,
}
