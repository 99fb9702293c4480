from __future__ import annotations

import torch
from torch import Tensor

from prunec.probing.boxes import WHOLE, Box, Span
from prunec.probing.lengths import Lengths
from prunec.probing.trials import Trial
from prunec.probing.units import Reads, unit_of
from tests.probing.operators import last

X = torch.randn(2, 7, 12)
FIRST: Box = ((1, Span(0, 1)),)


def trial(function: object, box: Box = FIRST, *inputs: Tensor) -> Trial:
    assert callable(function)
    return Trial(unit_of(last(function, *(inputs or (X,)))), box, Lengths({}), 0)


def test_parts_that_are_enough_agree() -> None:
    assert trial(lambda _, x: x.exp()).agrees(Reads((FIRST,))) is not None
    assert trial(lambda _, x: x.mean(1, keepdim=True)).agrees(Reads((WHOLE,))) is not None


def test_parts_that_are_not_enough_do_not() -> None:
    assert trial(lambda _, x: x.softmax(1)).agrees(Reads((FIRST,))) is None
    assert trial(lambda _, x: x.cumsum(1), ((1, Span(2, 3)),)).agrees(Reads((((1, Span(2, 3)),),))) is None


def test_a_part_that_does_not_run_alone_does_not_agree() -> None:
    both = trial(lambda _, x, y: torch.bmm(x, y), FIRST, X, torch.randn(2, 12, 7))
    assert both.agrees(Reads((FIRST, WHOLE))) is not None
    assert both.agrees(Reads((WHOLE, FIRST))) is None


def test_operations_of_the_whole_and_of_the_part_are_counted() -> None:
    made = trial(lambda _, x, y: torch.bmm(x, y), FIRST, X, torch.randn(2, 12, 7))
    assert made.agrees(Reads((FIRST, WHOLE))) == (2 * 2 * 7 * 12 * 7, 2 * 2 * 1 * 12 * 7)


def test_a_gradient_stands_where_an_operand_is_read() -> None:
    (found,) = trial(lambda _, x: x.exp()).gradients().values()
    assert found[:, :1].all()
    assert not found[:, 1:].any()
    (found,) = trial(lambda _, x: x.softmax(1)).gradients().values()
    assert found.all()


def test_whole_numbers_have_no_gradient() -> None:
    found = trial(lambda _, x, kept: x.masked_fill(kept, 0.0), FIRST, X, X > 0).gradients()
    assert list(found) == [0]


def test_inside_is_the_box_and_nothing_else() -> None:
    found = trial(lambda _, x: x.exp()).inside(torch.Size((2, 7, 12)), ((1, Span(2, 4)),))
    assert found[:, 2:4].all()
    assert int(found.sum()) == 2 * 2 * 12
