"""The reference: the graph module as it is, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass

from prunec.ir.program import Program
from prunec.policy.lowering import MODES
from prunec.targets import Flat
from prunec.targets.building import Built
from prunec.targets.precision import FLOATS, Precision, halved


@dataclass(frozen=True)
class Eager:
    """Run the graph without compiling it."""

    precision: Precision = "fp32"
    summary = "the graph as it is, on whatever device the model is on"
    needs = ""
    modes = MODES
    precisions = FLOATS

    def missing(self) -> str | None:
        """Always there."""
        return None

    def prepared(self, program: Program) -> Program:
        """Converted, where PyTorch runs it in half precision."""
        return halved(program, self.precision)

    def lower(self, program: Program) -> Flat:
        """The graph module itself; in half precision one with weights of its own."""
        if self.precision == "fp32":
            return program.module
        return Built(program, lambda own: self.prepared(own).module).now()
