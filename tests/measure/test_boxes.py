from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunec.measure.boxes import found, iou, matched

FIRST, SECOND, THIRD = [0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0]
NOTHING = [-9.0, -9.0, 9.0]
A, B = [9.0, -9.0, -9.0], [-9.0, 9.0, -9.0]


def detected(*rows: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    boxes, scores = zip(*rows, strict=True)
    return torch.tensor([boxes]), torch.tensor([scores])


TRUE = detected((FIRST, A), (SECOND, B), (THIRD, NOTHING), (THIRD, NOTHING), (THIRD, NOTHING))


def test_what_is_surely_there() -> None:
    ((scores, classes, corners),) = found(TRUE)
    assert classes.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    assert corners[0].tolist() == pytest.approx([0.1, 0.1, 0.3, 0.3])
    ((nothing, _, none),) = found(detected(*[(THIRD, NOTHING)] * 3))
    assert (nothing.shape, none.shape) == ((0,), (0, 4))


def test_iou_by_hand() -> None:
    half = [0.25, 0.2, 0.2, 0.2]  # three quarters of the width in common
    found = iou(torch.tensor([FIRST, half]), torch.tensor([FIRST, SECOND]))
    assert found.flatten().tolist() == pytest.approx([1, 0, 0.6, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(FIRST, A), (SECOND, B)], 1.0),
        ([(SECOND, B), (FIRST, A)], 1.0),  # in another order
        ([(FIRST, B), (SECOND, A)], 0.0),  # the same places, other things
        ([(FIRST, A), (FIRST, A)], 0.5),  # a box matches once
        ([(FIRST, A), (THIRD, B)], 0.52),
        ([(FIRST, A), (SECOND, NOTHING)], 0.5),
    ],
)
def test_boxes_match_one_to_one_and_by_class(
    rows: list[tuple[list[float], list[float]]], expected: float
) -> None:
    others = [(THIRD, NOTHING)] * 3
    # what it is least sure of is class A at the place of the big box: no match of either object
    assert matched(detected(*rows, *others), TRUE).item() == pytest.approx(expected, abs=1e-4)


def test_where_nothing_is_found_the_surest_box_counts() -> None:
    unsure = [0.1, 0.0, 3.0]
    true = detected((FIRST, unsure), (THIRD, NOTHING), (THIRD, NOTHING))
    assert matched(true, true).item() == pytest.approx(1)
    assert matched(detected((SECOND, unsure), (THIRD, NOTHING), (THIRD, NOTHING)), true).item() == 0


def test_scores_without_a_class_for_nothing_are_read_as_they_are() -> None:
    boxes = torch.tensor([[FIRST, SECOND]])
    scores = torch.tensor([[[3.0, -3.0], [-3.0, 3.0]]])
    assert matched((boxes, scores), (boxes, scores)).item() == pytest.approx(1)
    assert matched((boxes.flip(1), scores), (boxes, scores)).item() == 0


def test_images_are_told_apart() -> None:
    boxes, scores = (torch.cat([each, each]) for each in TRUE)
    moved = boxes.clone()
    moved[1, :2] = torch.tensor(THIRD)
    assert matched((moved, scores), (boxes, scores)).tolist() == pytest.approx([1, 0.04], abs=1e-4)
