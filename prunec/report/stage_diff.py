"""Two stages of one program, as the lines of their graphs that differ."""

from __future__ import annotations

import difflib

from prunec.errors import UsageError, did_you_mean
from prunec.ir.program import Program, Stage


def between(program: Program, first: str, second: str) -> str:
    """What one stage and a later one differ in, by their names: lines that went, lines that came."""
    before, after = _stage(program, first), _stage(program, second)
    found = difflib.unified_diff(
        before.graph.splitlines(), after.graph.splitlines(), first, second, n=0, lineterm=""
    )
    return "\n".join(line for line in found if not line.startswith("@@"))


def _stage(program: Program, name: str) -> Stage:
    """The last record of that name."""
    names = [stage.name for stage in program.stages]
    if name not in names:
        raise UsageError(
            f"the program has no stage {name!r}{did_you_mean(name, names)}",
            where="--stages",
            remedy=f"name two of: {', '.join(names)}",
        )
    return program.stages[len(names) - 1 - names[::-1].index(name)]
