"""The compiler, on one screen.

capture -> normalise -> flatten grid -> recognise -> plan -> insert sites -> repair tokens -> liveness
-> calibrate -> certify
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from prunec.calibrate import Calibration, calibrate
from prunec.capture import adopt, capture
from prunec.certificate import Certificate, certify
from prunec.errors import CalibrationError
from prunec.ops import Learned
from prunec.passes import BACK, FRONT, run_passes
from prunec.plan import counted, make_plan
from prunec.policy import Policy
from prunec.program import Program, Stage
from prunec.sources import Pictures, Source


@dataclass(frozen=True)
class Compiled:
    """One model through the compiler: before, after, and the proof."""

    dense: Program  # captured, normalised, recognised; nothing inserted
    pruned: Program
    certificate: Certificate
    calibration: Calibration | None = None  # of a policy with learned parts or thresholds


def recognise(source: Source) -> Program:
    """A module as a normalised graph with its anatomy."""
    if source.exported is not None:
        captured = adopt(source.exported, source.args, source.kwargs)
    else:
        captured = capture(source.module, source.args, source.kwargs)
    return run_passes(FRONT, captured)


def compile_source(
    source: Source, policy: Policy, calibration: Pictures | None = None, *, untrained: bool = False
) -> Compiled:
    """The whole way from a module to a certified program.

    Args:
        source: the module and an example.
        policy: what to do.
        calibration: images for the policy's learned parts and thresholds.
        untrained: leave those as they are at first: good for timing and for weights that are loaded later.
    """
    dense = recognise(source)
    planned = plan(dense, policy)
    pruned = run_passes(BACK, planned)
    fitted = None if untrained else fit(dense, pruned, policy, calibration)
    if fitted is not None:
        stage = Stage("calibrate", fitted.seconds, {"images": fitted.images}, (str(fitted),))
        pruned = pruned.replace(plan=counted(pruned.plan, fitted.counts), stages=(*pruned.stages, stage))
    certificate = certify(dense, pruned, original=source.module)
    stage = Stage("certify", certificate.seconds, {"forwards": 4}, (str(certificate),))
    return Compiled(dense, pruned.replace(stages=(*pruned.stages, stage)), certificate, fitted)


def fit(dense: Program, pruned: Program, policy: Policy, images: Pictures | None) -> Calibration | None:
    """Calibrate a policy that needs it; CalibrationError when there is nothing to do that on."""
    assert pruned.plan is not None
    unknown = any(not site.known for site in pruned.plan.sites)
    if not (has_blanks(pruned) or (unknown and images)):
        return None
    if images is None:
        raise CalibrationError(
            f"policy {policy.name!r} has learned parts or thresholds, and there are no images to fit them to",
            remedy="give images (--images DIR, calibration=...); --untrained does without, for timing only",
        )
    return calibrate(dense, pruned, images.images, images.name)


def has_blanks(pruned: Program) -> bool:
    """Whether images must give it numbers: a scorer's parameters, a threshold that the policy leaves open."""
    assert pruned.plan is not None
    selectors = [pruned.plan.step(site).selector for site in pruned.plan.sites]
    return any(selector.blank for selector in selectors) or any(
        isinstance(node.target, Learned) and node.target.trainable for node in pruned.graph.nodes
    )


def plan(dense: Program, policy: Policy) -> Program:
    """The policy made concrete for this model."""
    assert dense.anatomy is not None
    start = time.perf_counter()
    made = make_plan(policy, dense.anatomy)
    stage = Stage("plan", time.perf_counter() - start, {"sites": len(made.sites)}, made.notes)
    return dense.replace(plan=made, stages=(*dense.stages, stage))
