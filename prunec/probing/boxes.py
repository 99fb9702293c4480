"""Parts of values: boxes of rows along some axes, and which of them are worth computing apart.

x[:, 0:1]             {1: Span(0, 1)}                            rows at a constant place
x[:, -100:]           {1: Span(-100, None)}                      counted from the end
gather(x, index)      {1: Chosen(index)}                         rows of a selection, each image its own
qkv[:, 0:1, 0:C]      {1: Span(0, 1), 2: Span(0, C)}             both at once
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from prunec import compat, ops
from prunec.probing.lengths import Lengths

#: Boxes that hold more than this share of a value together are not worth computing apart.
MOST_OF_A_VALUE = 0.84
#: Two boxes become one where that adds no more than this share of the value.
MOST_ADDED = 0.05


@dataclass(frozen=True)
class Span:
    """Neighbouring rows as in a Python slice: negative places count from the end."""

    start: int
    stop: int | None

    def at(self, length: int) -> tuple[int, int]:
        """First row and end on an axis of this length."""
        start, stop, _ = slice(self.start, self.stop).indices(length)
        return start, stop

    def __str__(self) -> str:
        return f"{self.start}:{'' if self.stop is None else self.stop}"


@dataclass(frozen=True)
class Chosen:
    """The rows of a selection, each image its own.

    `batch` is the axis of the images. A table that all images share gets `pad` axes in front first, so that
    it has one.
    """

    selection: fx.Node  # rows, [B, n]
    batch: int
    pad: int = 0
    shared: bool = False  # by all images


Rows = Span | Chosen
Box = tuple[tuple[int, Rows], ...]  # axes in order, those with all rows left out
WHOLE: Box = ()


def span(start: int, stop: int, size: int | torch.SymInt, length: int) -> Span | None:
    """Rows start..stop of an axis; None where they are all, or where their number is not constant."""
    if (start, stop) == (0, length):
        return None
    if isinstance(size, int) or compat.expression(size).is_number or stop <= length / 2:
        return Span(start, stop)
    if start >= length / 2:  # the length is a symbol: rows near the end are counted from there
        return Span(start - length, stop - length or None)
    return None


def fixed(rows: Span) -> int:
    """How many rows these are on any axis that is long enough."""
    start, stop = rows.at(2**40)
    return stop - start


def count(rows: Rows, length: int, lengths: Lengths) -> int:
    """How many rows these are on an axis of `length`."""
    if isinstance(rows, Chosen):
        return lengths.size(rows.selection.meta["val"].shape[1])
    start, stop = rows.at(length)
    return stop - start


def shape_of(box: Box, value: torch.Tensor, lengths: Lengths) -> tuple[int, ...]:
    """The shape of a box of a value."""
    sizes = list(lengths.shape(value))
    for axis, rows in box:
        sizes[axis] = count(rows, sizes[axis], lengths)
    return tuple(sizes)


def hull(one: Box, other: Box, value: torch.Tensor, lengths: Lengths) -> Box:
    """The smallest box that holds both."""
    sizes, second = lengths.shape(value), dict(other)
    found: list[tuple[int, Rows]] = []
    for axis, rows in one:
        if rows == second.get(axis):
            found.append((axis, rows))
        elif isinstance(rows, Span) and isinstance(beside := second.get(axis), Span):
            (start, stop), (first, last) = rows.at(sizes[axis]), beside.at(sizes[axis])
            both = span(min(start, first), max(stop, last), value.shape[axis], sizes[axis])
            found.extend([(axis, both)] if both else [])
    return tuple(found)


def merged(boxes: Sequence[Box], value: torch.Tensor, lengths: Lengths) -> list[Box]:
    """The boxes that are worth computing apart; one whole where none is."""
    total = max(math.prod(lengths.shape(value)), 1)

    def share(box: Box) -> float:
        return math.prod(shape_of(box, value, lengths)) / total

    found: list[Box] = []
    for box in dict.fromkeys(boxes):
        while True:  # what one box has grown to may touch another
            near = next((other for other in found
                         if share(joint := hull(box, other, value, lengths))
                         <= share(box) + share(other) + MOST_ADDED), None)  # fmt: skip
            if near is None:
                break
            found.remove(near)
            box = joint
        found.append(box)
    return found if sum(map(share, found)) <= MOST_OF_A_VALUE else [WHOLE]


def holds(outer: Box, inner: Box, value: torch.Tensor, lengths: Lengths) -> bool:
    """Whether one box holds another."""
    return hull(outer, inner, value, lengths) == outer


def within(outer: Box, inner: Box, value: torch.Tensor, lengths: Lengths) -> Box:
    """Where `inner` lies in what was cut out as `outer`."""
    sizes, around = lengths.shape(value), dict(outer)
    found: list[tuple[int, Rows]] = []
    for axis, rows in inner:
        beside = around.get(axis)
        if beside is None:
            found.append((axis, rows))
        elif isinstance(rows, Span) and isinstance(beside, Span):
            (start, stop), (first, last) = rows.at(sizes[axis]), beside.at(sizes[axis])
            if (start, stop) != (first, last):
                found.append((axis, Span(start - first, stop - first)))
    return tuple(found)


def ordered(box: Box) -> Box:
    """Spans first: a selection may put axes in front."""
    return tuple(sorted(box, key=lambda entry: isinstance(entry[1], Chosen)))


def operation(x: Any, axis: int, rows: Rows, index: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The dialect's call that cuts rows out along one axis; for tensors and for graph nodes."""
    if isinstance(rows, Span):
        return ops.rows, (x, axis, rows.start, rows.stop)
    if not rows.pad and rows.batch == (1 if axis == 0 else 0):
        return ops.gather, (x, index, axis)
    return ops.take, (x, index, axis + rows.pad, rows.batch, 0, 0)


def cut(x: torch.Tensor, box: Box, chosen: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
    """A box of a tensor; `chosen` holds the rows of the selections."""
    for axis, rows in ordered(box):
        index = chosen[rows.selection] if isinstance(rows, Chosen) else None
        for _ in range(rows.pad if isinstance(rows, Chosen) else 0):
            x = x.unsqueeze(0)
        function, args = operation(x, axis, rows, index)
        x = function(*args)
    return x
