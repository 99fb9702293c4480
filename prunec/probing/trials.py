"""One operator on random operands: whole, and on parts of them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from prunec.ir.arguments import chosen_from
from prunec.ir.calls import OPERATOR_ERRORS
from prunec.ir.flops import FlopCounter
from prunec.ir.sizes import Position
from prunec.probing.boxes import WHOLE, Box, Chosen, Rows, Span, count, cut, fixed
from prunec.probing.lengths import Lengths
from prunec.probing.numbers import same, seeded
from prunec.probing.probe import Probe
from prunec.probing.units import Reads, Unit

_LOUD = 100.0  # how much larger the numbers are that a part has not read


class Trial:
    """One unit on random operands, at one setting of the lengths."""

    def __init__(self, unit: Unit, box: Box, lengths: Lengths, seed: int, fill: bool | None = None) -> None:
        self.unit, self.box, self.lengths = unit, box, lengths
        self.fill = fill  # what masks hold; None: anything
        self.probe = Probe(unit.call, lengths, seed, "both")
        selections = [rows.selection for _, rows in box if isinstance(rows, Chosen)]
        self.chosen = {node: self._selected(node) for node in selections}

    def agrees(self, reads: Reads) -> tuple[int, int] | None:
        """Whether the parts alone give the box of the whole: the operations of the whole and of the parts."""
        sizes = {where: self._number(rows) for where, rows in reads.sizes}
        try:
            wholes = [self._loud(*given) for given in zip(self.unit.operands, reads.boxes, strict=True)]
            parts = [cut(x, box or WHOLE, self.chosen) for x, box in zip(wholes, reads.boxes, strict=True)]
            with seeded():
                with FlopCounter() as before:
                    expected = cut(self.run(wholes), self.box, self.chosen)
                with FlopCounter() as after:
                    found = self.run(parts, sizes) if reads.piece is None else self._piece(reads, parts)
        except OPERATOR_ERRORS as error:  # what does not run on the parts alone reads more than them
            self.probe.unknown(f"it does not run on parts of its operands ({type(error).__name__}: {error})")
            return None
        return (before.total, after.total) if same(found, expected) else None

    def gradients(self) -> dict[int, Tensor]:
        """The size of each operand's gradient, by its place; none of an operator that has no gradient."""
        operands = [self.random(node) for node in self.unit.operands]
        # Numbers around one: a step or a ramp has a slope there.
        floats = {
            place: x.abs_().add_(0.5).requires_grad_()
            for place, x in enumerate(operands)
            if x.is_floating_point()
        }
        try:
            result = cut(self.run(operands), self.box, self.chosen)
            loss = (result * self.probe.noise.weights(result)).sum()
            found = torch.autograd.grad(loss, tuple(floats.values()), materialize_grads=True)
        except OPERATOR_ERRORS as error:
            self.probe.unknown(f"it has no gradient ({type(error).__name__}: {error})")
            return {}
        return {place: x.nan_to_num(0.0).abs() for place, x in zip(floats, found, strict=True)}

    def run(self, operands: Sequence[Tensor], sizes: Mapping[Position, int] | None = None) -> Any:
        """The unit on these operands."""
        value = self.probe.evaluate(dict(zip(self.unit.operands, operands, strict=True)), sizes)
        return value if self.unit.element is None else value[self.unit.element]

    def random(self, node: fx.Node) -> Tensor:
        """Random numbers of an operand's shape."""
        found = self.probe.like(node)
        assert isinstance(found, Tensor)
        return found if self.fill is None or found.dtype != torch.bool else found.fill_(self.fill)

    def tokens(self, selection: fx.Node) -> int:
        """The length of the stream that a selection chooses from."""
        return self.lengths.size(chosen_from(selection).meta["val"].shape[1])

    def inside(self, shape: torch.Size, box: Box) -> Tensor:
        """Where a tensor of this shape lies inside a box."""
        device = self.unit.node.meta["val"].device
        zeros = torch.zeros(shape, device=device, requires_grad=True)
        (gradient,) = torch.autograd.grad(cut(zeros, box, self.chosen).sum(), zeros)
        return gradient != 0

    def _loud(self, node: fx.Node, box: Box | None) -> Tensor:
        """Random values of an operand, those outside its box much larger."""
        values = self.random(node)
        if not box or not values.is_floating_point():
            return values
        return torch.where(self.inside(values.shape, box), values, _LOUD * values)

    def _piece(self, reads: Reads, parts: Sequence[Tensor]) -> Tensor:
        """The box of one operand, as the result without any operator; of another type it could not be."""
        assert reads.piece is not None
        types = [node.meta["val"].dtype for node in (self.unit.operands[reads.piece], self.unit.node)]
        found = parts[reads.piece] if types[0] == types[1] else parts[reads.piece].to(types[1])
        return found.squeeze(reads.squeezed) if reads.squeezed else found

    def _number(self, rows: Rows | int) -> int:
        if isinstance(rows, int):
            return rows
        return fixed(rows) if isinstance(rows, Span) else count(rows, 0, self.lengths)

    def _selected(self, node: fx.Node) -> Tensor:
        """Any rows in any order, each image its own."""
        images, kept = self.lengths.shape(node.meta["val"])
        rows = [self.probe.noise.order(self.tokens(node))[:kept] for _ in range(images)]
        return torch.stack(rows).to(node.meta["val"].device)
