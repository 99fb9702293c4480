"""What pruning costs: the pruned model and its controls beside the dense one, on the same images.

    images --+-- dense ----.
             +-- pruned ---+-- accuracy (where there are labels), and of each output what its kind asks for
             +-- random ---+   (fidelity.py); the mean over several seeds, and how far the seeds lie apart
             '-- resize ---'   the dense model on a smaller picture

A model is any callable on a batch of images: a module, or a flat program of `prunec.targets`. All of its
floating-point outputs count that have a number or more for each image, in whatever structure they come.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunec import compat
from prunec.errors import UsageError
from prunec.measure import metric as own
from prunec.measure.fidelity import Kind, Known, Output, PerImage, averaged, figures, kept, outputs_of
from prunec.measure.metric import Metric
from prunec.measure.scores import Compared as Compared
from prunec.measure.scores import Comparison as Comparison
from prunec.measure.scores import Figures
from prunec.measure.scores import Score as Score

Model = Callable[..., Any]

NO_OUTPUT = "the model returned no floating-point tensor with a row for each image"


@dataclass(frozen=True)
class Judge:
    """What outputs are judged by, besides their shapes."""

    known: Known = field(default_factory=Known)
    metric: Metric | None = None  # of the user's own


def compare(
    models: Mapping[str, Model],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    batch: int | None = None,
    seeds: int = 5,
    device: torch.device | str | None = None,
    judge: Judge | None = None,
) -> Comparison:
    """Run the models over the images.

    Args:
        models: `dense`, which the others are compared with; `pruned`, the same with fewer tokens; and perhaps
            `random`, the pruned model with random scores (`passes.controls.RandomScores`), and `resize`, the
            dense model on a smaller picture.
        images: [n, ...], normalised, in the precision that the models take.
        labels: [n], the class of each image.
        batch: images at a time, at most 32 when left out. Every batch is full, so that a model made for one
            batch runs too: the first images fill up the last batch, and are counted once.
        seeds: how many random controls.
        device: where the models are; where the images are when left out.
        judge: what is known of the outputs, and a metric of one's own.

    Raises:
        UsageError: images, labels and outputs do not fit together.
    """
    _check(images, labels, batch, seeds)
    judge = judge or Judge()
    batch = batch or min(32, max(2, len(images)))
    runs = _runs(models, seeds, len(images))
    parts: dict[str, list[list[PerImage]]] = {name: [] for name in runs}
    outputs: tuple[Output, ...] = ()
    for start in range(0, len(images), batch):
        rows = torch.arange(start, start + batch) % len(images)
        count = min(batch, len(images) - start)
        x = images[rows].to(device)
        truth = labels[rows][:count].cpu() if labels is not None else None
        expected = _answer(models["dense"], x, start, count)
        outputs = outputs or outputs_of(expected.sizes, judge.known)
        for name, (model, shift) in runs.items():
            found = expected if name == "dense" else _answer(model, x, start + shift, count)
            parts[name].append(_judged(found, expected, outputs, truth, judge))
    return _comparison(parts, outputs, len(images), judge)


def _runs(models: Mapping[str, Model], seeds: int, images: int) -> dict[str, tuple[Model, int]]:
    """The models by name, the random one as often as there are seeds, and by how much its seeds differ."""
    single = {name: (model, 0) for name, model in models.items() if name != "random"}
    chances = range(seeds if "random" in models else 0)
    return {**single, **{f"random {seed}": (models["random"], seed * images) for seed in chances}}


def _comparison(
    parts: Mapping[str, list[list[PerImage]]], outputs: Sequence[Output], images: int, judge: Judge
) -> Comparison:
    """The scores of every output."""
    seeds = sum(name.startswith("random ") for name in parts)
    compared = []
    for number, output in enumerate(outputs):
        figures = {name: averaged([batch[number] for batch in batches]) for name, batches in parts.items()}
        chances = [figures.pop(f"random {seed}") for seed in range(seeds)]
        scores = {name: Score(**values) for name, values in figures.items()}
        if chances:
            scores |= {"random": _over(chances, statistics.mean), "spread": _over(chances, _deviation)}
        compared.append(Compared(output, scores))
    main = compared[0].scores
    controls = (main.get("random"), main.get("spread"), main.get("resize"))
    said = own.name_of(judge.metric) if judge.metric is not None else ""
    return Comparison(images, seeds, main["dense"], main["pruned"], *controls, tuple(compared), said)


@dataclass(frozen=True)
class _Answer:
    """What a model returned for some images: as it is, and its floating-point leaves."""

    whole: Any
    names: tuple[str, ...]
    leaves: tuple[Tensor, ...]

    @property
    def sizes(self) -> list[tuple[str, tuple[int, ...]]]:
        """The name of each leaf, and its sizes for one image."""
        shapes = [tuple(leaf.shape[1:]) for leaf in self.leaves]
        return list(zip(self.names, shapes, strict=True))


def _answer(model: Model, x: Tensor, seed: int, count: int) -> _Answer:
    """What a model makes of the first images of a batch, in single precision on the CPU."""
    with seeded(seed, x.device), torch.no_grad():
        whole = own.first_images(model(x), len(x), count)
    named = zip(leaf_names(whole), compat.tree_leaves(whole), strict=True)
    found = [(name, leaf.float()) for name, leaf in named if _counts(leaf, count)]
    if not found:
        raise UsageError(NO_OUTPUT, remedy="give a model of class scores or features")
    names, leaves = zip(*found, strict=True)
    return _Answer(whole, names, leaves)


def _counts(leaf: Any, images: int) -> bool:
    """Whether an output is a floating-point number or more for each image."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0 and len(leaf) == images


