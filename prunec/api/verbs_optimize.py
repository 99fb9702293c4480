"""optimize: the whole way, from a model to a module on its backend with a report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from prunec import targets
from prunec.api.comparing import agreement
from prunec.api.deprecated import old_spellings
from prunec.api.on_targets import fastest_target, not_taken, parity
from prunec.api.results import Result
from prunec.api.verbs_plan import (
    AUTO,
    Chosen,
    PlanLike,
    PoliciesLike,
    SourceLike,
    as_source,
    request_of,
    to_choose_from,
)
from prunec.artefact.spec import describe
from prunec.calibration.calibrate import needs_calibration
from prunec.compiler import Compiled, compile_recognised, recognise
from prunec.errors import UsageError
from prunec.frontend.sources import ImageSet, Source
from prunec.ir.program import Planned, Recognised
from prunec.measure import figures
from prunec.measure.image_sets import SCENES, doubts, image_set_of, split_off
from prunec.measure.labels import fitting
from prunec.measure.measure import Measure
from prunec.planner.field import compare
from prunec.planner.field import plan as plan_among
from prunec.planner.planned import Search
from prunec.policy.modes import ModeLike
from prunec.policy.policy import Policy
from prunec.report.report import Report
from prunec.report.target_table import TargetTable
from prunec.schedules.goal import Goal
from prunec.targets import Flat, Target

ROUNDS = 20


@old_spellings
def optimize(
    source: SourceLike,
    policy: PlanLike | PoliciesLike,
    goal: Goal | None = None,
    *,
    images: str | Path | None = None,
    example: Any = None,
    mode: ModeLike | None = None,
    measure: Measure | None = None,
) -> Result:
    """Transform, lower, and measure against the compiled dense model, the ideal and the random control.

    The outputs are always compared with the dense model's: on the images, else on those that the source
    knows, else on scenes of Shapes. `Result.verdict` says how well they agree, and whatever makes the pruned
    model not worth having is warned of.

    A policy with learned parts or thresholds is calibrated first: on some of the images of the folder (which
    are then left out of the measurement), else on images that the source knows, else on scenes of Shapes.

    Args:
        source: a SOURCE string, a `Source`, or a module.
        policy: as for `transform`; also a plan. With a goal, several, or "auto": one of them is chosen.
        goal: plan blocks and counts by measurement on this device, so that this is met. For another search
            than the usual one: optimize(source, plan(source, policy, goal, search=...)).
        images: a folder of images to measure on; subfolders that name the model's classes give labels.
        example: an input of a module or a SOURCE, as for `transform`, or its shapes as text: 2x3x224x224.
        mode: as for `transform`; left out, a batch of one is static, and so is a policy that keeps as many
            tokens of every image.
        measure: on which target, at which batch, and how. Target "auto" builds on every target that runs
            here and takes the fastest that agrees with the graph. One that can only be written here has its
            file in the artefact; times and outputs are of the usual one.
    """
    wanted = None if goal is None else (goal, Search(mode=mode))
    return optimized(source, policy, wanted, images=images, example=example, mode=mode, measure=measure)


def optimized(
    source: SourceLike,
    policy: PlanLike | PoliciesLike,
    wanted: tuple[Goal | float, Search] | None = None,
    *,
    images: str | Path | None = None,
    example: Any = None,
    mode: ModeLike | None = None,
    measure: Measure | None = None,
) -> Result:
    """`optimize` with a search of one's own beside the goal, or the keep that policies are compared at."""
    measure = measure or Measure()
    asked = measure
    backend = targets.at_first(asked.target, asked.precision)
    only_written = targets.is_only_written(asked.target, asked.precision)
    if only_written:  # measured where models run if nothing else is said
        measure = replace(measure, target=targets.usual(), precision="fp32")
    field = None if wanted is None else to_choose_from(policy)
    chosen = Chosen.of(_alone(policy) if field is None else field.policies[0], mode)
    if field is None or field.alone:
        chosen.lowering(measure.batch, backend.modes)  # refuses what cannot run before a model is read
    given = as_source(source, example, measure.preprocess)
    with measure.on_threads():
        image_set, fitted_on = image_set_of(given, images), None
        if wanted is not None or chosen.planned is not None or _calibrates(chosen.policy, measure):
            image_set, fitted_on = split_off(given, image_set)
        measure.progress("capture, recognise")
        dense = recognise(given)
        if wanted is not None and field is not None and fitted_on is not None:
            goal, search = wanted
            request = request_of(chosen.policy, fitted_on, search, measure)
            if isinstance(goal, Goal):
                chosen = Chosen.of(plan_among(given, dense, goal, request, field), None)
            else:
                chosen = Chosen.of(compare(dense, goal, request, field), None)
        if not _calibrates(chosen.policy, measure):
            fitted_on = None
        result = _built(given, dense, chosen, backend, image_set, fitted_on, measure)
    return result.for_target(asked.target, asked.precision) if only_written else result


