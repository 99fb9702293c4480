"""What a model's outputs say about each picture, as plain data and in words, by their kind.

class scores   the best classes, each with its probability
boxes          what is sure to be there: class, score, corners in shares of the picture that the model saw
class map      the classes that most pixels have
others         sizes, and the least, mean and largest number
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunec.artefact.spec import OutputRecord, Spec
from prunec.errors import SourceError
from prunec.measure import boxes

Answer = dict[str, Any]


def leaves_of(outputs: Any) -> list[Tensor]:
    """The floating-point outputs, in the order in which a spec counts them."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() and outputs.dim() else []
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [leaf for one in outputs for leaf in leaves_of(one)] if isinstance(outputs, list | tuple) else []


def answers(spec: Spec, labels: Sequence[str], leaves: Sequence[Tensor], top: int) -> list[list[Answer]]:
    """For each image an answer for each output, the main one first.

    Args:
        spec: what the model gives.
        labels: the names of its classes; empty where it has none.
        leaves: its floating-point outputs on a batch.
        top: how many classes to name.

    Raises:
        SourceError: the outputs are not those that the spec describes.
    """
    most = max((max(one.place, one.scores or 0) for one in spec.outputs), default=-1)
    if most >= len(leaves):
        raise SourceError(
            f"the model gives {len(leaves)} outputs, and its spec describes {most + 1}",
            remedy="write the artefact again",
        )
    images = range(len(leaves[0])) if leaves else range(0)
    found = [_of_output(one, labels, leaves, top) for one in spec.outputs]
    return [[of_images[image] for of_images in found] for image in images]


def in_words(answer: Answer) -> Iterator[str]:
    """An answer as lines."""
    name = f"{answer['output']}: " if answer["output"] else ""
    rows = answer.get("classes", answer.get("boxes"))
    if rows is None:
        sizes = " x ".join(map(str, answer["sizes"]))
        yield f"{name}{answer['kind']} [{sizes}], {answer['least']:.4g} to {answer['largest']:.4g}, mean " + (
            f"{answer['mean']:.4g}"
        )
        return
    if not rows:
        yield f"{name}nothing found"
    for row in rows:
        called = row["label"] or f"class {row['class']}"
        share = next(row[key] for key in ("probability", "score", "share") if key in row)
        box = "  box " + ", ".join(f"{side:.3f}" for side in row["box"]) if "box" in row else ""
        yield f"{name}{share:7.2%}  {called}{box}"


def _of_output(
    record: OutputRecord, labels: Sequence[str], leaves: Sequence[Tensor], top: int
) -> list[Answer]:
    """The answers of one output, one for each image."""
    leaf = leaves[record.place].float()
    head = {"output": record.name, "kind": record.kind}
    if record.kind == "class scores" and leaf.dim() == 2:
        return [{**head, "classes": _best(row, labels, top)} for row in leaf.softmax(1)]
    if record.kind == "boxes" and record.scores is not None:
        found = boxes.found((leaf, leaves[record.scores].float()))
        return [{**head, "boxes": _boxes(labels, *of_image)} for of_image in found]
    if record.kind == "class map" and leaf.dim() == 4:
        return [{**head, "classes": _shares(image.argmax(0), labels, top)} for image in leaf]
    return [{**head, **_numbers(image)} for image in leaf]


def _best(row: Tensor, labels: Sequence[str], top: int) -> list[Answer]:
    best = row.topk(min(top, len(row)))
    return [
        {"class": number, "label": _label(number, labels), "probability": float(share)}
        for share, number in zip(best.values, best.indices.tolist(), strict=True)
    ]


def _boxes(labels: Sequence[str], scores: Tensor, classes: Tensor, corners: Tensor) -> list[Answer]:
    return [
        {"class": number, "label": _label(number, labels), "score": float(score), "box": corner.tolist()}
        for score, number, corner in zip(scores, classes.tolist(), corners, strict=True)
    ]


def _shares(classes: Tensor, labels: Sequence[str], top: int) -> list[Answer]:
    numbers, counts = classes.unique(return_counts=True)
    order = counts.argsort(descending=True)[:top]
    return [
        {"class": number, "label": _label(number, labels), "share": count / classes.numel()}
        for number, count in zip(numbers[order].tolist(), counts[order].tolist(), strict=True)
    ]


def _numbers(image: Tensor) -> Answer:
    least, largest = (float(image.min()), float(image.max())) if image.numel() else (0.0, 0.0)
    return {
        "sizes": list(image.shape),
        "least": least,
        "mean": float(image.mean()) if image.numel() else 0.0,
        "largest": largest,
    }


def _label(number: int, labels: Sequence[str]) -> str:
    return labels[number] if number < len(labels) else ""


def stacked(batches: Sequence[Sequence[Tensor]], spec: Spec) -> dict[str, Tensor]:
    """The outputs of all images by name, as a file holds them."""
    names = {one.place: one.name or "output" for one in spec.outputs}
    return {
        names.get(place, f"output_{place}"): torch.cat([leaves[place] for leaves in batches]).contiguous()
        for place in range(len(batches[0]))
    }
