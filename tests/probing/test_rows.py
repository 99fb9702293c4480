"""Rows that are picked by their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from prunec.probing.lengths import Lengths
from prunec.probing.probe import Probe
from prunec.probing.rows import RowRead, rows_apart, rows_picked
from prunec.structure import NoMatch


def picked(function: Callable[..., Any], length: int = 9, element: int | None = None) -> Any:
    rows = fx.Graph().placeholder("rows")
    rows.meta["val"] = torch.empty(2, length, 4, dtype=torch.bfloat16)
    call = rows.graph.call_function(function, (rows,))
    return rows_picked(Probe(call, Lengths({})), rows, 1, element)


CALLS: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...] | None]] = {
    "the first": (lambda x: x[:, 0], (0,)),
    "without five": (lambda x: x[:, 5:], (5, 6, 7, 8)),
    "the last two": (lambda x: x[:, -2:], (7, 8)),
    "the other way round": (lambda x: x.flip(1), tuple(range(8, -1, -1))),
    "a mean": (lambda x: x.mean(1), None),
    "the largest": (lambda x: x.amax(1), None),
    "a multiple": (lambda x: x[:, :1] * 1.0001, None),
    "a sum of one": (lambda x: x[:, :1].sum(1), (0,)),
    "what does not run": (lambda x: x.view(7, 7), None),
}


@pytest.mark.parametrize("name", CALLS)
def test_which_rows_are_picked(name: str) -> None:
    function, rows = CALLS[name]
    found = picked(function)
    assert (None if isinstance(found, NoMatch) else found) == rows


def test_of_several_results_one_is_asked_for_and_long_streams_have_no_row_twice() -> None:
    assert picked(lambda x: x.split([1, 8], 1), element=0) == (0,)
    assert picked(lambda x: x[:, 4000:], 5000) == tuple(range(4000, 5000))


def test_rows_that_are_reported_apart_stand_at_an_end() -> None:
    assert rows_apart("read", (0,), 9, 9, 0, follows=False) == RowRead("read", 1, 0, (0,))
    assert rows_apart("read", (5, 6, 7, 8), 9, 9, 0, follows=True) == RowRead("read", 5, 0, (5, 6, 7, 8))
    assert rows_apart("read", (7, 8), 9, 9, 0, follows=False) == RowRead("read", 0, 2, (7, 8))
    assert rows_apart("read", tuple(range(9)), 9, 9, 0, follows=True) is None
