"""What a part of an operator's result reads of its operands, found by watching the operator run.

    layer_norm(x)[:, 0:1]              reads x[:, 0:1]
    attention(q, k, v)[:, :, 0:1]      reads q[:, :, 0:1], all of k and v
    linear(x, w, b)[.., 0:1, 0:C]      reads x[.., 0:1, :], w[0:C], b[0:C]
    mean(x, 1)                         reads all of x

Nothing here knows an operator. The same rows are proposed first, then what has a gradient. A trial decides:
the operator runs on random operands, once whole, and once on the proposed parts alone. It has never seen the
rest, so if the results are equal, the rest does not matter. The rest holds numbers a hundred times as large,
so that a maximum or a sort shows what a gradient hides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat, ops
from prunec.ir.calls import signature
from prunec.ir.sizes import Position, at, sizes_of
from prunec.probing.boxes import WHOLE, Box, Rows, Span, shape_of
from prunec.probing.lengths import Lengths
from prunec.probing.proposals import Proposals
from prunec.probing.trials import Trial
from prunec.probing.units import Reads, Unit


class Reader:
    """Watches units; equal ones once."""

    def __init__(self, settings: Sequence[Lengths]) -> None:
        self.settings = settings  # lengths that a finding must hold at; it is proposed at the first
        self.known: dict[Any, Reads | None] = {}

    def reads(self, unit: Unit, box: Box) -> Reads | None:
        """What `box` of the unit's result reads; None where that is everything, or was not found."""
        if not _may_be_watched(unit) or (box == WHOLE and not _may_read_less(unit, self.settings[0])):
            return None
        arguments = (unit.call.args, unit.call.kwargs)
        wiring = str(fx.map_arg(arguments, lambda node: unit.call.all_input_nodes.index(node)))
        key = (unit.call.target, unit.element, wiring, *map(signature, arguments), box)
        if key not in self.known:
            self.known[key] = self._watch(unit, box)
        return self.known[key]

    def _watch(self, unit: Unit, box: Box) -> Reads | None:
        first = Proposals(unit, box, self.settings[0])
        smaller = _may_read_less(unit, self.settings[0])  # then the same rows may not be all that is left out
        for propose in (first.by_gradient,) if smaller else (first.in_place, first.by_gradient):
            proposed = propose()
            if not any(proposed):
                continue
            for reads in _ways(unit, box, proposed, self.settings[0]):
                flops = [trial.agrees(reads) for trial in self._trials(unit, box)]
                if flops[0] is not None and all(flops):
                    return dataclasses.replace(reads, whole_flops=flops[0][0], flops=flops[0][1])
        return None

    def _trials(self, unit: Unit, box: Box) -> Iterator[Trial]:
        """At every setting; with a random mask, which may hide something, and with one that hides nothing."""
        for lengths in self.settings:
            for fill in (None, True) if unit.is_masked else (None,):
                yield Trial(unit, box, lengths, seed=1, fill=fill)


def _may_be_watched(unit: Unit) -> bool:
    """Whether random operands tell anything: integers may be places to read at, and these may be any."""
    kinds = [node.meta["val"].dtype for node in unit.operands]
    return bool(kinds) and all(kind.is_floating_point or kind == torch.bool for kind in kinds)


def _may_read_less(unit: Unit, lengths: Lengths) -> bool:
    """Whether a unit may leave out part of an operand when all of its result is wanted."""
    if unit.call.target in ops.SCORES:
        return True
    sizes = [math.prod(lengths.shape(node.meta["val"])) for node in (unit.node, *unit.operands)]
    return len(sizes) == 2 and sizes[0] < sizes[1]


def _ways(unit: Unit, box: Box, proposed: Sequence[Box | None], lengths: Lengths) -> Iterator[Reads]:
    """Ways to compute a box from boxes of the operands: the same operator, or no operator at all."""
    boxes = tuple(box or WHOLE for box in proposed)
    for sizes in _sizes(unit, box, boxes):
        yield Reads(boxes, tuple(sizes.items()))
    read = [place for place, box in enumerate(proposed) if box is not None]
    if len(read) == 1:
        shape = shape_of(boxes[read[0]], unit.operands[read[0]].meta["val"], lengths)
        single = [axis for axis, _ in boxes[read[0]] if shape[axis] == 1]
        for squeezed in ((), *((axis,) for axis in single), tuple(single)):
            yield Reads(tuple(proposed), piece=read[0], squeezed=squeezed)


def _sizes(unit: Unit, box: Box, boxes: Sequence[Box]) -> Iterator[Mapping[Position, Rows | int]]:
    """Changes of the integers in a call: none, sizes that are smaller now, places from a part's start."""
    yield {}
    args = unit.call.args
    known = {where: _recorded(at(args, where)) for where in compat.symbolic_positions(unit.call.target, args)}
    result = sizes_of(unit.node.meta["val"])
    equal = {where: rows for axis, rows in box for where, size in known.items() if size == result[axis]}
    in_place = {
        where: rows
        for axis, rows in box
        for where, size in known.items()
        if size == result[axis] and where[1:] == (axis,) and len(args[where[0]]) == len(result)  # type: ignore[arg-type]
    }
    yield from (found for found in (in_place, equal) if found)
    starts = {rows.start for box in boxes for _, rows in box if isinstance(rows, Span) and rows.start > 0}
    for place, value in enumerate(args):
        if isinstance(value, int) and not isinstance(value, bool):
            for start in (start for start in starts if value >= start):
                yield {(place,): value - start}


def _recorded(size: Any) -> sympy.Expr:
    return compat.expression(size.meta["val"] if isinstance(size, fx.Node) else size)
