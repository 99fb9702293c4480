"""Which token rows an operator picks by constant position, found by watching it move numbered rows.

    x[:, 0]      picks 0          -> row 0 must stay in front
    x[:, 5:]     leaves 0..4 out  -> rows 0 to 4 must stay in front
    x[:, -100:]  picks the last   -> the last 100 rows must stay at the end

The operator is run on rows that carry random numbers, four times. If what comes out are those numbers, and
the same rows each time, it moves rows by position; a mean or a maximum does not pass.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from prunec import compat
from prunec.probing.probe import Probe
from prunec.structure import NoMatch

_RUNS = 4


@dataclass(frozen=True)
class RowRead:
    """A node that reads token rows by position: how many at the front and at the end it treats apart."""

    node: str
    front: int
    back: int
    rows: tuple[int, ...]


def rows_picked(
    probe: Probe, source: fx.Node, axis: int, element: int | None = None
) -> tuple[int, ...] | NoMatch:
    """The rows of `source` along `axis` that come out of the call, in order; a reason if it computes values.

    Of a call that yields a tuple, the rows of one element, if one is asked for.
    """
    value = source.meta["val"]
    length = probe.lengths.size(value.shape[axis])
    shape = [1] * value.dim()  # the other dimensions do not matter to an operator that moves rows
    shape[axis] = length
    found = set()
    for _ in range(_RUNS):
        numbered = probe.noise.row_numbers(length).view(shape)
        result = probe.answer(functools.partial(probe.run, {source: numbered}))
        if isinstance(result, NoMatch):
            return result
        found.add(_picked(numbered, result if element is None else result[element]))
    rows = found.pop() if len(found) == 1 else None
    return (
        probe.unknown("what comes out are no rows, or not the same ones each time") if rows is None else rows
    )


def _picked(numbered: Tensor, result: Any) -> tuple[int, ...] | None:
    """Which rows the numbers are that came out; None where others did."""
    row_of = {number: row for row, number in enumerate(numbered.flatten().tolist())}
    rows: list[int] = []
    for output in compat.tree_leaves(result):
        if not isinstance(output, Tensor):
            return None
        values = list(dict.fromkeys(output.flatten().tolist()))
        if any(value not in row_of for value in values):
            return None
        rows.extend(row_of[value] for value in values)
    return tuple(rows)


def rows_apart(
    name: str, rows: Sequence[int], length: int, tokens: int, prefix: int, *, follows: bool
) -> RowRead | None:
    """How many rows at either end of a stream of `tokens` must stay in place for a reader of these rows.

    The reader's input has `length` rows: fewer than the stream where protected rows were sliced off before,
    more where rows were put in front. A reader that follows the length (x[:, 5:]) tells those apart that it
    leaves out; any other (x[:, :5]) those that it picks.
    """
    picked = sorted(set(rows))
    rest = sorted(set(range(length)) - set(picked))
    apart = rest if follows else picked
    if list(rows) != picked:  # an order of its own
        apart = picked
    if not apart:
        return None
    missing = tokens - length
    cut = min(missing, prefix)
    front = [row + 1 + cut for row in apart if row < length / 2]
    back = [length - row + missing - cut for row in apart if row >= length / 2]
    return RowRead(name, max(front, default=0), max(back, default=0), tuple(rows))
