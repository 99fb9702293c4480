"""Leave out dead rows: rows of a value that no output depends on.

    s -- norm -- qkv[3C] -- q, k, v -- attention -- proj -- (+) -- norm -- mlp -- (+) -- norm -- [:, 0]
     '-----------------------------------------------------'
becomes
    s -- norm -+- rows -- q[C] -- attention -- proj -- (+) -- norm -- mlp -- (+) -- norm -- [:, 0]
     |         '- kv[2C] -- k, v -'                     |
     '- rows -------------------------------------------'        rows: 1 of 197; k, v: 197

The graph is walked backwards. Each call asks its operands for the boxes of rows that it needs (see reads.py),
and a value is computed for the boxes that its readers ask for. It makes no difference whether the head reads
a class token, or detection tokens at the end, or a selection keeps some rows: where keys and one query score
a site, the other queries are gathered before its attention.

The result is exact: the remaining rows are computed as before. It runs by default, also with policy `none`.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from prunec import compat, ops
from prunec.compat import fake_mode_of
from prunec.ir import graph
from prunec.ir.arguments import bind, operand
from prunec.ir.program import Counts, Planned
from prunec.ir.rewrite import Pass
from prunec.ir.sizes import Position, with_sizes
from prunec.probing.boxes import (
    WHOLE,
    Box,
    Chosen,
    Rows,
    Span,
    count,
    fixed,
    holds,
    merged,
    operation,
    ordered,
    shape_of,
    within,
)
from prunec.probing.lengths import settings
from prunec.probing.reads import Reader
from prunec.probing.units import Reads, unit_of
from prunec.structure import Anatomy


@dataclass(frozen=True)
class Liveness(Pass[Planned, Planned]):
    """Leave out dead rows."""

    name: ClassVar[str] = "liveness"

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program without them, or as it was where no floating-point operation would be saved."""
        lengths = settings(program.graph, program.interface.batch or 2)
        reader, entire = Reader(lengths), set[fx.Node]()
        while True:
            needs = Needs(program.graph, reader, entire)
            if needs.saved() <= 0:
                return program, Counts({"operators": 0, "cuts": 0})
            try:
                rewriting = _Rewriting(program.module, needs)
                module = rewriting.run()
            except _UnfitError as unfit:
                entire.add(unfit.node)
                continue
            counts = {"operators": needs.parts(), "cuts": rewriting.cuts}
            return program.replace(module=module), Counts(counts, _notes(program.anatomy, needs))

    def ensures(self, program: Planned) -> None:
        """Every selection is still there."""
        left, sites = (
            sum(node.target in ops.SELECTIONS for node in program.graph.nodes),
            len(program.plan.sites),
        )
        self.promise(left == sites, f"{left} selections are left of {sites}")