def _alone(policy: PlanLike | PoliciesLike) -> PlanLike:
    """The one policy that there must be where none is chosen; UsageError where there are several."""
    several = isinstance(policy, Sequence) and not isinstance(policy, str)
    if several or policy == AUTO:
        raise UsageError(
            "a policy is chosen for a goal, and there is none",
            where="policy",
            remedy="give one, such as Goal(latency=0.6); on the command line --latency 0.6",
        )
    return cast("PlanLike", policy)


def _calibrates(policy: Policy, measure: Measure) -> bool:
    return measure.calibrate and (policy.calibrated or policy.ragged)


def _built(
    given: Source,
    dense: Recognised,
    chosen: Chosen,
    backend: Target,
    image_set: ImageSet | None,
    fitted_on: ImageSet | None,
    measure: Measure,
) -> Result:
    """The model rewritten, lowered and measured."""
    policy, progress = chosen.on(dense), measure.progress
    progress("rewrite, certify")
    lowering = chosen.lowering(measure.batch, backend.modes)
    compiled = compile_recognised(
        given.module, dense, policy, fitted_on, calibrate=measure.calibrate, lowering=lowering
    )
    pruned, plain = compiled.pruned, compiled.plain
    scenes = image_set or fitted_on
    inputs = figures.inputs(dense, measure.batch, scenes.images if scenes else None)
    rounds = measure.rounds or ROUNDS
    built = _on_target(dense, pruned, inputs, measure)
    lowered, target = built.lowered, built.backend
    timed = figures.latency(dense, plain, lowered, target, inputs, rounds, progress)
    flops = {"dense": figures.flops(dense, inputs), "pruned": figures.flops(pruned, inputs)}
    progress("compare on images")
    caveats = _caveats(given, dense, image_set, fitted_on)
    compared = {**lowered, "dense": built.dense}
    shown, accuracy, said = agreement(given, compiled, compared, image_set, flops, measure)
    report = Report(
        source=given.spec,
        weights=given.weights,
        target=built.name,
        precision=target.precision,
        policy=policy.model_dump(mode="json"),
        anatomy=pruned.anatomy,
        plan=pruned.plan,
        stages=pruned.stages,
        certificate=compiled.certificate,
        flops=flops,
        images=shown.name,
        accuracy=accuracy,
        latency=timed,
        notes=(*given.notes, *built.notes, *_calibration_notes(compiled), *caveats, *said),
        arch=given.arch,
        submodule=given.submodule,
        example=given.example,
        calibration=compiled.calibration,
        planned=chosen.planned,
        preprocess=image_set.preprocess if image_set else None,
        untrained=_is_untrained(compiled),
        targets=built.table,
        parity=parity(pruned, lowered["pruned"], inputs, target.precision),
    )
    for doubt in (*caveats, *report.doubts):
        warnings.warn(doubt, stacklevel=2)
    module = targets.LoweredModule(pruned, lowered["pruned"], given.module)
    return Result(module, report, describe(given, dense, pruned, scenes.images if scenes else None))


@dataclass(frozen=True)
class _Lowered:
    """Both programs on the target that was asked for, or on the one that was taken."""

    name: str
    backend: Target
    lowered: dict[str, Flat]
    dense: Flat  # in the model's own precision, which outputs are compared with
    table: TargetTable | None = None
    notes: tuple[str, ...] = ()


def _on_target(dense: Recognised, pruned: Planned, inputs: tuple[Any, ...], measure: Measure) -> _Lowered:
    """Lower both programs: where a choice was asked for, of a target or a precision, by measurement."""
    target, precision = measure.target, measure.precision
    if target != targets.AUTO and precision == "fp32":
        backend = targets.load(target)
        lowered = {"dense": backend.lower(dense), "pruned": backend.lower(pruned)}
        return _Lowered(target, backend, lowered, lowered["dense"])
    found = fastest_target(
        dense,
        pruned,
        inputs,
        rounds=measure.rounds or ROUNDS,
        progress=measure.progress,
        names=tuple(targets.TARGETS) if target == targets.AUTO else (target,),
        precision=precision,
    )
    notes = () if found.precision == precision else (not_taken(found.table, precision),)
    taken = targets.load(found.name, found.precision)
    return _Lowered(found.name, taken, found.lowered, found.dense, found.table, notes)


def _caveats(
    source: Source, dense: Recognised, image_set: ImageSet | None, fitted_on: ImageSet | None
) -> tuple[str, ...]:
    """What is doubtful about pictures and labels: warned of, and noted in the report."""
    shown = image_set or fitted_on
    about_pictures = () if shown is None or shown.name == SCENES else doubts(source, shown)
    if image_set is None:
        return about_pictures
    known = figures.known(dense, source, image_set)
    labels = fitting(image_set, figures.classes(dense, known))[1]
    return (*about_pictures, *filter(None, [labels]))


def _calibration_notes(compiled: Compiled) -> tuple[str, ...]:
    if compiled.calibration is not None and compiled.calibration.name == SCENES:
        return ("calibrated on synthetic scenes: give --images for counts that fit your images",)
    if _is_untrained(compiled):
        return ("the policy's learned parts are untrained: the figures say how fast it is, not how good",)
    return ()


def _is_untrained(compiled: Compiled) -> bool:
    return compiled.calibration is None and needs_calibration(compiled.pruned)
