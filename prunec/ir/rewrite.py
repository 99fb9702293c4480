"""What every rewrite of a program is: `requires -> run -> ensures`.

A pass is a frozen dataclass with a `name` and typed options as fields. Its two types say of which stage the
program is that it takes, and of which the one that it gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from torch import fx

from prunec.errors import REPORT, InternalError
from prunec.ir import graph
from prunec.ir.program import Counts, Program

Before = TypeVar("Before", bound=Program)
After = TypeVar("After", bound=Program)


class Pass(ABC, Generic[Before, After]):
    """One rewrite; the types are of what it takes and of what it gives."""

    name: ClassVar[str]  # in records and reports

    def requires(self, program: Before) -> None:
        """Check what must hold before; nothing more than the type says, unless a pass overrides this."""

    @abstractmethod
    def run(self, program: Before) -> tuple[After, Counts]:
        """The rewritten program, and how often each thing was done."""

    def promise(self, holds: bool, what: str, node: fx.Node | None = None) -> None:
        """InternalError unless it holds, with what is wrong (of a node: what the node does)."""
        if not holds:
            broken = what if node is None else f"{node.name} {what}"
            where = None if node is None else graph.place(node)
            raise InternalError(f"pass {self.name!r} broke its promise: {broken}", where=where, remedy=REPORT)

    def ensures(self, program: After) -> None:
        """Check what holds afterwards; nothing more than the type says, unless a pass overrides this."""
