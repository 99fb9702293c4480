"""Questions about what a call does to the rows of its operands.

gelu(x)                row i reads row i                is_row_local, treats_rows_alike
x[:, 2:]               row i reads row i + 2            rows_before: -2
cat([cls, x], 1)       row i reads row i - 1            rows_before: 1
softmax(x, 1)          rows meet, and keep their order  keeps_row_order
view(x, [2, 7, 3, 4])  no number moves                  keeps_order
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from prunec import compat
from prunec.probing.numbers import changed_rows, same
from prunec.probing.probe import Answer, Probe
from prunec.structure import NoMatch

_PARTS = 3  # pairs of halves of the rows that are changed


def runs(probe: Probe) -> Answer:
    """Whether the call runs at these lengths."""
    found = probe.answer(lambda: probe.result)
    return found if isinstance(found, NoMatch) else True


def keeps_order(probe: Probe) -> Answer:
    """Whether a call only changes the shape: out come the numbers of its one tensor, in their order."""
    tensors = [value for value in probe.operands.values() if isinstance(value, Tensor)]
    if len(tensors) != 1:
        return False

    def kept() -> bool:
        result = probe.result
        return isinstance(result, Tensor) and torch.equal(result.flatten(), tensors[0].flatten())

    return probe.answer(kept)  # type: ignore[no-any-return]


def keeps_zero(probe: Probe, operands: Sequence[fx.Node]) -> Answer:
    """Whether a call yields zeros where these operands are zeros, whatever the others are."""

    def kept() -> bool:
        result = probe.run({operand: torch.zeros_like(probe.operand(operand)) for operand in operands})
        return not any(bool(leaf.any()) for leaf in compat.tree_leaves(result) if isinstance(leaf, Tensor))

    return probe.answer(kept)  # type: ignore[no-any-return]


def is_row_local(probe: Probe, operand: fx.Node, axes: tuple[int, int]) -> Answer:
    """Whether a row of the result depends on one row of this operand alone: the one in its place.

    Where the result has another length (rows cut off at an end, or put before them), the place is shifted.
    """
    found = rows_before(probe, operand, axes)
    return found if isinstance(found, NoMatch) else True


def rows_before(probe: Probe, operand: fx.Node, axes: tuple[int, int]) -> int | NoMatch:
    """How many rows of another origin a call puts before those of an operand; below zero: cuts off there.

    Args:
        probe: the call.
        operand: the one that is watched.
        axes: the rows' axis of the operand, and of (every tensor of) the result.

    Returns:
        The number; a reason where a row of the result depends on more than one of the operand.
    """
    source_axis, result_axis = axes
    first, *_ = compat.tree_leaves(probe.operand(operand))  # of several, such as an unbind's: all are changed
    shape = [1] * first.dim()
    shape[source_axis] = first.shape[source_axis]
    halves = [probe.noise.half(first.shape[source_axis]) for _ in range(_PARTS)]
    parts = [part for half in halves for part in (half, ~half)]

    def changed(part: Tensor) -> list[Tensor]:
        again = probe.run({operand: _plus(probe.operand(operand), part.view(shape))})
        return changed_rows(probe.result, again, result_axis)

    found = probe.answer(lambda: [changed(part) for part in parts])
    if isinstance(found, NoMatch):
        return found
    places = [_before(parts, rows) for rows in zip(*found, strict=True)]
    if not places or None in places:
        return probe.unknown("a row of the result reads more than one row")
    return places[0]  # type: ignore[return-value]


def _plus(value: Any, part: Tensor) -> Any:
    return compat.tree_map(lambda each: each + part.to(each.device), value)


def _before(parts: Sequence[Tensor], changed: tuple[Tensor, ...]) -> int | None:
    """How many rows stand before those that changed with each part of the operand's; None: others changed."""
    length, rows = len(changed[0]), len(parts[0])
    front = max(0, length - rows)  # rows that something else has put there, before or behind
    padded = [torch.nn.functional.pad(part, (front, front)) for part in parts]
    for shift in range(abs(length - rows) + 1):
        if not any(
            (found.cpu() & ~part[shift : shift + length]).any()
            for found, part in zip(changed, padded, strict=True)
        ):
            return front - shift
    return None


def keeps_row_order(probe: Probe, operand: fx.Node, axes: tuple[int, int]) -> Answer:
    """Whether the rows of the result stand as those of this operand do, though they may meet: a softmax."""
    if not isinstance(probe.operand(operand), Tensor):
        return False
    return _moves_with(probe, {operand: axes[0]}, axes[1])


def treats_rows_alike(probe: Probe, axes: Mapping[fx.Node, int], result_axis: int) -> Answer:
    """Whether a call does the same to each row, wherever it stands, and lets none meet.

    Args:
        probe: the call.
        axes: the rows' axis of every operand that has rows; one row of each makes one of the result.
        result_axis: the rows' axis of (every tensor of) the result.
    """
    for operand, axis in axes.items():
        local = is_row_local(probe, operand, (axis, result_axis))
        if not local:
            return local
    return _moves_with(probe, axes, result_axis)


def _moves_with(probe: Probe, axes: Mapping[fx.Node, int], result_axis: int) -> Answer:
    """Whether the rows of the result change places as those of the operands do."""
    length = next(probe.operand(operand).shape[axis] for operand, axis in axes.items())
    order = probe.noise.order(length)

    def moved(value: Tensor, axis: int) -> Tensor:
        return value.index_select(axis, order.to(value.device))

    def moves() -> bool:
        again = probe.run({source: moved(probe.operand(source), axis) for source, axis in axes.items()})
        return same(again, compat.tree_map(lambda leaf: moved(leaf, result_axis), probe.result))

    return probe.answer(moves)  # type: ignore[no-any-return]


def treats_as_flat(probe: Probe, grids: Collection[fx.Node]) -> Answer:
    """Whether a call makes the same numbers of grids [B, H, W, ..] as of their rows [B, H * W, ..]."""

    def alike() -> bool:
        flat = {grid: probe.operand(grid).flatten(1, 2) for grid in grids}
        return same(probe.run(flat), probe.result.flatten(1, 2))

    return probe.answer(alike)  # type: ignore[no-any-return]