class Needs:
    """Which boxes of each value anybody reads, and how each of them is computed."""

    def __init__(self, target: fx.Graph, reader: Reader, entire: set[fx.Node]) -> None:
        self.reader, self.entire = reader, entire
        self.lengths = reader.settings[0]
        self.asked: dict[fx.Node, list[Box]] = defaultdict(list)
        self.boxes: dict[fx.Node, list[Box]] = {}  # none: nothing reads the node
        self.reads: dict[tuple[fx.Node, Box], Reads | None] = {}
        for node in reversed(target.nodes):
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "call_function" and graph.is_tensor(node):
            self.boxes[node] = self._boxes(node)
        else:
            always = node.op != "call_function"
            self.boxes[node] = [WHOLE] if always or node in self.asked else []
        for box in self.boxes[node]:
            self._ask(node, self.reads.get((node, box)))

    def _boxes(self, node: fx.Node) -> list[Box]:
        """What is worth computing apart, if all of it can be."""
        boxes = merged(self.asked[node], node.meta["val"], self.lengths) if node in self.asked else []
        boxes = [WHOLE] if boxes and node in self.entire else boxes
        found = {box: self._read(node, box) for box in boxes}
        if any(box != WHOLE and reads is None for box, reads in found.items()):
            boxes = [WHOLE]
            found = {WHOLE: self._read(node, WHOLE)}
        self.reads.update({(node, box): reads for box, reads in found.items()})
        return boxes

    def _read(self, node: fx.Node, box: Box) -> Reads | None:
        if node.target is ops.gather and box == WHOLE:  # by its meaning, and so with no trial
            selection, dim = operand(node, "index"), bind(node)["dim"]
            return Reads((((dim, Chosen(selection, batch=1 if dim == 0 else 0)),), None), piece=0)
        return None if node in self.entire else self.reader.reads(unit_of(node), box)

    def _ask(self, node: fx.Node, reads: Reads | None) -> None:
        """Ask the operands for what is read of them."""
        if reads is None:
            for source in node.all_input_nodes:
                self.asked[source].append(WHOLE)
            return
        unit = unit_of(node)
        for source, box in zip(unit.operands, reads.boxes, strict=True):
            chosen = [rows for _, rows in box or () if isinstance(rows, Chosen)]
            for rows in chosen:
                self.asked[rows.selection].append(WHOLE)
            if box is not None:
                self.asked[source].append(WHOLE if any(rows.shared for rows in chosen) else box)
        for source in set(unit.call.all_input_nodes) - set(unit.operands):
            self.asked[source].append(WHOLE)

    def in_parts(self) -> Iterator[fx.Node]:
        """Values that are not computed whole."""
        return (node for node, boxes in self.boxes.items() if boxes and WHOLE not in boxes)

    def parts(self) -> int:
        """How many operators compute less than before."""
        return sum(1 for _ in self.in_parts())

    def saved(self) -> int:
        """Floating-point operations that are left out."""
        total = 0
        for node in self.in_parts():
            found = [reads for box in self.boxes[node] if (reads := self.reads[node, box])]
            total += found[0].whole_flops - sum(reads.flops for reads in found)
        return total


