"""How many patches each image keeps at each site of a program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from prunec import ops
from prunec.calibration.inputs import batch_of, call_on
from prunec.ir import arguments
from prunec.ir.program import Planned


def count_kept(pruned: Planned, images: Tensor) -> tuple[float, ...]:
    """How many patches images keep on average at each site."""
    counter = KeptCounter(pruned)
    for batch in images.split(batch_of(pruned)):
        with torch.no_grad():
            counter.run(*call_on(pruned, batch))
    return tuple(float(kept.mean()) for kept in counter.by_site())


class KeptCounter(fx.Interpreter):
    """Runs a program, and counts the patches that each image keeps at each site."""

    def __init__(self, program: Planned) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self.protected = program.anatomy.prefix + program.anatomy.suffix
        self.sites = iter(program.plan.sites)
        self.found: dict[str, list[Tensor]] = {}
        self.fixed: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As it is, counting."""
        value = super().run_node(n)
        if n.target in ops.SELECTIONS:
            if n.name not in self.found:
                self.fixed[n.name] = next(self.sites).keep
            if n.target in ops.RAGGED:
                rows = arguments.operand(n, "kept")
                kept = arguments.operand(rows, "kept") if rows.target is ops.with_best_dropped else rows
                count = self.env[kept].sum(dim=1) - self.protected
            else:  # a fused token is none of the patches kept
                count = torch.full((len(value),), self.fixed[n.name])
            self.found.setdefault(n.name, []).append(count.double())
        return value

    def by_site(self) -> list[Tensor]:
        """For each site, how many patches every image kept: [n]."""
        return [torch.cat(parts) for parts in self.found.values()]
