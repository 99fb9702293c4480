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
from prunec.frontend.source import Pictures


def fitting(pictures: Pictures, classes: int | None) -> tuple[Tensor | None, str]:
    """The class of each picture, and what should be known about it: why there is none, or how it was found.

    Args:
        pictures: with labels that number folders, or that are the folders' numbers.
        classes: how many the model scores; None where it gives no class scores.
    """
    if pictures.labels is None:
        return None, ""
    if classes is None:
        return None, _without("the model gives no scores of classes", "leave them out")
    if pictures.classes is None:
        beyond = sorted({int(label) for label in pictures.labels if label >= classes})
        if not beyond:
            return pictures.labels, ""
        shown = first_few([str(number) for number in beyond])
        many = len(pictures.folders) or len(beyond)
        return None, _without(
            f"{len(beyond)} of {many} folders are no classes of the model, which has 0 to {classes - 1}: "
            f"{shown}",
            "number them as the model does",
        )
    return _by_name(pictures, pictures.labels, classes)


def _by_name(pictures: Pictures, labels: Tensor, classes: int) -> tuple[Tensor | None, str]:
    known = _known(pictures.names) if (named := len(pictures.names) == classes) else {}
    folders = pictures.folders
    strange = [folder for folder in folders if _plain(folder) not in known]
    if named and not strange:
        return torch.tensor([known[_plain(folder)] for folder in folders])[labels], ""
    if len(strange) == len(folders) and pictures.classes == classes:
        if not named:
            return labels, ""
        return labels, (
            f"the folders are not called as the model's classes: in sorted order they are taken for 0 to "
            f"{classes - 1}"
        )
    if named:
        what = f"{len(strange)} of {len(folders)} folders are none of the model's {classes} classes: "
        names = first_few([repr(brief(name, 40)) for name in pictures.names], most=3)
        return None, _without(
            what + first_few([brief(folder, 40) for folder in strange]),
            f"call them as the model does ({names})",
        )
    shown = f" ({first_few([brief(folder, 40) for folder in folders])})" if folders else ""
    return None, _without(
        f"{pictures.classes} folders name classes{shown}, and the model has {classes}",
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
