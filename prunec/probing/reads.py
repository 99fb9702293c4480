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
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from prunec import compat, ops
from prunec.ir.arguments import chosen_from
from prunec.ir.calls import signature
from prunec.ir.flops import FlopCounter
from prunec.ir.graph import is_getitem, is_size, is_tensor
from prunec.ir.sizes import Position, at, sizes_of, with_sizes
from prunec.probing.boxes import WHOLE, Box, Chosen, Lengths, Rows, Span, count, cut, fixed, shape_of, span

_LOUD = 100.0
_NOISE = 65537
_CLOSE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}  # where an operator rounds; else:
_CLOSE_ENOUGH = 1e-4


@dataclass(frozen=True)
class Unit:
    """An operator that yields one tensor; for an element of a tuple, the call that made the tuple."""

    node: fx.Node
    call: fx.Node
    element: int | None
    operands: tuple[fx.Node, ...]  # tensors

    @property
    def target(self) -> Callable[..., Any]:
        """The operator."""
        assert callable(self.call.target)
        return self.call.target

    def run(self, args: Any, kwargs: Any) -> Any:
        """The unit's value for other arguments of the call."""
        value = self.target(*args, **kwargs)
        return value if self.element is None else value[self.element]


def unit_of(node: fx.Node) -> Unit:
    """The unit that yields a node's value."""
    made = node.args[0] if is_getitem(node) else node
    assert isinstance(made, fx.Node)
    element = node.args[1] if is_getitem(node) else None
    assert element is None or isinstance(element, int)
    return Unit(node, made, element, tuple(filter(is_tensor, made.all_input_nodes)))


@dataclass(frozen=True)
class Reads:
    """How a part of a unit's result comes about."""

    boxes: tuple[Box | None, ...]  # what is read of each operand; None: nothing
    sizes: tuple[tuple[Position, Rows | int], ...] = ()  # arguments that change, and to what number
    piece: int | None = None  # the result is no more than this operand's box ..
    squeezed: tuple[int, ...] = ()  # .. without these axes
    whole_flops: int = 0  # floating-point operations of all of the result
    flops: int = 0  # and of this part


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
        first = _Trial(unit, box, self.settings[0], seed=0)
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

    def _trials(self, unit: Unit, box: Box) -> Iterator[_Trial]:
        """At every setting; with a random mask, which may hide something, and with one that hides nothing."""
        for lengths in self.settings:
            for fill in (None, True) if _is_masked(unit) else (None,):
                yield _Trial(unit, box, lengths, seed=1, fill=fill)


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


