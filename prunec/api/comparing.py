"""How well the outputs of a compiled model agree with the dense model's: on every run, on whatever images."""

from __future__ import annotations

from collections.abc import Mapping

from prunec.calibration.inputs import pixels_of
from prunec.compiler import Compiled
from prunec.errors import UsageError
from prunec.frontend.sources import ImageSet, Source
from prunec.measure import figures
from prunec.measure.evaluate import Comparison, Judge
from prunec.measure.image_sets import without_pictures
from prunec.measure.measure import Measure
from prunec.measure.smaller import smaller_picture
from prunec.targets import Flat, device_of


def agreement(
    source: Source,
    compiled: Compiled,
    lowered: dict[str, Flat],
    image_set: ImageSet | None,
    flops: Mapping[str, int],
    measure: Measure,
) -> tuple[ImageSet, Comparison | None, tuple[str, ...]]:
    """The images that were compared on, the comparison, and what should be known of it.

    Args:
        source: the dense model.
        compiled: the same with fewer tokens.
        lowered: the callables of "dense" and "pruned".
        image_set: the user's images, or those that the source knows; others are found where there are none.
        flops: of "dense" and "pruned", for one image.
        measure: with the user's own metric.
    """
    dense = compiled.dense
    shown = image_set or without_pictures(source, pixels_of(dense))
    known = figures.known(dense, source, shown)
    sizes = figures.output_sizes(dense)
    image = shown.images[:1].to(device_of(dense))
    smaller = smaller_picture(source, dense.anatomy, sizes, image, (flops["dense"], flops["pruned"]))
    judge = Judge(known, measure.metric)
    try:
        found = figures.accuracy(dense, compiled.plain, lowered, shown, judge, smaller)
    except UsageError as error:
        if image_set is not None or measure.metric is not None:
            raise
        return shown, None, (f"the outputs are not compared with the dense model's: {error.what}",)
    if image_set is not None:
        return shown, found, ()
    return shown, found, (f"outputs were compared on {shown.name}: give --images for figures of yours",)
