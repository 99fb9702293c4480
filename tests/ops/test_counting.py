from __future__ import annotations

import math

import pytest
import torch

from prunec import ops


def test_rows_that_count_are_counted_for_each_image() -> None:
    found = ops.counts(torch.tensor([[True, False, True], [False, False, False]]))
    assert found.dtype == torch.double  # what follows may divide by them
    assert found.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("number", [197, 1.5])
def test_a_logarithm_is_a_numbers_or_each_images(number: float) -> None:
    assert ops.log(number) == math.log(number)
    assert ops.log(torch.tensor([number], dtype=torch.double)).tolist() == pytest.approx([math.log(number)])


def test_a_number_of_each_image_meets_all_entries_of_that_image() -> None:
    number = torch.tensor([2.0, 5.0], dtype=torch.double)
    found = ops.for_images(number, 0, 3, 3, torch.float)  # three heads of each of two images
    assert found.dtype == torch.float
    assert found.shape == (6, 1, 1)
    assert found.flatten().tolist() == [2, 2, 2, 5, 5, 5]
    assert ops.for_images(number, 1, 3, 1, torch.float).shape == (1, 2, 1)


def test_one_number_everywhere() -> None:
    found = ops.throughout((2, 3), 0.25, torch.half, torch.device("cpu"))
    assert found.dtype == torch.half
    assert found.tolist() == [[0.25] * 3] * 2
