"""A program at its own token counts, compared with the dense graph with the same choices, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunec import compat
from prunec.dataflow import heads
from prunec.errors import REPORT, VerificationError
from prunec.ir import graph
from prunec.ir.interface import images_in
from prunec.ir.program import Planned, Recognised
from prunec.token_axis.counted import operands_that_follow
from prunec.verify import runs
from prunec.verify.choices import Choice
from prunec.verify.differences import one, relative_difference, worst
from prunec.verify.reference import Reference, UnprovenError
from prunec.verify.together import Shared, how_shared, together

NOT_ALONE = "the model's own code joins several images, such as the frames of a clip, so none runs by itself"


def difference(
    dense: Recognised, program: Planned, flat: Sequence[Any], tolerance: float, *, shapes: Any = None
) -> tuple[float | None, str | None]:
    """The largest difference of any output, or why there is nothing to compare with.

    VerificationError where it is too large, or where a selection breaks an invariant. If a site drops nothing
    (its threshold is not calibrated yet), a second run keeps a random share of each image's tokens there.
    Outputs must have the shapes and dtypes of `shapes`.
    """
    runs.check_pixel_free(dense, program.anatomy, flat)
    most = 0.0
    for scattered in (False, True):
        compat.seed(0)
        found = runs.run(program, flat, scattered=scattered)
        if shapes is not None:
            runs.check_outputs(found.outputs, shapes)
        try:
            made = _references(dense, program, found.chosen, flat)
            alone = [reference.outputs for reference in made]
            expected = together(alone, found.outputs, partial(_shared, dense, flat))
        except UnprovenError as error:
            return None, error.reason
        most = max(most, worst(found.outputs, expected))
        if most > tolerance and (reason := _incomparable(dense, flat, tolerance)):
            return None, reason
        if most > tolerance:
            raise VerificationError(
                "the rewritten model at its own counts differs from the dense graph that leaves out the same "
                f"tokens: {most:.1e}, at most {tolerance:.0e} is allowed",
                where=_first_difference(program, flat, made, found.chosen, tolerance),
                remedy=REPORT,
            )
        if not found.idle:
            break
    return most, None


def _references(
    dense: Recognised, program: Planned, chosen: list[list[Choice]], flat: Sequence[Any]
) -> list[Reference]:
    """For each image a run of the dense graph with these choices; UnprovenError where that cannot be."""
    batch = images_in(flat)
    if batch > 1 and dense.interface.batch != batch:
        raise UnprovenError("the model's own code fixes the batch, so no image runs by itself")
    random = runs.random_call(dense)
    if random is not None:
        raise UnprovenError(f"the model draws random numbers: {graph.place(random)}")
    counting = next((node for node in dense.graph.nodes if operands_that_follow(node)), None)
    if counting is not None:
        raise UnprovenError(
            f"a number of the model depends on how many tokens there are: {graph.place(counting)}"
        )
    scores = heads.class_scores(dense) if program.plan.fate == "exit" else None
    scores = scores if isinstance(scores, heads.ClassScores) else None
    made = []
    for image in range(batch):
        those = [images[image] for images in chosen]
        reference = Reference(dense, program, those, scores)
        alone = tuple(one(leaf, image, batch) for leaf in flat)
        try:
            reference.outputs = reference.run(*alone)
        except (RuntimeError, IndexError, ZeroDivisionError) as error:
            if runs.runs_on(dense, alone):
                raise
            raise UnprovenError(NOT_ALONE) from error
        made.append(reference)
    return made


def _incomparable(dense: Recognised, flat: Sequence[Any], tolerance: float) -> str | None:
    """The reason why even the dense graph gives another output for an image alone than in its batch."""
    expected, images = dense.module(*flat), images_in(flat)
    if worst(dense.module(*flat), expected) > tolerance:  # two equal calls differ
        return "the model draws random numbers"
    alone = [dense.module(*(one(leaf, image, images) for leaf in flat)) for image in range(images)]
    if worst(together(alone, expected, partial(_shared, dense, flat)), expected) > tolerance:
        return "the images of a batch change each other's outputs, so no image runs by itself"
    return None


def _shared(dense: Recognised, flat: Sequence[Any], place: int) -> Shared:
    """How the dense graph combines all images into one output."""
    images = images_in(flat)
    alone = [dense.module(*(one(leaf, image, images) for leaf in flat))[place] for image in range(images)]
    return how_shared(alone, dense.module(*flat)[place], place)


def _first_difference(
    program: Planned,
    flat: Sequence[Any],
    made: Sequence[Reference],
    chosen: list[list[Choice]],
    tolerance: float,
) -> str | None:
    """The first state of the stream in which a kept row differs from the dense graph's."""
    dim, names = program.anatomy.token_dim, graph.by_name(program.graph)
    recorder = graph.Recorder(program.module, set(program.anatomy.states))
    recorder.run(*flat)
    for name in program.anatomy.states:
        for image, reference in enumerate(made):
            value, expected = recorder.values.get(name), reference.found.get(name)
            if not isinstance(value, Tensor) or expected is None or value.shape[1 - dim] != len(made):
                continue
            x, behind = expected
            rows = torch.arange(x.shape[dim], device=x.device)
            rows = chosen[behind - 1][image].rows if behind else rows
            found, wanted = value.select(1 - dim, image), x.select(1 - dim, 0)
            wanted = wanted.index_select(0, rows)
            if len(found) == len(rows) and relative_difference(found, wanted) > 10 * tolerance:
                return graph.place(names[name])
    return None