class _UnfitError(Exception):
    """A part that cannot be typed in its place, such as a view of what is not contiguous any more."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


class _Rewriting:
    """Builds the graph in which every value is computed in its boxes."""

    def __init__(self, module: fx.GraphModule, needs: Needs) -> None:
        self.module, self.needs, self.lengths = module, needs, needs.lengths
        self.mode = fake_mode_of(module.graph)
        self.graph = fx.Graph()
        self.new: dict[tuple[fx.Node, Box], fx.Node] = {}
        self.tokens: dict[fx.Node, fx.Node] = {}  # selection -> its length
        self.cuts = 0

    def run(self) -> fx.GraphModule:
        """The new graph module, on the same parameters."""
        for node in self.module.graph.nodes:
            for box in self.needs.boxes[node]:
                # Rows of a selection come when they are asked for: it may stand further down.
                if not any(isinstance(rows, Chosen) for _, rows in box):
                    self.view(node, box)
        return graph.with_graph(self.module, self.graph)

    def view(self, node: fx.Node, box: Box) -> fx.Node:
        """A box of an old node's value in the new graph, computed or cut out of what is computed."""
        if (node, box) not in self.new:
            boxes = self.needs.boxes[node]
            if box in boxes or not boxes:
                made = self._computed(node, box)
            else:
                made = self._cut(node, box)
            self.new[node, box] = made
        return self.new[node, box]

    def _computed(self, node: fx.Node, box: Box) -> fx.Node:
        reads = self.needs.reads.get((node, box))
        if reads is None or (box == WHOLE and self._operands_are_whole(node)):
            return self._copied(node)
        unit, name = unit_of(node), self._name(node, box)
        parts = {
            source: self.view(source, part)
            for source, part in zip(unit.operands, reads.boxes, strict=True)
            if part is not None
        }
        if reads.piece is not None:
            made = parts[unit.operands[reads.piece]]
            if not reads.squeezed:
                return made
            squeeze = torch.ops.aten.squeeze.dims
            return self._call(node, squeeze, (made, list(reads.squeezed)), {}, name)
        sizes: dict[Position, Any] = {where: self._size(rows) for where, rows in reads.sizes}
        args, kwargs = fx.map_arg(
            (with_sizes(unit.call.args, sizes), unit.call.kwargs),
            lambda source: parts.get(source) or self.new.get((source, WHOLE), source),
        )
        if unit.element is None:
            return self._call(node, unit.target, args, kwargs, name)
        call = self._call(unit.call, unit.target, args, kwargs, f"{unit.call.name}_rows")
        return self._call(node, operator.getitem, (call, unit.element), {}, name)

    def _copied(self, node: fx.Node) -> fx.Node:
        sources = {source: self.view(source, WHOLE) for source in node.all_input_nodes}
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: sources[source])
        made = self.graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        made.meta = dict(node.meta)
        return made

    def _operands_are_whole(self, node: fx.Node) -> bool:
        return all(WHOLE in self.needs.boxes[source] for source in unit_of(node).operands)

    def _cut(self, node: fx.Node, box: Box) -> fx.Node:
        """A box out of one that holds it."""
        value = node.meta["val"]
        outer = next(each for each in self.needs.boxes[node] if holds(each, box, value, self.lengths))
        made = self.view(node, outer)
        for axis, rows in ordered(within(outer, box, value, self.lengths)):
            for _ in range(rows.pad if isinstance(rows, Chosen) else 0):
                unsqueeze = torch.ops.aten.unsqueeze.default
                made = self._call(node, unsqueeze, (made, 0), {}, f"{node.name}_row")
            index = self.view(rows.selection, WHOLE) if isinstance(rows, Chosen) else None
            function, args = operation(made, axis, rows, index)
            made = self._call(node, function, args, {}, f"{node.name}_rows")
            self.cuts += 1
        return made

    def _size(self, rows: Rows | int) -> fx.Node | int:
        if isinstance(rows, int):
            return rows
        if isinstance(rows, Span):
            return fixed(rows)
        selection = self.view(rows.selection, WHOLE)
        if selection not in self.tokens:
            size = torch.ops.aten.sym_size.int
            self.tokens[selection] = self._call(rows.selection, size, (selection, 1), {}, "tokens")
        return self.tokens[selection]

    def _name(self, node: fx.Node, box: Box) -> str:
        """The node's own name for its largest part."""
        value = node.meta["val"]
        largest = max(self.needs.boxes[node], key=lambda each: math.prod(shape_of(each, value, self.lengths)))
        return node.name if box == largest else f"{node.name}_rows"

    def _call(self, old: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any, name: str) -> fx.Node:
        """A new call with its type."""
        values = fx.map_arg((args, kwargs), lambda source: source.meta["val"])
        try:
            value, forced = compat.evaluate(self.mode, function, *values)
        except Exception as error:  # whatever the operator raises
            raise _UnfitError(old) from error
        if forced:
            raise _UnfitError(old)
        made = self.graph.create_node("call_function", function, args, kwargs, name)
        made.meta = {**old.meta, "val": value}
        return made


def _notes(anatomy: Anatomy, needs: Needs) -> tuple[str, ...]:
    """`rows 1 of 197 from block 11`, for each run of blocks whose states are computed in part."""
    found: list[str] = []
    parts = {node.name: node for node in needs.in_parts()}
    for block in anatomy.blocks:
        for branch in block.branches:
            node = parts.get(branch.add)
            if node is None:
                continue
            sizes = needs.lengths.shape(node.meta["val"])
            for axis, rows in needs.boxes[node][0]:
                kept = count(rows, sizes[axis], needs.lengths)
                words = f"rows {kept} of {sizes[axis]}"
                if not any(note.startswith(words) for note in found):
                    found.append(f"{words} from block {block.index}")
    return tuple(found)
