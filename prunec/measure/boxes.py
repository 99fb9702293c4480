"""How well the boxes of two detectors match: [B, Q, 4], centre and size, with [B, Q, K] scores of classes."""

from __future__ import annotations

import torch
from torch import Tensor

SURE = 0.5  # the score above which a model says that something is there

Detected = tuple[Tensor, Tensor]  # boxes and class scores


def matched(found: Detected, expected: Detected) -> Tensor:
    """For each image the mean IoU of the boxes that a model is surest of, matched one to one.

    They are as many as the expected ones with a score above `SURE`, one at least. Only boxes of the same
    class match, the best pair first; one without a match counts as 0.
    """
    empty = _has_empty_class(expected[1])
    images = range(len(expected[0]))
    return torch.tensor([_of_image(_at(found, image), _at(expected, image), empty=empty) for image in images])


def found(detected: Detected) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each image what is surely there, the surest first: scores [n], classes [n], corners [n, 4]."""
    empty = _has_empty_class(detected[1])
    return [_sure(_at(detected, image), empty=empty) for image in range(len(detected[0]))]


def _sure(detected: Detected, *, empty: bool) -> tuple[Tensor, Tensor, Tensor]:
    boxes, scores = detected
    best, classes = _best(scores, empty=empty)
    order = best.argsort(descending=True)
    order = order[best[order] > SURE]
    return best[order], classes[order], torch.cat(_corners(boxes[order]), dim=1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Of every box [n, 4] with every other [m, 4]: what they share of what they cover, [n, m]."""
    (low, high), (other_low, other_high) = _corners(first), _corners(second)
    shared = torch.minimum(high[:, None], other_high) - torch.maximum(low[:, None], other_low)
    area = shared.clamp_min(0).prod(-1)
    sizes, others = (high - low).prod(-1), (other_high - other_low).prod(-1)
    return area / (sizes[:, None] + others - area).clamp_min(1e-9)


def _of_image(found: Detected, expected: Detected, *, empty: bool) -> float:
    scores, _ = _best(expected[1], empty=empty)
    count = max(1, int((scores > SURE).sum()))
    boxes, classes = _surest(found, count, empty=empty)
    true, names = _surest(expected, count, empty=empty)
    pairs = iou(boxes, true) * (classes[:, None] == names)
    total = 0.0
    for _ in range(count):
        best = int(pairs.argmax())
        row, column = divmod(best, pairs.shape[1])
        total += float(pairs[row, column])
        pairs[row], pairs[:, column] = 0, 0
    return total / count


def _surest(detected: Detected, count: int, *, empty: bool) -> Detected:
    """The boxes of the highest scores, and their classes."""
    boxes, scores = detected
    score, classes = _best(scores, empty=empty)
    chosen = score.topk(count).indices
    return boxes[chosen], classes[chosen]


def _best(scores: Tensor, *, empty: bool) -> Detected:
    """The best class of each box and its score, the class of "nothing is here" left out."""
    shares = scores.softmax(-1)[..., :-1] if empty else scores.sigmoid()
    best = shares.max(-1)
    return best.values, best.indices


def _has_empty_class(scores: Tensor) -> bool:
    """Whether the last class means "nothing is here": then it is the best of most boxes."""
    last = scores.shape[-1] - 1
    return last > 0 and bool((scores.argmax(-1) == last).float().mean() > 0.5)


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    centre, size = boxes[:, :2], boxes[:, 2:].clamp_min(0)
    return centre - size / 2, centre + size / 2


def _at(detected: Detected, image: int) -> Detected:
    return detected[0][image], detected[1][image]
