from __future__ import annotations

import pytest
import torch

from prunec.probing.boxes import (
    WHOLE,
    Box,
    Span,
    cut,
    fixed,
    holds,
    hull,
    merged,
    shape_of,
    span,
    within,
)
from prunec.probing.lengths import Lengths
from tests.probing.sizes import symbolic_length

LENGTHS = Lengths({})
VALUE = torch.empty(2, 100, 30)


def box(**axes: tuple[int, int]) -> Box:
    """box(a1=(0, 5)): rows 0 to 4 of axis 1."""
    return tuple((int(name[1:]), Span(*rows)) for name, rows in sorted(axes.items()))


def test_a_span_is_a_slice() -> None:
    assert Span(-6, None).at(20) == (14, 20)
    assert Span(2, 5).at(20) == (2, 5)
    assert (fixed(Span(-6, None)), fixed(Span(2, 5)), fixed(Span(-6, -2))) == (6, 3, 4)


@pytest.mark.parametrize(
    ("rows", "static", "symbolic"),
    [
        ((0, 1), Span(0, 1), Span(0, 1)),
        ((0, 20), None, None),
        ((14, 20), Span(14, 20), Span(-6, None)),
        ((14, 18), Span(14, 18), Span(-6, -2)),
        ((5, 20), Span(5, 20), None),  # as many as the stream is long, less five: no constant
    ],
)
def test_rows_near_the_end_of_a_length_that_varies_are_counted_from_there(
    rows: tuple[int, int], static: Span | None, symbolic: Span | None
) -> None:
    assert span(*rows, 20, 20) == static
    assert span(*rows, symbolic_length(), 20) == symbolic


def test_a_hull_holds_both_and_no_axis_that_one_has_whole() -> None:
    one, other = box(a1=(0, 5), a2=(0, 10)), box(a1=(8, 9))
    assert hull(one, other, VALUE, LENGTHS) == box(a1=(0, 9))
    assert hull(box(a1=(0, 60)), box(a1=(50, 100)), VALUE, LENGTHS) == WHOLE
    assert holds(box(a1=(0, 9)), one, VALUE, LENGTHS)
    assert not holds(one, box(a1=(0, 9)), VALUE, LENGTHS)
    assert holds(WHOLE, one, VALUE, LENGTHS)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ([box(a1=(0, 1)), box(a1=(1, 2))], [box(a1=(0, 2))]),
        ([box(a1=(0, 1)), box(a1=(4, 5))], [box(a1=(0, 5))]),  # three rows more are cheaper than two calls
        ([box(a1=(0, 1)), box(a1=(99, 100))], [box(a1=(0, 1)), box(a1=(99, 100))]),
        ([box(a1=(0, 1), a2=(0, 10)), box(a2=(10, 20)), box(a2=(20, 30))],
         [box(a1=(0, 1), a2=(0, 10)), box(a2=(10, 30))]),  # queries of one row, keys and values of all
        ([box(a2=(0, 10)), box(a2=(10, 20)), box(a2=(20, 30))], [WHOLE]),
        ([box(a1=(0, 90))], [WHOLE]),  # hardly less than all
        ([box(a1=(0, 1)), WHOLE], [WHOLE]),
    ],
)  # fmt: skip
def test_boxes_are_merged_where_that_adds_little(asked: list[Box], found: list[Box]) -> None:
    assert merged(asked, VALUE, LENGTHS) == found


def test_a_box_in_a_box() -> None:
    outer, inner = box(a1=(10, 20), a2=(0, 10)), box(a1=(12, 15), a2=(0, 10))
    assert within(outer, inner, VALUE, LENGTHS) == box(a1=(2, 5))
    x = torch.arange(6000.0).view(2, 100, 30)
    assert torch.equal(cut(cut(x, outer, {}), box(a1=(2, 5)), {}), cut(x, inner, {}))
    assert cut(x, inner, {}).shape == shape_of(inner, VALUE, LENGTHS) == (2, 3, 10)
