from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunec.probing.boxes import Box, Span
from prunec.probing.lengths import Lengths
from prunec.probing.proposals import Proposals
from prunec.probing.units import unit_of
from tests.probing.operators import last

X = torch.randn(2, 7, 12)
ROW: Box = ((1, Span(2, 3)),)


def proposed(function: Callable[..., Any], box: Box = ROW, *inputs: Tensor) -> Proposals:
    return Proposals(unit_of(last(function, *(inputs or (X,)))), box, Lengths({}))


def test_in_place_the_same_rows_of_each_operand_that_has_them() -> None:
    assert proposed(lambda _, x, y: x + y, ROW, X, torch.randn(2, 7, 12)).in_place() == [ROW, ROW]
    assert proposed(lambda _, x, y: x + y, ROW, X, torch.randn(12)).in_place() == [ROW, ()]


def test_where_no_operand_has_the_axis_nothing_is_in_place() -> None:
    assert proposed(lambda _, x: x.unsqueeze(1).expand(-1, 5, 12), ROW, torch.randn(2, 12)).in_place() == []


READ: dict[str, tuple[Callable[..., Any], list[Box | None]]] = {
    "row by row": (lambda _, x: x.exp(), [ROW]),
    "what came before": (lambda _, x: x.cumsum(1), [((1, Span(0, 3)),)]),
    "all rows": (lambda _, x: x.softmax(1), [()]),
    "moved": (lambda _, x: x.flip(1), [((1, Span(4, 5)),)]),
    "a layer": (lambda m, x: F.linear(x, m.weight, m.bias), [ROW, (), ()]),
}


@pytest.mark.parametrize("name", READ)
def test_the_gradient_tells_what_is_read(name: str) -> None:
    function, expected = READ[name]
    assert proposed(function).by_gradient() == expected


def test_an_operand_that_is_not_read_has_no_box() -> None:
    first = proposed(lambda _, x, y: torch.cat([x, y], dim=1), ROW, X, torch.randn(2, 7, 12))
    assert first.by_gradient() == [ROW, None]
