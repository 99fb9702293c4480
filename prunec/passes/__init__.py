"""The rewrites, one file each, and the order in which they run.

A pass (prunec/ir/rewrite.py) is a frozen dataclass: a `name`, typed options as fields, and
`requires -> run -> ensures`. `run` returns a new program and counts; the runner removes dead nodes, checks
the graph, re-checks the promise and keeps the record.
"""

from __future__ import annotations

import time
from typing import Any, overload

from typing_extensions import Unpack

from prunec.capture.borrowing import alone
from prunec.ir import graph
from prunec.ir.program import Planned, Program, Recognised
from prunec.ir.rewrite import After, Before, Pass
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

#: What takes a program with a plan and gives one.
PlanPass = Pass[Planned, Planned]

#: Before the plan: what the model is.
FRONT: tuple[Pass[Program, Program], Pass[Program, Program], Pass[Program, Recognised]] = (
    Normalise(),
    FlattenGrid(),
    Recognise(),
)
#: After the plan: what becomes of it.
BACK: tuple[PlanPass, ...] = (InsertSites(), RepairTokens(), Liveness(), FoldKeyValue())


def lowering_passes(lowering: Lowering) -> tuple[PlanPass, ...]:
    """After all others: what a mode does to the padded program that they make."""
    if lowering.single:
        return (LowerSingle(),)
    if lowering.mode == "packed":
        return (LowerPacked(lowering.attention or "rows"),)
    return (LowerMasked(),) if lowering.mode == "masked" else ()


@overload
def run_passes(passes: tuple[Pass[Before, Before], ...], program: Before) -> Before: ...
@overload
def run_passes(
    passes: tuple[Unpack[tuple[Pass[Before, Before], ...]], Pass[Before, After]], program: Before
) -> After: ...
@alone
def run_passes(passes: tuple[Pass[Any, Any], ...], program: Program) -> Program:
    """Run passes in order; each leaves a stage record."""
    for step in passes:
        program = run_pass(step, program)
    return program


def run_pass(step: Pass[Before, After], program: Before) -> After:
    """One pass, and its stage record."""
    start = time.perf_counter()
    step.requires(program)
    made, counts = step.run(program)
    graph.tidy(made.module)
    step.ensures(made)
    seconds, rewritten = time.perf_counter() - start, made.module is not program.module
    return made.recorded(step.name, seconds, counts, counts.notes, rewritten=rewritten)
