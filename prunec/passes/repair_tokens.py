"""Make the graph fit its selections: the symbolic token axis (see spaces.py) as a pass.

reshape(x, [b, 197, 3, h, d])  ==>  reshape(x, [b, n, 3, h, d])
q * cos                        ==>  q * take(cos, index)
head(x)  (wants every token)   ==>  head(scatter(full, x, index))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from prunec import compat, ops
from prunec.ir.arguments import chosen_from, operand
from prunec.ir.program import Counts, Planned
from prunec.ir.rewrite import Pass
from prunec.token_axis.enough import check_enough
from prunec.token_axis.selected import Stream
from prunec.token_axis.spaces import TokenAxis


@dataclass(frozen=True)
class RepairTokens(Pass[Planned, Planned]):
    """Replace literals, gather token-indexed operands, end regions where the whole grid is needed."""

    name: ClassVar[str] = "repair tokens"

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The repaired program and the number of repairs of each kind."""
        anatomy, plan = program.anatomy, program.plan
        stream = Stream(
            anatomy.tokens,
            anatomy.prefix,
            anatomy.suffix,
            anatomy.token_dim,
            anatomy.states,
            anatomy.cores,
        )
        preserve = plan.fate in ("preserve", "merge", "exit")
        axis = TokenAxis(program.module, stream, preserve=preserve, restore=plan.rules.restored)
        module, repairs = axis.run()
        if plan.lowering.fixed:
            selections = [node for node in module.graph.nodes if node.target in ops.SELECTIONS]
            counts = [compat.expression(node.meta["val"].shape[1]) for node in selections]
            left = {count: site.leaves for count, site in zip(counts, plan.sites, strict=True)}
            check_enough(module.graph, left, anatomy.tokens)
        return program.replace(module=module), Counts(repairs.counts())

    def ensures(self, program: Planned) -> None:
        """Every way back starts from a selection, and ends in the stream that it chose from."""
        dim = program.anatomy.token_dim
        for node in program.graph.nodes:
            if node.target is ops.scatter:
                base, x, rows = (operand(node, name) for name in ("base", "x", "index"))
                first = _first_selection(rows)
                self.promise(first.target in ops.SELECTIONS, "comes back from no selection", node)
                whole = _length(base, dim) == _length(chosen_from(first), 1)
                self.promise(whole, "comes back into another stream than was chosen from", node)
                self.promise(_length(x, dim) == _length(rows, 1), "brings back more or fewer rows", node)
            elif node.target is ops.share:
                x, group = operand(node, "x"), operand(node, "group")
                self.promise(_length(node, dim) == _length(group, 1), "gives some rows no group", node)
                index = operand(_last_group(group), "index")
                self.promise(_length(x, dim) == _length(index, 1), "reads groups of another stream", node)


def _first_selection(rows: fx.Node) -> fx.Node:
    """The selection that rows, composed of several, begin with."""
    while rows.target is ops.compose:
        rows = operand(rows, "outer")
    return rows


def _last_group(groups: fx.Node) -> fx.Node:
    """The groups of the last selection, of several composed."""
    while groups.target is ops.compose:
        groups = operand(groups, "outer")
    return groups


def _length(node: Any, dim: int) -> Any:
    return compat.expression(node.meta["val"].shape[dim])
