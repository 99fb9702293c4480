"""The compiler, on one screen.

capture -> normalise -> flatten grid -> recognise -> plan -> insert sites -> repair tokens -> liveness
-> fold key and value projections -> calibrate -> certify -> lower
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from torch import nn

from prunec.calibration.calibrate import Calibration, Fitted, calibrate, kept_on_example, needs_calibration
from prunec.capture.borrowing import alone
from prunec.capture.capture import adopt, capture
from prunec.counting.counts import mark_counts
from prunec.errors import CalibrationError
from prunec.frontend.sources import ImageSet, Source
from prunec.ir.program import Planned, Recognised
from prunec.measure.packed_attention import faster_attention
from prunec.passes import BACK, FRONT, lowering_passes, run_passes
from prunec.policy.lowering import Lowering
from prunec.policy.policy import Policy
from prunec.policy.site_plan import make_plan
from prunec.verify.agreement import agree
from prunec.verify.certificate import Certificate, certify


@dataclass(frozen=True)
class Compiled:
    """One model through the compiler: before, after, and the proof."""

    dense: Recognised  # captured, normalised, recognised; nothing inserted
    plain: Planned  # pruned and certified, before its mode has changed it: what controls are made of
    pruned: Planned
    certificate: Certificate
    calibration: Calibration | None = None  # of a policy with learned parts or thresholds


@alone
def recognise(source: Source) -> Recognised:
    """A module as a normalised graph with its anatomy."""
    if source.exported is not None:
        captured = adopt(source.exported, source.args, source.kwargs)
    else:
        captured = capture(source.module, source.args, source.kwargs)
    dense = run_passes(FRONT, captured)
    marked = mark_counts(None if source.exported is not None else source.module, captured, dense)
    return dense if marked is None else run_passes(FRONT, marked)


def compile_source(
    source: Source,
    policy: Policy,
    calibration: ImageSet | None = None,
    *,
    calibrate: bool = True,
    lowering: Lowering | None = None,
) -> Compiled:
    """The whole way from a module to a certified program.

    Args:
        source: the module and an example.
        policy: what to do.
        calibration: images for the policy's learned parts and thresholds.
        calibrate: whether to fit those: left as they are, they do for timing and for weights loaded later.
        lowering: the mode; when left out, what suits the policy.
    """
    return compile_recognised(
        source.module, recognise(source), policy, calibration, calibrate=calibrate, lowering=lowering
    )


@alone
def compile_recognised(
    original: nn.Module,
    dense: Recognised,
    policy: Policy,
    calibration: ImageSet | None = None,
    *,
    calibrate: bool = True,
    lowering: Lowering | None = None,
) -> Compiled:
    """From a recognised program on: for those who try several policies on one model."""
    plain = run_passes(BACK, plan(dense, policy, lowering))
    fitted = fit(dense, plain, policy, calibration) if calibrate else None
    plain = kept_on_example(plain) if fitted is None else fitted.put_into(plain)
    certificate = certify(dense, plain, original=original)
    plain = plain.recorded("certify", certificate.seconds, {"forwards": 5}, (str(certificate),))
    return Compiled(dense, plain, lower(plain), certificate, fitted.calibration if fitted else None)


def lower(plain: Planned) -> Planned:
    """The program in its mode, and the proof that it computes the same."""
    if plain.plan.lowering.mode == "packed" and plain.plan.lowering.attention is None:
        plain = _with_attention(plain)
    passes = lowering_passes(plain.plan.lowering)
    lowered = run_passes(passes, plain)
    if not passes:
        return lowered
    agreement = agree(plain, lowered)
    return lowered.recorded("agree", agreement.seconds, {"images": agreement.images}, (str(agreement),))


def _with_attention(plain: Planned) -> Planned:
    """The attention of packed rows that is the faster one here."""
    start = time.perf_counter()
    attention, words = faster_attention(plain)
    made = replace(plain.plan, lowering=replace(plain.plan.lowering, attention=attention))
    return plain.replace(plan=made).recorded("attention", time.perf_counter() - start, {}, (words,))


def fit(dense: Recognised, pruned: Planned, policy: Policy, images: ImageSet | None) -> Fitted | None:
    """Calibrate a policy that needs it; CalibrationError when there is nothing to do that on."""
    unknown = any(not site.known for site in pruned.plan.sites)
    if not (needs_calibration(pruned) or (unknown and images)):
        return None
    if images is None:
        raise CalibrationError(
            f"policy {policy.name!r} has learned parts or thresholds, and there are no images to fit them to",
            remedy="give images (--images DIR, calibration=...), or fit nothing, for timing only "
            "(--no-calibrate, calibrate=False)",
        )
    return calibrate(dense, pruned, images.images, images.name)


def plan(dense: Recognised, policy: Policy, lowering: Lowering | None = None) -> Planned:
    """The policy made concrete for this model, in a mode or in the one that suits it."""
    start = time.perf_counter()
    made = make_plan(policy, dense.anatomy, lowering)
    seconds = time.perf_counter() - start
    return dense.planned(made).recorded("plan", seconds, {"sites": len(made.sites)}, made.notes)
