"""The compiler, on one screen.

capture -> normalise -> recognise -> plan -> insert sites -> repair tokens -> liveness -> certify
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from prunec.capture import adopt, capture
from prunec.certificate import Certificate, certify
from prunec.passes import BACK, FRONT, run_passes
from prunec.plan import make_plan
from prunec.policy import Policy
from prunec.program import Program, Stage
from prunec.sources import Source


@dataclass(frozen=True)
class Compiled:
    """One model through the compiler: before, after, and the proof."""

    dense: Program  # captured, normalised, recognised; nothing inserted
    pruned: Program
    certificate: Certificate


def recognise(source: Source) -> Program:
    """A module as a normalised graph with its anatomy."""
    if source.exported is not None:
        captured = adopt(source.exported, source.args, source.kwargs)
    else:
        captured = capture(source.module, source.args, source.kwargs)
    return run_passes(FRONT, captured)


def compile_source(source: Source, policy: Policy) -> Compiled:
    """The whole way from a module to a certified program."""
    dense = recognise(source)
    planned = plan(dense, policy)
    pruned = run_passes(BACK, planned)
    certificate = certify(dense, pruned, original=source.module)
    stage = Stage("certify", certificate.seconds, {"forwards": 4}, (str(certificate),))
    return Compiled(dense, pruned.replace(stages=(*pruned.stages, stage)), certificate)


def plan(dense: Program, policy: Policy) -> Program:
    """The policy made concrete for this model."""
    assert dense.anatomy is not None
    start = time.perf_counter()
    made = make_plan(policy, dense.anatomy)
    stage = Stage("plan", time.perf_counter() - start, {"sites": len(made.sites)}, made.notes)
    return dense.replace(plan=made, stages=(*dense.stages, stage))
