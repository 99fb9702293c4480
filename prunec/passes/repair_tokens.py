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
from prunec.ir.graph import output_node
from prunec.ir.program import Program
from prunec.token_axis.enough import check_enough
from prunec.token_axis.spaces import TokenAxis


@dataclass(frozen=True)
class RepairTokens:
    """Replace literals, gather token-indexed operands, end regions where the whole grid is needed."""

    name: ClassVar[str] = "repair tokens"

    def requires(self, program: Program) -> None:
        """Sites have been inserted."""
        assert program.anatomy is not None and program.plan is not None

    def run(self, program: Program) -> tuple[Program, dict[str, int]]:
        """The repaired program and the number of repairs of each kind."""
        anatomy, plan = program.anatomy, program.plan
        assert anatomy is not None
        assert plan is not None
        axis = TokenAxis(
            program.module,
            tokens=anatomy.tokens,
            prefix=anatomy.prefix,
            suffix=anatomy.suffix,
            token_dim=anatomy.token_dim,
            states=anatomy.states,
            cores=anatomy.cores,
            preserve=plan.fate in ("preserve", "merge", "exit"),
            restore=plan.rules.restored,
        )
        module, repairs = axis.run()
        if plan.lowering.fixed:
            selections = [node for node in module.graph.nodes if node.target in ops.SELECTIONS]
            counts = [compat.expression(node.meta["val"].shape[1]) for node in selections]
            left = {count: site.leaves for count, site in zip(counts, plan.sites, strict=True)}
            check_enough(module.graph, left, anatomy.tokens)
        return program.replace(module=module), repairs.counts()

    def ensures(self, program: Program) -> None:
        """Every way back starts from a selection, and ends in the stream that it chose from."""
        assert program.anatomy is not None
        for node in program.graph.nodes:
            if node.target in (ops.scatter, ops.reconstruct):
                base, x, rows = node.args[:3]
                first = _first_selection(rows)
                assert first.target in ops.SELECTIONS
                assert _length(base, program.anatomy.token_dim) == _length(first.args[0], 1)
                assert _length(x, program.anatomy.token_dim) == _length(rows, 1)
        assert output_node(program.graph) is not None


def _first_selection(rows: fx.Node) -> fx.Node:
    """The selection that rows, composed of several, begin with."""
    while rows.target is ops.compose:
        rows = rows.args[0]  # type: ignore[assignment]
    return rows


def _length(node: Any, dim: int) -> Any:
    return compat.expression(node.meta["val"].shape[dim])
