"""Which token rows an operator picks by constant position, found by watching it move numbered rows.

    x[:, 0]      picks 0          -> row 0 must stay in front
    x[:, 5:]     leaves 0..4 out  -> rows 0 to 4 must stay in front
    x[:, -100:]  picks the last   -> the last 100 rows must stay at the end

The operator is run on rows that carry random numbers, four times. If what comes out are those numbers, and
the same rows each time, it moves rows by position; a mean or a maximum does not pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from prunec import compat


@dataclass(frozen=True)
class RowRead:
    """A node that reads token rows by position: how many at the front and at the end it tells apart."""

    node: str
    front: int
    back: int
    rows: tuple[int, ...]


def rows_picked(
    node: fx.Node, source: fx.Node, axis: int, length: int, element: int | None = None
) -> tuple[int, ...] | None:
    """The rows of `source` along `axis` that come out of the node, in order; None if it computes values.

    Of a node that yields a tuple, the rows of one element, if one is asked for.
    """
    found = {_watch(node, source, axis, length, seed, element) for seed in range(4)}
    return found.pop() if len(found) == 1 else None


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


def _watch(
    node: fx.Node, source: fx.Node, axis: int, length: int, seed: int, element: int | None
) -> tuple[int, ...] | None:
    numbers = torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shape = [1] * source.meta["val"].dim()
    shape[axis] = length
    numbered = numbers.view(shape)  # the other dimensions do not matter to an operator that moves rows
    args, kwargs = fx.map_arg(
        (node.args, node.kwargs), lambda given: numbered if given is source else _size(given)
    )
    assert callable(node.target)
    try:
        result = node.target(*args, **kwargs)
    except Exception:  # noqa: BLE001  what does not run on such rows does not move them
        return None
    outputs = compat.tree_leaves(result if element is None else result[element])
    row_of = {float(number): row for row, number in enumerate(numbers)}
    rows: list[int] = []
    for output in outputs:
        values = (
            list(dict.fromkeys(output.flatten().tolist())) if isinstance(output, torch.Tensor) else [None]
        )
        if any(value not in row_of for value in values):
            return None
        rows.extend(row_of[value] for value in values if value is not None)
    return tuple(rows)


def _size(node: fx.Node) -> Any:
    value = node.meta["val"]
    return 2 if isinstance(value, torch.SymInt) else value
