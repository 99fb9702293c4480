"""The rewrites, one file each, and the order in which they run.

A pass is a frozen dataclass: a `name`, typed options as fields, and `requires -> run -> ensures`. `run`
returns a new program and counts; the runner removes dead nodes, checks the graph, re-checks the promise and
keeps the record.
"""

from __future__ import annotations

import time
from typing import Protocol

from prunec.capture.borrowing import alone
from prunec.ir import graph
from prunec.ir.program import Counts, Program, Stage
from prunec.passes.flatten_grid import FlattenGrid
from prunec.passes.fold_key_value import FoldKeyValue
from prunec.passes.insert_sites import InsertSites
from prunec.passes.liveness import Liveness
from prunec.passes.lower_masked import LowerMasked
from prunec.passes.lower_packed import LowerPacked
from prunec.passes.lower_single import LowerSingle
from prunec.passes.normalise import Normalise
from prunec.passes.recognise import Recognise
from prunec.passes.repair_tokens import RepairTokens
from prunec.policy.lowering import Lowering


class Pass(Protocol):
    """What every rewrite is."""

    @property
    def name(self) -> str:
        """How the pass is called in records and reports."""

    def requires(self, program: Program) -> None:
        """Assert what must hold before."""

    def run(self, program: Program) -> tuple[Program, dict[str, int]]:
        """Return the rewritten program and how often each thing was done."""

    def ensures(self, program: Program) -> None:
        """Assert what holds afterwards."""


#: Before the plan: what the model is.
FRONT: tuple[Pass, ...] = (Normalise(), FlattenGrid(), Recognise())
#: After the plan: what becomes of it.
BACK: tuple[Pass, ...] = (InsertSites(), RepairTokens(), Liveness(), FoldKeyValue())


def lowering_passes(lowering: Lowering) -> tuple[Pass, ...]:
    """After all others: what a mode does to the padded program that they make."""
    if lowering.single:
        return (LowerSingle(),)
    if lowering.mode == "packed":
        return (LowerPacked(lowering.attention or "rows"),)
    return (LowerMasked(),) if lowering.mode == "masked" else ()


@alone
def run_passes(passes: tuple[Pass, ...], program: Program) -> Program:
    """Run passes in order; each leaves a stage record."""
    for step in passes:
        start = time.perf_counter()
        step.requires(program)
        program, counts = step.run(program)
        graph.tidy(program.module)
        step.ensures(program)
        notes = counts.notes if isinstance(counts, Counts) else ()
        stage = Stage(step.name, time.perf_counter() - start, dict(counts), notes)
        program = program.replace(stages=(*program.stages, stage))
    return program
