"""Lower a padded program to one image at a time, which has no padding and so needs no masks.

pack(kept)                         ==>  kept_rows(kept)
attention(.., key_mask(valid, m))  ==>  attention(.., m)       the fused kernel without a mask
scatter(base, x, index, d, valid)  ==>  scatter(base, x, index, d)
fill(x, valid, ..), rescale(y, ..) ==>  x, y
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunec import ops
from prunec.ir import arguments, graph
from prunec.ir.program import Counts, Planned
from prunec.ir.rewrite import Pass


@dataclass(frozen=True)
class LowerSingle(Pass[Planned, Planned]):
    """Keep what one image keeps, without masks."""

    name: ClassVar[str] = "one image"

    def requires(self, program: Planned) -> None:
        """A padded program."""
        self.promise(
            program.plan.lowering.single, f"made for one image, and the mode is {program.plan.lowering}"
        )

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program without masks."""
        module = graph.copy(program.module)
        undone = 0
        for node in list(module.graph.nodes):
            if node.target is ops.pack:
                arguments.retarget(node, ops.kept_rows)
            elif node.target is ops.scatter:
                arguments.rebind(node, valid=None)
            elif node.target in _HIDING:
                node.replace_all_uses_with(arguments.bind(node)[_HIDING[node.target]])
                module.graph.erase_node(node)
                undone += 1
        return program.replace(module=module), Counts({"masks": undone})

    def ensures(self, program: Planned) -> None:
        """Nothing is hidden."""
        for node in program.graph.nodes:
            self.promise(node.target not in (*_HIDING, ops.pack), "hides padding still", node)


#: What hides padding, and which argument takes its place when there is none.
_HIDING = {ops.key_mask: "mask", ops.mask_keys: "logits", ops.fill: "x", ops.rescale: "y"}
