from __future__ import annotations

import pytest
import torch

from prunec import ops


def test_of_the_rows_that_were_left_those_that_are_kept_remain() -> None:
    before = torch.tensor([[True, True, False, True, True]])
    rows, kept = torch.tensor([[0, 1, 3, 4]]), torch.tensor([[True, False, True, False]])
    assert ops.remaining(before, kept, rows).tolist() == [[True, False, False, True, False]]
    assert before.tolist() == [[True, True, False, True, True]]


@pytest.mark.parametrize("axis", [1, 2])
def test_what_has_left_is_painted_and_what_stays_is_the_heads(axis: int) -> None:
    scores, canvas = torch.randn(2, 4, 3), torch.randn(2, 7, 3)  # one row before the patches, two behind
    active = torch.rand(2, 7) > 0.5
    active[0, 1], active[1, 1] = True, False
    given = scores if axis == 2 else scores.transpose(1, 2)
    found = ops.paint(given, canvas, active, axis, 1, 2)
    found = found if axis == 2 else found.transpose(1, 2)
    for image in range(2):
        for patch in range(4):
            source = scores[image, patch] if active[image, 1 + patch] else canvas[image, 1 + patch]
            assert torch.equal(found[image, patch], source)


def test_patches_may_stand_in_a_grid() -> None:
    scores, canvas = torch.randn(1, 3, 2, 4), torch.randn(1, 8, 3)
    active = torch.tensor([[True, False, True, True, False, False, True, True]])
    found = ops.paint(scores, canvas, active, 1, 0, 0)
    flat = ops.paint(scores.flatten(2), canvas, active, 1, 0, 0)
    assert torch.equal(found.flatten(2), flat)
    assert torch.equal(found[0, :, 0, 1], canvas[0, 1])


def test_the_canvas_takes_the_type_of_the_scores() -> None:
    scores, canvas = torch.randn(1, 2, 3, dtype=torch.half), torch.randn(1, 2, 3)
    assert ops.paint(scores, canvas, torch.zeros(1, 2, dtype=torch.bool), 2, 0, 0).dtype == torch.half
