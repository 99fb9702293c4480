"""The names of a model's classes, for those who read its answers."""

from __future__ import annotations

from collections.abc import Mapping

from prunec.data import shapes
from prunec.frontend.source import Source

IMAGENET = 1000


def names_of_classes(source: Source) -> tuple[str, ...]:
    """As its configuration says; of timm's models of ImageNet as timm says. None where nothing does."""
    if source.labels or source.submodule:
        return source.labels
    if source.spec == "shapes":
        return shapes.CLASS_NAMES
    config = getattr(source.module, "pretrained_cfg", None)
    count = getattr(source.module, "num_classes", None)
    if not isinstance(config, Mapping) or not isinstance(count, int):
        return ()
    said = config.get("label_names")
    if isinstance(said, list | tuple) and len(said) == count:
        return tuple(map(str, said))
    if count != IMAGENET or source.weights == "random":
        return ()
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_descriptions())
