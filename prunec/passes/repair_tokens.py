"""Make the graph fit its selections: the symbolic token axis (see spaces.py) as a pass.

reshape(x, [b, 197, 3, h, d])  ==>  reshape(x, [b, n, 3, h, d])
q * cos                        ==>  q * take(cos, index)
head(x)  (wants every token)   ==>  head(scatter(full, x, index))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunec import ops
from prunec.graph import output_node
from prunec.program import Program
from prunec.spaces import TokenAxis


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
        return program.replace(module=module), repairs.counts()

    def ensures(self, program: Program) -> None:
        """Every way back starts from a selection; outputs have the shapes of the original."""
        for node in program.graph.nodes:
            if node.target in (ops.scatter, ops.reconstruct):
                assert node.args[2].target in (*ops.SELECTIONS, ops.compose)
        assert output_node(program.graph) is not None