def leaf_names(output: Any) -> list[str]:
    """Where each leaf of an output is: `logits`, `hidden_states[0]`; nothing where it is all of it."""
    names = compat.leaf_names([("", output)])
    return [re.sub(r"\['([^']*)'\]", r".\1", name).lstrip(".") for name in names]


def _judged(
    found: _Answer, expected: _Answer, outputs: Sequence[Output], labels: Tensor | None, judge: Judge
) -> list[PerImage]:
    """The figures of each output on these images."""
    shapes, others = (", ".join(str(list(leaf.shape)) for leaf in each.leaves) for each in (expected, found))
    if shapes != others:
        raise _different(shapes, others)
    values = [kept(output, found.leaves, expected.leaves) for output in outputs]
    main, main_values = outputs[0], values[0]
    if labels is not None and main.kind == "class scores":
        main_values["accuracy"] = _right(found.leaves[main.place], labels)
    if judge.metric is not None:
        main_values["metric"] = own.values(judge.metric, found.whole, labels, len(found.leaves[0]))
    return values


def output(model: Model, x: Tensor, seed: int = 0) -> Tensor:
    """The first floating-point output on one batch, in single precision on the CPU.

    Random numbers depend on the seed alone, and the caller's random state stays as it is.
    """
    with seeded(seed, x.device), torch.no_grad():
        leaves, _ = compat.tree_flatten(model(x))
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.float().cpu()
    raise UsageError(NO_OUTPUT, remedy="give a model of class scores or features")


def measures(found: Tensor, expected: Tensor, labels: Tensor | None = None) -> PerImage:
    """What two outputs [B, ...] have in common, a number for each image [B].

    Outputs of two dimensions are class scores.
    """
    if found.shape != expected.shape:
        raise _different(str(list(expected.shape)), str(list(found.shape)))
    scores = expected.dim() == 2
    kind: Kind = "class scores" if scores else "features"
    values = figures(kind, found, expected)
    if scores and labels is not None:
        values["accuracy"] = _right(found, labels)
    return values


def _right(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether the best class is the label."""
    low, high, classes = int(labels.min()), int(labels.max()), scores.shape[1]
    if not 0 <= low <= high < classes:
        raise UsageError(
            f"the labels run from {low} to {high}, the model has {classes} classes",
            remedy="give labels that number this model's classes, or none",
        )
    return (scores.argmax(1) == labels).float()


def _different(expected: str, found: str) -> UsageError:
    return UsageError(
        f"the outputs have the shapes {expected} and {found}",
        remedy="compare models that return the same thing for every image",
    )


def _over(runs: Sequence[Figures], statistic: Callable[[Sequence[float]], float]) -> Score:
    """One score from several: their mean, or their spread."""
    return Score(**{name: statistic([run[name] for run in runs]) for name in runs[0]})


def _deviation(values: Sequence[float]) -> float:
    return statistics.pstdev(values) if all(map(math.isfinite, values)) else math.nan


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from a seed; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        compat.seed(seed)
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
