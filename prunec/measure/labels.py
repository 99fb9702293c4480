"""Which classes of a model the folders of pictures are, or why their labels cannot be used.

numbers                      the classes of these numbers
names of the model's classes those classes, however many there are
other names, one for each    its classes in sorted order, as in ImageNet's n01440764, n01443537, ...
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from prunec.errors import brief, first_few
from prunec.frontend.source import ImageSet


def fitting(image_set: ImageSet, classes: int | None) -> tuple[Tensor | None, str]:
    """The class of each picture, and what should be known about it: why there is none, or how it was found.

    Args:
        image_set: with labels that number folders, or that are the folders' numbers.
        classes: how many the model scores; None where it gives no class scores.
    """
    if image_set.labels is None:
        return None, ""
    if classes is None:
        return None, _without("the model gives no scores of classes", "leave them out")
    if image_set.classes is None:
        beyond = sorted({int(label) for label in image_set.labels if label >= classes})
        if not beyond:
            return image_set.labels, ""
        shown = first_few([str(number) for number in beyond])
        many = len(image_set.folders) or len(beyond)
        return None, _without(
            f"{len(beyond)} of {many} folders are no classes of the model, which has 0 to {classes - 1}: "
            f"{shown}",
            "number them as the model does",
        )
    return _by_name(image_set, image_set.labels, classes)


def _by_name(image_set: ImageSet, labels: Tensor, classes: int) -> tuple[Tensor | None, str]:
    known = _known(image_set.names) if (named := len(image_set.names) == classes) else {}
    folders = image_set.folders
    strange = [folder for folder in folders if _plain(folder) not in known]
    if named and not strange:
        return torch.tensor([known[_plain(folder)] for folder in folders])[labels], ""
    if len(strange) == len(folders) and image_set.classes == classes:
        if not named:
            return labels, ""
        return labels, (
            f"the folders are not called as the model's classes: in sorted order they are taken for 0 to "
            f"{classes - 1}"
        )
    if named:
        what = f"{len(strange)} of {len(folders)} folders are none of the model's {classes} classes: "
        names = first_few([repr(brief(name, 40)) for name in image_set.names], most=3)
        return None, _without(
            what + first_few([brief(folder, 40) for folder in strange]),
            f"call them as the model does ({names})",
        )
    shown = f" ({first_few([brief(folder, 40) for folder in folders])})" if folders else ""
    return None, _without(
        f"{image_set.classes} folders name classes{shown}, and the model has {classes}",
        "call them by the numbers of the model's classes, or have one for each, in the model's order",
    )


def _without(why: str, remedy: str) -> str:
    return f"the folders' labels are not used, so accuracy is not measured: {why}; {remedy}"


def _known(names: tuple[str, ...]) -> dict[str, int]:
    """The class of each name; of `tench, Tinca tinca` each part too, where no other class has it."""
    parts = [{_plain(name), *(_plain(part) for part in name.split(","))} for name in names]
    count = Counter(part for own in parts for part in own)
    return {part: number for number, own in enumerate(parts) for part in own if count[part] == 1}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
