"""What part of each operand a part of a result may read: proposed here, decided by trials."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from prunec import compat
from prunec.ir.sizes import sizes_of
from prunec.probing.boxes import Box, Chosen, Rows, Span, span
from prunec.probing.lengths import Lengths
from prunec.probing.trials import Trial
from prunec.probing.units import Unit


class Proposals:
    """Boxes of a unit's operands for one box of its result."""

    def __init__(self, unit: Unit, box: Box, lengths: Lengths) -> None:
        self.unit, self.box, self.lengths = unit, box, lengths
        self.trial = Trial(unit, box, lengths, seed=0)
        self.chosen = self.trial.chosen

    def in_place(self) -> list[Box | None]:
        """For each operand the same rows of the axes that stand where the box has its own.

        Nothing where an axis of the box stands in no operand: then its rows come from elsewhere.
        """
        boxes = [self._in_place(node) for node in self.unit.operands]
        return [*boxes] if max(map(len, boxes)) == len(self.box) else []

    def by_gradient(self) -> list[Box | None]:
        """For each operand the box that has a gradient; where there can be none, as above."""
        fills = (None, True, False) if self.unit.is_masked else (None,)
        runs = [Trial(self.unit, self.box, self.lengths, 0, fill).gradients() for fill in fills]
        boxes: list[Box | None] = []
        for place, node in enumerate(self.unit.operands):
            found = [run[place] for run in runs if place in run]
            boxes.append(self._around(node, sum(found)) if found else self._in_place(node))
        return boxes

    def _around(self, node: fx.Node, gradient: Tensor | int) -> Box | None:
        """The box of an operand that has a gradient."""
        assert isinstance(gradient, Tensor)
        read = gradient != 0
        if not bool(read.any()):
            return None
        value = node.meta["val"]
        # Of what all images share, each reads its own rows: no gradient separates them.
        shared = {
            axis: rows for axis, rows in self._in_place(node) if isinstance(rows, Chosen) and rows.shared
        }
        found: list[tuple[int, Rows]] = []
        for axis, size in enumerate(value.shape):
            rows: Rows | None = shared.get(axis) or self._chosen_along(value, axis, read)
            rows = rows or self._span_along(size, axis, read)
            found.extend([(axis, rows)] if rows else [])
        return tuple(found)

    def _span_along(self, size: int | torch.SymInt, axis: int, read: Tensor) -> Span | None:
        if self.lengths.counts_images(size):
            return None
        places = read.movedim(axis, 0).reshape(read.shape[axis], -1).any(dim=1).nonzero()
        return span(int(places.min()), int(places.max()) + 1, size, read.shape[axis])

    def _chosen_along(self, value: Tensor, axis: int, read: Tensor) -> Chosen | None:
        """The selection whose rows, and no others, are read along an axis."""
        batch = next((place for place, size in enumerate(value.shape) if self._is_image_axis(size)), axis)
        for selection in self.chosen if batch != axis else ():
            rows = Chosen(selection, batch)
            if read.shape[axis] == self.trial.tokens(selection) and not bool(
                (read & ~self.trial.inside(read.shape, ((axis, rows),))).any()
            ):
                return rows
        return None

    def _is_image_axis(self, size: int | torch.SymInt) -> bool:
        return any(
            compat.expression(node.meta["val"].shape[0]) == compat.expression(size) for node in self.chosen
        )

    def _in_place(self, node: fx.Node) -> Box:
        """The box itself, axis by axis counted from the last, where the operand is as long."""
        value, result = node.meta["val"], self.unit.node.meta["val"]
        missing = result.dim() - value.dim()
        found: list[tuple[int, Rows]] = []
        for axis, rows in self.box:
            place = axis - missing
            if place < 0 or sizes_of(value)[place] != sizes_of(result)[axis]:
                continue
            if isinstance(rows, Chosen):
                images = [each for each, size in enumerate(value.shape) if self._is_image_axis(size)]
                own = rows.batch - missing
                if not images and missing >= 0:
                    rows = Chosen(rows.selection, rows.batch, missing, shared=True)
                elif own in images:
                    rows = Chosen(rows.selection, own)
                else:
                    continue
            found.append((place, rows))
        return tuple(found)
