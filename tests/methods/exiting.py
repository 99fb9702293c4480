"""Tokens that leave early with an answer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tests.methods.model import (
    Learned,
    Rows,
    Segmenter,
    Stream,
    Thresholds,
    layer_norm,
    linear,
    paint,
    take_apart,
)

# --- DToP -----------------------------------------------------------------------------------


def dtop(
    model: Segmenter, image: Tensor, *, sites: Thresholds, parameters: Sequence[Learned], spare: int = 5
) -> tuple[Tensor, Rows, list[Tensor]]:
    """Patches whose class is sure before a site's block leave, and their logits there are final.

    Of those that are sure, the `spare` surest of each class stay, as context for the others.
    The third output is the canvas [N, K] after each site: logits of those that left, zeros for the others.
    """
    parts = take_apart(model, image)
    stream = Stream(parts)
    plan = {block: (value, learned) for (block, value), learned in zip(sites, parameters, strict=True)}
    canvas = image.new_zeros(len(stream.patches), model.head.out_features)
    rows: Rows = []
    canvases: list[Tensor] = []
    for number, layer in enumerate(parts.layers):
        if number in plan:
            threshold, learned = plan[number]
            patches = stream.patches
            logits = dtop_grader(stream.x[patches], learned)
            leaving = dtop_exits(logits, threshold, spare)
            canvas = canvas.clone()
            for index in leaving:
                canvas[stream.rows[patches[index]] - parts.prefix] = logits[index]
            stream.keep([place for index, place in enumerate(patches) if index not in leaving])
            rows.append(stream.rows)
            canvases.append(canvas)
        stream.run(layer)
    final = canvas.clone()
    for place in stream.patches:
        final[stream.rows[place] - parts.prefix] = model.head(model.backbone.norm(stream.x[place]))
    return paint(final, model.backbone.patch_embed.grid_size, image), rows, canvases


def dtop_grader(x: Tensor, learned: Learned) -> Tensor:
    """Class logits of tokens; x: [n, D] -> [n, K]."""
    return linear(layer_norm(x, learned, "norm"), learned, "head")


def dtop_exits(logits: Tensor, threshold: float, spare: int) -> set[int]:
    """Which tokens leave: those that are sure, but for the `spare` surest of each class. logits: [n, K]."""
    confidence, label = logits.softmax(dim=-1).max(dim=-1)
    sure: dict[int, list[int]] = {}
    for index in range(len(logits)):
        if confidence[index] > threshold:
            sure.setdefault(int(label[index]), []).append(index)
    leaving: set[int] = set()
    for members in sure.values():
        surest = sorted(members, key=lambda index: (-float(confidence[index]), index))
        leaving.update(surest[spare:])
    return leaving
