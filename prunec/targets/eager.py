"""The reference: the graph module as it is, operator by operator."""

from __future__ import annotations

from prunec.ir.program import Program
from prunec.policy.lowering import MODES
from prunec.policy.modes import ModeName
from prunec.targets import Flat


class Eager:
    """Run the graph without compiling it."""

    summary = "the graph as it is, on whatever device the model is on"
    needs = ""
    modes: tuple[ModeName, ...] = MODES

    def missing(self) -> str | None:
        """Always there."""
        return None

    def lower(self, program: Program) -> Flat:
        """The graph module itself."""
        return program.module