class _Trial:
    """One unit on random operands, at one setting of the lengths."""

    def __init__(self, unit: Unit, box: Box, lengths: Lengths, seed: int, fill: bool | None = None) -> None:
        self.unit, self.box, self.lengths, self.fill = unit, box, lengths, fill
        self.random = torch.Generator().manual_seed(seed)
        selections = [rows.selection for _, rows in box if isinstance(rows, Chosen)]
        self.chosen = {node: self._selected(node) for node in selections}

    # --- propose ----------------------------------------------------------------------------

    def in_place(self) -> list[Box | None]:
        """For each operand the same rows of the axes that stand where the box has its own.

        Nothing where an axis of the box stands in no operand: then its rows come from elsewhere.
        """
        boxes = [self._in_place(node) for node in self.unit.operands]
        return [*boxes] if max(map(len, boxes)) == len(self.box) else []

    def by_gradient(self) -> list[Box | None]:
        """For each operand the box that has a gradient; where there can be none, as above."""
        fills = (None, True, False) if _is_masked(self.unit) else (None,)
        runs = [_Trial(self.unit, self.box, self.lengths, 0, fill)._gradients() for fill in fills]
        boxes: list[Box | None] = []
        for place, node in enumerate(self.unit.operands):
            found = [run[place] for run in runs if place in run]
            boxes.append(self._around(node, sum(found)) if found else self._in_place(node))
        return boxes

    def _gradients(self) -> dict[int, Tensor]:
        """The size of each operand's gradient, by its place."""
        # Numbers around one: a step or a ramp has a slope there.
        operands = [self._random(node).abs_().add_(0.5) if _is_float(node) else self._random(node)
                    for node in self.unit.operands]  # fmt: skip
        floats = {place: x.requires_grad_() for place, x in enumerate(operands) if x.is_floating_point()}
        try:
            result = cut(self.run(operands), self.box, self.chosen)
            weights = torch.rand(result.shape, generator=self.random).to(result) + 0.5
            loss = (result * weights).sum()
            found = torch.autograd.grad(loss, tuple(floats.values()), materialize_grads=True)
        except Exception:  # noqa: BLE001  an operator that has no gradient, or does not run on such operands
            return {}
        return {place: x.nan_to_num(0.0).abs() for place, x in zip(floats, found, strict=True)}

    def _around(self, node: fx.Node, gradient: Tensor | int) -> Box | None:
        """The box of an operand that has a gradient."""
        assert isinstance(gradient, Tensor)
        read = gradient != 0
        if not bool(read.any()):
            return None
        value = node.meta["val"]
        # Of what all images share, each reads its own rows: no gradient tells them apart.
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
            if read.shape[axis] == self._tokens(selection) and not bool(
                (read & ~self._inside(read.shape, ((axis, rows),))).any()
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

    # --- try --------------------------------------------------------------------------------

    def agrees(self, reads: Reads) -> tuple[int, int] | None:
        """Whether the parts alone give the box of the whole: the operations of the whole and of the parts."""
        sizes = {where: self._number(rows) for where, rows in reads.sizes}
        try:
            wholes = [self._loud(*given) for given in zip(self.unit.operands, reads.boxes, strict=True)]
            parts = [cut(x, box or WHOLE, self.chosen) for x, box in zip(wholes, reads.boxes, strict=True)]
            with torch.no_grad():
                with FlopCounter() as before:
                    expected = cut(self.run(wholes), self.box, self.chosen)
                with FlopCounter() as after:
                    found = self.run(parts, sizes) if reads.piece is None else parts[reads.piece]
                    found = found.squeeze(reads.squeezed) if reads.squeezed else found
        except Exception:  # noqa: BLE001  what does not run on the parts alone reads more than them
            return None
        if not _equal(found, expected):
            return None
        return before.total, after.total

    def _loud(self, node: fx.Node, box: Box | None) -> Tensor:
        """Random values of an operand, those outside its box much larger."""
        numbers = self._random(node)
        if not box or not numbers.is_floating_point():
            return numbers
        return torch.where(self._inside(numbers.shape, box), numbers, _LOUD * numbers)

    def run(self, operands: Sequence[Tensor], sizes: Mapping[Position, int] | None = None) -> Any:
        """The unit on these operands."""
        given = dict(zip(self.unit.operands, operands, strict=True))

        def value(node: fx.Node) -> Any:
            return self.lengths.size(node.meta["val"]) if is_size(node) else given[node]

        args = with_sizes(self.unit.call.args, sizes) if sizes else self.unit.call.args
        args, kwargs = fx.map_arg((args, self.unit.call.kwargs), value)
        return self.unit.run(args, kwargs)

    def _number(self, rows: Rows | int) -> int:
        if isinstance(rows, int):
            return rows
        return fixed(rows) if isinstance(rows, Span) else count(rows, 0, self.lengths)

    def _random(self, node: fx.Node) -> Tensor:
        """Random numbers of a node's shape; single precision stands for every other one."""
        value = node.meta["val"]
        shape = self.lengths.shape(value)
        if value.is_floating_point():
            start, size = int(torch.randint(_NOISE, (1,), generator=self.random)), math.prod(shape)
            noise = _noise().repeat((start + size) // _NOISE + 1)
            return noise[start : start + size].reshape(shape).to(value.device)
        mask = torch.randint(0, 2, shape, generator=self.random).bool()
        return (mask if self.fill is None else mask.fill_(self.fill)).to(value.device)

    def _selected(self, node: fx.Node) -> Tensor:
        """Any rows in any order, each image its own."""
        images, kept = self.lengths.shape(node.meta["val"])
        tokens = self._tokens(node)
        rows = [torch.randperm(tokens, generator=self.random)[:kept] for _ in range(images)]
        return torch.stack(rows).to(node.meta["val"].device)

    def _tokens(self, selection: fx.Node) -> int:
        """The length of the stream that a selection chooses from."""
        return self.lengths.size(chosen_from(selection).meta["val"].shape[1])

    def _inside(self, shape: torch.Size, box: Box) -> Tensor:
        """Where a tensor of this shape lies inside a box."""
        device = self.unit.node.meta["val"].device
        numbers = torch.zeros(shape, device=device, requires_grad=True)
        (gradient,) = torch.autograd.grad(cut(numbers, box, self.chosen).sum(), numbers)
        return gradient != 0


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


@functools.cache
def _noise() -> Tensor:
    """Random numbers, drawn once: to draw them anew costs more than most operators.

    As many as a prime, so that no two rows of a tensor are the same stretch of them.
    """
    return torch.randn(_NOISE, generator=torch.Generator().manual_seed(0))


def _recorded(size: Any) -> sympy.Expr:
    return compat.expression(size.meta["val"] if isinstance(size, fx.Node) else size)


def _is_masked(unit: Unit) -> bool:
    """Whether an operand is a mask (integers are not watched)."""
    return not all(map(_is_float, unit.operands))


def _is_float(node: fx.Node) -> bool:
    return bool(node.meta["val"].is_floating_point())


def _equal(found: Any, expected: Any) -> bool:
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    apart = (found.double() - expected.double()).abs().max() if found.numel() else 0.0
    scale = expected.double().abs().max() if found.numel() else 1.0
    return bool(apart <= _CLOSE.get(found.dtype, _CLOSE_ENOUGH) * scale)  # false for NaN
